"""A pinned stage outlives the run it came from, and says so when it is not what it was."""

import json
import os
import shutil

import numpy as np
import pytest

from mmx.core import config as configs
from mmx.core import tree
from mmx.core.errors import UserError
from mmx.core.run_dir import RunDir
from mmx.models import stages
from mmx.models.registry import make_codec
from mmx.train.start import read_weights

DROP = ("params/discriminator",)


@pytest.fixture
def earlier(vqgan_run, tmp_path):
    """A tokenizer run of our own, which may be deleted."""
    shutil.copytree(vqgan_run, tmp_path / "earlier")
    (tmp_path / "earlier" / "tokenizer.json").write_text("{}")
    return tmp_path / "earlier"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "later").mkdir()
    return RunDir(tmp_path / "later")


def test_pins_once_and_outlives_the_earlier_run(earlier, run):
    params, extra, step = read_weights(RunDir(earlier))
    folder = stages.pin(run, "codec", str(earlier), DROP)
    pin = json.loads((folder / "pin.json").read_text())
    assert pin["spec"] == str(earlier) and pin["step"] == step == 20
    assert pin["save"] == RunDir(earlier).identity(20)
    written = os.stat(folder / "weights.safetensors").st_mtime_ns

    shutil.rmtree(earlier)
    assert stages.pin(run, "codec", str(earlier), DROP) == folder
    assert os.stat(folder / "weights.safetensors").st_mtime_ns == written
    kept = tree.flatten(stages.load_weights(folder))
    expected = tree.flatten({"params": params, "extra": extra})
    assert set(kept) == set(expected)
    for path, leaf in expected.items():
        np.testing.assert_array_equal(kept[path], leaf)
    assert make_codec(stages.load_config(folder)).grid(32) == 8
    assert (folder / "tokenizer.json").read_text() == "{}"


def test_takes_the_step_that_is_named_and_drops_what_is_not_needed(earlier, run):
    folder = stages.pin(run, "codec", f"{earlier}@10", ("params/encoder", "extra"))
    assert json.loads((folder / "pin.json").read_text())["step"] == 10
    kept = stages.load_weights(folder)
    assert set(kept) == {"params"} and set(kept["params"]) == {"decoder"}
    at_10 = read_weights(RunDir(earlier), 10)[0]["decoder"]
    at_20 = read_weights(RunDir(earlier), 20)[0]["decoder"]
    differs = []
    for path, leaf in tree.flatten(kept["params"]["decoder"]).items():
        np.testing.assert_array_equal(leaf, tree.flatten(at_10)[path])
        differs.append(np.abs(leaf - tree.flatten(at_20)[path]).max())
    assert max(differs) > 0


def test_takes_the_running_average_beside_the_codebook_of_that_step(run, monkeypatch, tmp_path):
    """The pair that the earlier run's own scores are of, as `Checkpoints` hands it out."""
    path = tmp_path / "averaged"
    (path / "checkpoints" / "5").mkdir(parents=True)
    config = configs.load_config("vqgan/openmoji32:tiny")
    (path / "config.json").write_text(configs.to_json(config))
    one = lambda value: {"w": np.full(2, value, np.float32)}
    saved = {"params": one(1), "ema": one(2), "extra": one(3)}
    monkeypatch.setattr("mmx.train.start.Checkpoints.read_model", lambda self, step: saved)
    kept = stages.load_weights(stages.pin(run, "codec", str(path)))
    assert kept["params"]["w"][0] == 2 and kept["extra"]["w"][0] == 3


def test_refuses_another_spec(earlier, run):
    stages.pin(run, "codec", str(earlier))
    with pytest.raises(UserError, match=r"codec\.run='.*@10', but this run is pinned .*step 20"):
        stages.pin(run, "codec", f"{earlier}@10")


def test_an_empty_spec_says_what_to_give(run):
    with pytest.raises(UserError, match=r"config.codec.run is empty.*--config.codec.run=RUN"):
        stages.pin(run, "codec", "")
    with pytest.raises(UserError, match="no such run"):
        stages.pin(run, "codec", "/nowhere/at/all")
    assert not run.stage("codec").exists()


def test_what_cannot_be_the_stage_is_refused_before_it_is_pinned(earlier, run):
    def accept(config):
        assert config.family == "vqgan"
        raise UserError("not this one")

    with pytest.raises(UserError, match="not this one"):
        stages.pin(run, "codec", str(earlier), accept=accept)
    assert not run.stage("codec").exists()


def test_an_interrupted_copy_is_made_anew(earlier, run):
    folder = stages.pin(run, "codec", str(earlier))
    (folder / "pin.json").unlink()
    (folder / "weights.safetensors").write_bytes(b"half of it")
    assert stages.pin(run, "codec", str(earlier)) == folder
    assert "params" in stages.load_weights(folder)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_found(earlier, run, damage):
    folder = stages.pin(run, "codec", str(earlier))
    file = folder / "weights.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
    file.write_bytes(data[:-1] if damage == "cut" else data)
    if damage == "gone":
        file.unlink()
    with pytest.raises(UserError, match=r"changed or damaged since it was pinned; .*still step 20"):
        stages.load_weights(folder)


def test_the_tokenizers_config_comes_back_as_it_was(earlier, run):
    folder = stages.pin(run, "codec", str(earlier))
    assert configs.to_text(stages.load_config(folder)) == configs.to_text(RunDir(earlier).config())
