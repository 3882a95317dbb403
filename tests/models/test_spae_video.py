"""SPAE of videos: learns one, says it in words, draws it from them, starts from an image's run."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmx.core.errors import UserError
from mmx.data.moving import MOTIONS, move
from mmx.models.registry import make_task
from mmx.models.rows import to_float
from mmx.models.spae import report as reports
from mmx.models.spae.in_context.segments import asked_words, segment_plan
from mmx.nn.conv import inflate
from mmx.ops.pyramid import Pyramid
from mmx.train.sharding import make_mesh

SMALL = {"model.channels": 8, "optim.lr": 1e-2, "optim.warmup_steps": 0, "data.image_size": 8,
         "data.frames": 4, "model.time": (2,), "pyramid.sides": (1, 2, 2),
         "pyramid.frames": (1, 1, 2), "guidance.thresholds": (0.9,)}  # fmt: skip


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(dict(slice=1, data=-1, fsdp=1, tensor=1))


@pytest.fixture(scope="module")
def trained(build):
    """A task, its weights after some steps, the batch, and errors by step."""
    task = build.spae("spae/moving32:tiny", SMALL)
    assert task.codec.image_shape == (4, 8, 8, 3) and task.pyramid.ends == (1, 5, 13)
    state, update = build.trainer(task)
    batch, errors = build.rows(task, 4), []
    assert batch["image"].shape == task.batch_spec()["image"].shape
    for _ in range(30):
        state, metrics = update(state, batch)
        assert all(np.isfinite(v) for v in metrics.values()), metrics
        errors.append(float(metrics["loss/l2"]))
    return task, (state.params, state.extra, task._frozen_host()), batch, errors


def test_it_learns_videos(trained):
    _, _, _, errors = trained
    assert errors[-1] < 0.7 * errors[0], errors


def test_words_of_a_video_draw_what_training_saw_of_it(trained, mesh):
    task, weights, batch, _ = trained
    params, extra, frozen = weights
    video = to_float(jnp.asarray(batch["image"]))
    out = jax.jit(
        lambda video: task.codec.forward(params, extra, frozen["table"], task.num_words, video)
    )(video)
    words = task.to_words(mesh)(*weights, batch["image"])
    np.testing.assert_array_equal(words, out.words.words_BT)
    assert words.shape == (4, 13)
    drawn = task.from_words(mesh)(*weights, words)
    assert drawn.shape == (4, 4, 8, 8, 3)
    np.testing.assert_allclose(drawn, out.recon_BHWC, atol=1e-5)
    # What a language model is asked and answers are ids of its own vocabulary.
    vocabulary = task.vocabulary
    ids = vocabulary.lm_ids(words)
    assert (ids == vocabulary.ids[words]).all() and (ids != words).any()
    np.testing.assert_array_equal(task.from_words(mesh)(*weights, vocabulary.rows(ids)), drawn)
    with pytest.raises(UserError, match="6 words: whole layers of this pyramid end at 1, 5, 13"):
        task.from_words(mesh)(*weights, words[:, :6])


def test_latents_are_standardised_over_all_frames_and_cells(trained):
    task, (params, extra, _), batch, _ = trained
    video = to_float(jnp.asarray(batch["image"]))

    @jax.jit
    def both(video):
        raw = task.codec.encoder.apply({"params": params["encoder"]}, video)
        return raw, *task.codec.encode_batch(params, extra, video)

    raw, z, moved = both(video)
    assert raw.shape == (4, 2, 2, 2, 16)
    axes = (0, 1, 2, 3)
    raw = np.asarray(raw, np.float64)
    np.testing.assert_allclose(z, (raw - raw.mean(axes)) / raw.std(axes), atol=1e-4)
    assert moved["moments"]["count"] == 31


def test_psnr_and_strips_are_of_whole_videos(trained, mesh):
    task, weights, batch, _ = trained
    words, drawn = reports.depths(task, mesh, *weights, batch["image"])
    assert drawn.shape == (3, 4, 4, 8, 8, 3)
    strips = reports.shown(task.pyramid, drawn)
    assert strips.shape == (3, 4, 8, 32, 3)
    for frame in range(4):
        np.testing.assert_array_equal(strips[..., 8 * frame : 8 * frame + 8, :], drawn[:, :, frame])
    section = task.pyramid_section(batch["image"][0], words[0], drawn[:, 0], "violin moves left")
    assert section.images.shape == (4, 8, 32, 3)
    assert [len(c.split(" ... ")[0].split()) for c in section.captions[1:]] == [1, 4, 6]
    error = np.square(batch["image"] / 127.5 - drawn[2] / 127.5).mean((1, 2, 3, 4))
    found = reports.image_scores.psnr(reports._tall(batch["image"]), reports._tall(drawn[2]))
    np.testing.assert_allclose(found, 10 * np.log10(4 / error), rtol=1e-4)


@pytest.mark.parametrize(("frames", "count"), [(16, 6), (0, 100)])
def test_a_report_is_of_as_many_frames_as_images(frames, count, monkeypatch):
    class Asked(Exception):
        pass

    def rebuilding(task, mesh, split, limit):
        raise Asked(split, limit)

    monkeypatch.setattr(reports, "MAX_EXAMPLES", 100)
    monkeypatch.setattr(reports, "Rebuilding", rebuilding)
    monkeypatch.setattr(reports, "load_sentences", lambda *_: SimpleNamespace(embed=np.array))
    data = SimpleNamespace(data_dir="", split="train", get=lambda *_: frames)
    config = SimpleNamespace(data=data, eval=SimpleNamespace(splits=("test",)))
    vocabulary = SimpleNamespace(words=lambda rows: [""] * len(rows))
    task = SimpleNamespace(config=config, num_words=3, vocabulary=vocabulary)
    with pytest.raises(Asked) as asked:
        reports.report(task, SimpleNamespace(mesh=None), 0)
    assert asked.value.args == ("train", count)


def test_a_video_run_starts_as_the_image_run(trained, build, mesh):
    """Words of a video that stands still are drawn as the image's, by an image run's weights."""
    task, weights, _, _ = trained
    times = ("data.frames", "model.time", "pyramid.frames")
    of_images = {name: value for name, value in SMALL.items() if name not in times}
    image_task = build.spae("spae/openmoji32:tiny", of_images)
    frozen = weights[2]
    params, image_extra = build.params(image_task)
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
    like, _ = build.params(task)
    video_params = jax.tree.map(lambda a, b: inflate(np.asarray(a), b.shape), params, like)
    image = build.images(2, 8)
    words = image_task.to_words(mesh)(params, image_extra, frozen, image)
    still = task.to_words(mesh)(video_params, image_extra, frozen, image[:, None].repeat(4, 1))
    np.testing.assert_array_equal(still[:, :5], words[:, :5])
    # The upper layers speak in the later of the two frames; there the last one says what is left.
    np.testing.assert_array_equal(still[:, 9:], words[:, 5:])
    assert (still[:, 5:9] != words[:, 5:]).any()
    drawn = image_task.from_words(mesh)(params, image_extra, frozen, words[:, :5])
    videos = task.from_words(mesh)(video_params, image_extra, frozen, still[:, :5])
    for frame in range(4):
        np.testing.assert_allclose(videos[:, frame], drawn, atol=1e-4)


def test_a_language_model_is_asked_for_the_words_of_later_frames():
    """Of 4 latent frames the last two: what goes on is written, the past is shown."""
    pyramid = Pyramid((1, 2, 2), frames=(1, 2, 4))
    is_asked = np.zeros(pyramid.shape, bool)
    is_asked[2:] = True
    asked = asked_words(pyramid, is_asked)
    # Layer 1 is in frame 2, layer 2 in frames 1 and 3, layer 3 in all.
    assert asked.tolist() == [True] + [False] * 4 + [True] * 4 + [False] * 8 + [True] * 8
    assert segment_plan(pyramid, 6, asked) == [(0, 0, 1), (1, 4, 4), (2, 8, 6), (2, 14, 2)]


def test_a_row_is_a_video_as_it_is(trained):
    task, _, _, _ = trained
    drawing = np.random.default_rng(0).integers(0, 200, (8, 8, 3), np.uint8)
    video = move(drawing, *MOTIONS[0])[:4]
    row = task.transform({"image": video, "text": "violin"}, np.random.default_rng(0))
    np.testing.assert_array_equal(row["image"], video)
    with pytest.raises(UserError, match=r"config.data.frames=4: moving:.* shape \(3, 8, 8, 3\)"):
        task.plain({"image": video[:3]})
    with pytest.raises(UserError, match=r"config.data.frames=4: moving:.* shape \(8, 8, 3\)"):
        task.plain({"image": drawing})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.frames": 8}, r"config.data.frames=8: layers of \(1, 1, 2\) frames .* videos of 4"),
        ({"pyramid.frames": ()}, "config.data.frames=4: layers of .* videos of 0"),
        ({"model.time": ()}, "config.data.frames=4: .* images have none"),
        ({"data.flip": True}, "flip=True: videos are not augmented"),
        ({"guidance.teacher": "clip"}, "config.guidance.teacher='clip' looks at images"),
        ({"eval.metrics": ("psnr",)}, r"config.eval.metrics=\('psnr',\): of images"),
    ],
)
def test_what_does_not_fit_is_named(build, changes, message):
    config = build.changed("spae/moving32:tiny", SMALL | changes)
    with pytest.raises(UserError, match=message):
        make_task(config, None, abstract=True)
