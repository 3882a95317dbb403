"""``mmx compare``: pictures that are those of ``mmx sample``, and a TensorBoard that lines up."""

import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmx.cli import compare
from mmx.cli.main import main
from mmx.cli.scoring import Scorer
from mmx.core.run_dir import RunDir
from mmx.eval.ledger import Ledger
from mmx.eval.png import read_metadata
from mmx.eval.stats import Score

PROMPTS = ["red heart", "<b>dog</b> & 'cat'"]


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0}).Reload()


def scored(run, steps) -> None:
    """Scores and pictures as `mmx evaluate` would leave them, without the minutes it takes."""
    scorer = Scorer(RunDir(run))
    for step in steps:
        scores = {"recall/r1": Score(step / 100, 0.0, 0.5, 256), "use": 0.5}
        Ledger(RunDir(run).evals_file).add(step, 0, "report", scorer.recipes["report"], scores)
        scorer.picture(step).parent.mkdir(exist_ok=True)
        scorer.picture(step).touch()


@pytest.fixture(scope="module")
def runs(muse_run, tmp_path_factory):
    """Two variants of a run, both scored; the second is guided."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("plain", "guided & <b>"):
        shutil.copytree(muse_run, folder / name)
        scored(folder / name, (10, 20))
    config = folder / "guided & <b>" / "config.json"
    config.write_text(config.read_text().replace('"guidance": 1.0', '"guidance": 5.0'))
    return folder


def test_compare_draws_what_sample_draws(runs, tmp_path, capsys, monkeypatch):
    pages = []
    real = compare._write
    monkeypatch.setattr(compare, "_write", lambda out, c: (pages.append(c), real(out, c)))
    prompts, out = tmp_path / "prompts", tmp_path / "out"
    prompts.write_text("\n".join(PROMPTS))
    plain, guided = runs / "plain", runs / "guided & <b>"
    argv = ["compare", str(plain), str(guided), "--prompts", str(prompts), "--out", str(out)]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("plain: steps 10, 20\nguided & <b>: steps 10, 20\n")
    assert f"page:        {out}/index.html\n" in printed
    assert printed.endswith(f"--logdir {out}/tensorboard --samples_per_plugin=images=200\n")
    (shown,) = pages
    assert [(c.run, c.step) for c in shown.columns] == [
        ("plain", 10), ("plain", 20), ("guided & <b>", 10), ("guided & <b>", 20),
    ]  # fmt: skip
    assert shown.differences == {"sample.guidance": {"plain": "1.0", "guided & <b>": "5.0"}}
    text = (out / "index.html").read_text()
    assert "guided &amp; &lt;b&gt;" in text and "<td>5.0</td>" in text
    assert "CC BY-SA" in text and PROMPTS[1] not in text
    record = read_metadata(out / "sheet.png")
    assert (
        record["prompts"] == PROMPTS and record["seed"] == 0 and "CC BY-SA" in record["attribution"]
    )
    # The same pictures, by the command that the page names.
    for column, run in ((shown.columns[1], f"{plain}@20"), (shown.columns[2], f"{guided}@10")):
        drawn = tmp_path / f"{column.run} {column.step}"
        assert (
            main(["sample", run, "--prompts", str(out / "prompts.txt"), "--out", str(drawn)]) == 0
        )
        for i, image in enumerate(column.images):
            np.testing.assert_array_equal(image, np.asarray(Image.open(drawn / f"{i:05d}.png")))
    differ = [not np.array_equal(shown.columns[i].images, shown.columns[j].images)
              for i, j in ((0, 1), (1, 3))]  # fmt: skip
    assert all(differ)
    check_events(out / "tensorboard", shown)
    # The same folder again: nothing twice.
    monkeypatch.setattr(compare, "_compare", lambda *args: shown)
    assert main(argv) == 0
    check_events(out / "tensorboard", shown)


def check_events(folder, shown):
    """The same tags and steps in each run, images that are the pictures, a table, charts."""
    from tensorboard.plugins.custom_scalar import layout_pb2
    from tensorboard.plugins.hparams import metadata

    at = {run: read_events(folder / run) for run, _ in shown.groups()}
    tags = {"samples/all", "samples/00_red_heart", "samples/01_b_dog_b_cat", "filmstrip"}
    for run, columns in shown.groups():
        events = at[run]
        assert set(events.Tags()["images"]) == tags
        for tag in tags - {"filmstrip"}:
            assert [e.step for e in events.Images(tag)] == [10, 20]
        for column, event in zip(columns, events.Images("samples/00_red_heart"), strict=True):
            image = Image.open(io.BytesIO(event.encoded_image_string))
            big = column.images[0].repeat(4, 0).repeat(4, 1)
            np.testing.assert_array_equal(np.asarray(image), big)
        points = [(e.step, pytest.approx(e.value)) for e in events.Scalars("scores/recall/r1")]
        assert points == [(10, 0.1), (20, 0.2)]
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        start = metadata.parse_session_start_info_plugin_data(content)
        assert start.group_name == run
        want = float(shown.differences["sample.guidance"][run])
        assert start.hparams["sample.guidance"].number_value == want
        assert start.hparams["steps compared"].string_value == "10, 20"
        content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
        infos = metadata.parse_experiment_plugin_data(content).metric_infos
        assert {i.name.tag for i in infos} == {"scores/recall/r1", "scores/use"}
        assert {i.name.tag for i in infos} <= set(events.Tags()["scalars"])
    first, second = at.values()
    (event,) = first.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["recall", "use"]
    (band,) = layout.category[0].chart[0].margin.series
    assert (band.value, band.lower) == ("scores/recall/r1", "scores_low/recall/r1")
    assert "custom_scalars__config__" not in second.Tags()["tensors"]


def test_tokenizers_rebuild_the_same_images_and_are_scored(
    vqgan_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("mmx.models.vqgan.report.MAX_EXAMPLES", 32)
    for name in ("a", "b"):
        shutil.copytree(vqgan_run, tmp_path / name)
    pages = []
    monkeypatch.setattr(compare, "_write", lambda out, shown: pages.append(shown))
    assert main(["compare", str(tmp_path / "a"), f"{tmp_path / 'b'}@20", "--seed", "3"]) == 0
    (shown,) = pages
    assert [(c.run, c.step) for c in shown.columns] == [("a", 10), ("a", 20), ("b", 20)]
    assert shown.originals.shape == (8, 32, 32, 3) and len(shown.rows) == 8
    np.testing.assert_array_equal(shown.columns[1].images, shown.columns[2].images)
    assert not np.array_equal(shown.columns[0].images, shown.columns[1].images)
    assert shown.differences == {}
    for column in shown.columns:  # what was missing is there now, once
        lines = (tmp_path / column.run / "evals.jsonl").read_text().splitlines()
        at = [json.loads(line) for line in lines if f'"step": {column.step},' in line]
        assert {line["metric"]: line for line in at} == column.scores and len(at) == 10
        assert all(line["seed"] == 3 for line in at)
    assert capsys.readouterr().err.count("scoring step") == 3


def test_tokenizers_that_may_know_the_images_are_named():
    def run(name, split, source="tfds:openmoji/32"):
        data = SimpleNamespace(source=source, split=split)
        config = SimpleNamespace(data=data, eval=SimpleNamespace(splits=("train", "test[:9]")))
        return SimpleNamespace(name=name, config=config)

    fingerprint = dict.fromkeys("abcd", "1234") | {"e": "5678"}
    with pytest.MonkeyPatch.context() as patch:
        settings = lambda r: {"data (fingerprint)": fingerprint[r.name]}
        patch.setattr(compare, "_settings", settings)
        a, b, c = run("a", "train"), run("b", "train*2+test[10:]"), run("c", "train+test")
        assert compare._caution([a, a]) == ""
        want = "Trained on the split of these images: b, c."
        assert compare._caution([a, b, c]) == want
        others = run("d", "train", "tfds:scenes/32"), run("e", "train")
        more = " Trained on other data, which may hold these images: d, e."
        assert compare._caution([a, b, c, *others]) == want + more
        assert compare._caution([a, *others]) == more.strip()


@pytest.mark.parametrize("spec", ["clip/openmoji64:tiny", "spae/moving32:tiny"])
def test_runs_without_pictures_compare_scores(hollow, early, tmp_path, spec):
    run = hollow(spec.replace("/", "-"), spec)
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / name)
        scored(tmp_path / name, (10, 20))
    out = tmp_path / "out"
    argv = ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]
    assert main(argv) == 0
    text = (out / "index.html").read_text()
    assert "<img" not in text and "[0, 0.5]" in text and "Pictures" not in text
    assert {path.name for path in out.iterdir()} == {"index.html", "sheet.png", "tensorboard"}
    events = read_events(out / "tensorboard" / "a")
    assert events.Tags()["images"] == [] and len(events.Scalars("scores/use")) == 2


def test_steps_line_up(tmp_path, vqgan_run, monkeypatch):
    steps = {"a": [*range(10, 130, 10)], "b": [*range(20, 150, 20)]}
    for name, there in steps.items():
        for step in there:
            (tmp_path / name / "checkpoints" / str(step)).mkdir(parents=True)
        shutil.copy(vqgan_run / "config.json", tmp_path / name)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    of = lambda *specs: {r.name: r.steps for r in compare._runs(specs)}
    # Five of the steps in common, and the newest of each; six where that is in common, too.
    assert of(a, b) == {"a": [20, 40, 60, 100, 120], "b": [20, 40, 60, 100, 120, 140]}
    assert of(f"{a}@30", b, f"{a}@10") == {"a": [10, 30], "b": [20, 40, 60, 100, 120, 140]}
    assert of(a) == {"a": [10, 30, 50, 80, 100, 120]}
    assert compare._names(["/x/a/run", "/x/b/run", "/x/c"]) == ["a/run", "b/run", "x/c"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "required: RUN[@STEP]"),
        (["MUSE", "TOKENS"], "muse, draws from prompts; tokens: vqgan, rebuilds images); name"),
        (["TOKENS", "VIDEOS"], "rebuilds images; videos: spae of videos, has scores alone); name"),
        (["MUSE@10", "MUSE@15"], "no checkpoint of step 15; there are [10, 20]"),
        (["MUSE", "nowhere"], "nowhere: no such run directory"),
        (["TOKENS", "--prompts", "FILE"], "a run of the family 'vqgan' draws from none"),
        (["MUSE", "--prompts", "missing"], "--prompts=missing: No such file"),
        (["MUSE", "--prompts", "EMPTY"], "no prompt in it"),
        (["MUSE", "--prompts", "LONG"], "muse: prompt 'red red"),
        (["MUSE", "--out", "FILE/x"], "FILE is not a folder"),
        (["MUSE", "--out", "/proc/x"], "cannot write in /proc"),
        (["MUSE", "--out", "FULL"], "the folder holds other things; name a new one"),
        (["MUSE", "--seed", "-1"], "argument --seed: '-1'"),
        (["MUSE", "--data_dir", "/nowhere"], "not prepared in /nowhere"),
    ],
)
def test_bad_input(argv, says, refused, hollow, early, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "mine.txt").touch()
    (tmp_path / "FILE").write_text("red heart\n")
    (tmp_path / "EMPTY").write_text("\n \n")
    (tmp_path / "LONG").write_text("red " * 40)
    (tmp_path / "GOOD").write_text("red heart")
    if argv and argv[-1] not in ("FILE", "LONG", "EMPTY", "missing", "TOKENS", "VIDEOS"):
        argv = [*argv, "--prompts", "GOOD"]
    names = {"MUSE": hollow("muse"), "TOKENS": hollow("tokens", "vqgan/openmoji32:tiny"),
             "VIDEOS": hollow("videos", "spae/moving32:tiny")}  # fmt: skip
    for name, path in names.items():
        argv = [str(path) + a.removeprefix(name) if a.startswith(name) else a for a in argv]
    assert says in refused("compare", *argv)
