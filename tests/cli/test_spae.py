"""A SPAE run in use: images described in words, pictures drawn from words, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from mmx.cli.main import main
from mmx.core import config as configs
from mmx.core import rng as rngs
from mmx.core.run_dir import RunDir
from mmx.data.vocabulary import Vocabulary
from mmx.models import kept
from mmx.models.registry import make_task
from mmx.train.checkpoint import Checkpoints
from mmx.train.state import TrainState

WORDS = [f"{first}{second}" for first in ("red", "dog", "sun", "sea") for second in "abcdefghijkl"]


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return random_run(tmp_path_factory.mktemp("runs") / "spae", "spae/openmoji32:tiny")


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    return random_run(tmp_path_factory.mktemp("runs") / "moving", "spae/moving32:tiny")


def random_run(path, spec):
    """The path of a run with random weights, over 48 words in random places."""
    config = configs.load_config(spec)
    small = {"words.size": 48, "words.width": 16, "words.code_dim": 16, "words.table": "raw"}
    config.update_from_flattened_dict(small | {"guidance.weight": 0.0})
    run = RunDir(path)
    run.path.mkdir()
    run.config_file.write_text(configs.to_json(config))
    vocabulary = Vocabulary(np.arange(48), tuple(f" {word}" for word in WORDS), "a hash")
    table = np.random.default_rng(0).normal(size=(48, 16)).astype(np.float32)
    parts = {"vocabulary.json": vocabulary.to_json().encode(),
             "table.safetensors": save({"table": table})}  # fmt: skip
    kept.keep(run.stage("words"), parts)
    task = make_task(config, run)
    params, extra = jax.jit(lambda key: nn.unbox(task.init(key)))(rngs.base_key(0))
    params = jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), params
    )
    checkpoints = Checkpoints(run.checkpoints)
    checkpoints.save(10, TrainState(jnp.int32(10), params, {}, None, extra, jnp.int32(-1)))
    checkpoints.close()
    return run.path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "a.png"
    noise = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save(file)
    return file


def test_an_image_is_described_and_drawn_again_from_its_words(where, picture, tmp_path, capsys):
    words, grid, again = tmp_path / "w.txt", tmp_path / "d.png", tmp_path / "again.png"
    assert (
        main(["describe", str(where), str(picture), "--words", str(words), "--out", str(grid)]) == 0
    )
    told = capsys.readouterr().out.splitlines()
    assert told[0] == str(picture) and told[-1] == str(grid)
    assert [line[:5] for line in told[1:6]] == [f"  {k}: " for k in range(1, 6)]
    counts = [len(line[5:].replace("|", " ").split()) for line in told[1:6]]
    assert counts == [1, 4, 16, 64, 64]
    lines = words.read_text().splitlines()
    assert lines == [line[5:] for line in told[1:6]]
    assert all(word in [*WORDS, "|"] for line in lines for word in line.split())
    assert main(["sample", str(where), "--words", str(words), "--out", str(again)]) == 0
    drawn = np.asarray(Image.open(again))
    assert drawn.shape == (32, 32, 3)
    # The last cell of the picture is that of all layers, enlarged: its pixels are the same.
    from mmx.eval.grid import GAP, MARGIN, TILE

    page = np.asarray(Image.open(grid).convert("RGB"))
    left = MARGIN + 5 * (TILE + GAP)
    strip = page[:, left : left + TILE]
    tops = [y for y in range(len(strip) - TILE) if (strip[y : y + TILE : 4, ::4] == drawn).all()]
    assert tops
    # Fewer layers are fewer lines.
    words.write_text("# one and four\n\n" + "\n".join(lines[:2]))
    assert main(["sample", str(where), "--words", str(words), "--out", str(again)]) == 0
    assert (np.asarray(Image.open(again)) != drawn).any()


def test_a_video_is_a_strip_of_its_frames(moving, picture, tmp_path, capsys, refused):
    words, grid, again = tmp_path / "w.txt", tmp_path / "d.png", tmp_path / "again.png"
    noise = np.random.default_rng(1).integers(0, 256, (32, 16 * 32, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "strip.png")
    told = ["describe", str(moving), str(tmp_path / "strip.png")]
    assert main([*told, "--words", str(words), "--out", str(grid)]) == 0
    told = capsys.readouterr().out.splitlines()
    counts = [len(line[5:].replace("|", " ").split()) for line in told[1:6]]
    assert counts == [1, 4, 32, 256, 256]
    assert main(["sample", str(moving), "--words", str(words), "--out", str(again)]) == 0
    drawn = np.asarray(Image.open(again))
    assert drawn.shape == (32, 16 * 32, 3)
    # The picture shows the same video: its frames 0, 5, 10 and 15, as large as they are.
    shown = np.concatenate([drawn[:, 32 * t : 32 * t + 32] for t in (0, 5, 10, 15)], 1)
    page = np.asarray(Image.open(grid).convert("RGB"))
    windows = np.lib.stride_tricks.sliding_window_view(page, shown.shape)[:, :, 0]
    corners = np.argwhere((windows[..., 0, 0, :] == shown[0, 0]).all(-1))
    assert any((windows[y, x] == shown).all() for y, x in corners)
    lines = words.read_text().splitlines()
    words.write_text("\n".join([*lines[:2], lines[2].replace(" | ", " ").rsplit(" ", 1)[0]]))
    told = refused("sample", moving, "--words", words)
    assert "layer 3 has 31 words: it takes 2 x 4 x 4 = 32" in told
    assert "a strip of 16 frames" in refused("describe", moving, picture)
    assert "a run of videos" in refused("fewshot", moving, "--source", "tfds:drawings")


def test_what_is_refused(where, picture, tmp_path, hollow, refused, early):
    def words(text):
        (tmp_path / "w.txt").write_text(text)
        return refused("sample", where, "--words", tmp_path / "w.txt")

    assert "layer 1 has 2 words: it takes 1 x 1 = 1" in words("reda redb\n")
    assert "line 2: layer 2 has 3 words: it takes 2 x 2 = 4" in words("reda\nreda redb redc\n")
    assert "'cat'" in words("cat\n")
    assert "no words in it" in words("# nothing\n")
    nothing = tmp_path / "none.txt"
    assert f"--words={nothing}" in refused("sample", where, "--words", nothing)
    (tmp_path / "w.txt").write_text("reda\n")
    assert "leave out the prompt" in refused("sample", where, "red", "--words", tmp_path / "w.txt")
    other = hollow("muse")
    assert "codes are no words" in refused("describe", other, picture)
    assert "codes are no words" in refused("sample", other, "--words", tmp_path / "w.txt")
    assert "draws nothing from prompts" in refused("sample", where, "red heart")
    two = refused("describe", where, picture, picture, "--words", tmp_path / "o.txt")
    assert "the words of one image" in two
    assert "reads no images" in refused("caption", where, picture)
