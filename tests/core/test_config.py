"""Configs as text and JSON, and what may change when a run goes on."""

import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from mmx.core import config as configs
from mmx.core.errors import UserError


@pytest.mark.parametrize("name", sorted(configs.list_configs()))
def test_every_config_survives_json(name):
    for arg in ("", ":tiny"):
        config = configs.load_config(name + arg)
        again = configs.from_json(configs.to_json(config))
        assert configs.to_text(again) == configs.to_text(config)
        assert again.is_locked and config.is_locked
        configs.check_resumable(again, config)
        # The same types too: a tuple came back as one, a number of steps is no float.
        types = lambda c: {k: type(c_at(c, k)) for k in configs.flat_items(c)}
        assert types(again) == types(config)
        with pytest.raises((AttributeError, KeyError)):
            again.nothing_of_the_sort = 1


def c_at(config, dotted):
    for part in dotted.split("."):
        config = config[part]
    return config


def test_configs_are_listed_with_their_purpose():
    listed = configs.list_configs()
    assert {"vqgan/openmoji32", "muse/openmoji32"} <= set(listed)
    assert all(len(purpose) > 10 for purpose in listed.values())


def test_listing_is_instant():
    code = (
        "import sys; from mmx.core import config; config.list_configs(); "
        "print([m for m in ('jax', 'numpy', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "jax" not in done.stdout and "tensorflow" not in done.stdout


OLD = ConfigDict(
    {"family": "toy", "steps": 5, "keep": 2, "keeper": 1, "optim": {"lr": 1e-3, "steps": 3},
     "mesh": {"data": -1, "fsdp": 1}, "data": {"threads": 1, "data_dir": "", "split": "train"},
     "pair": (1, 2)}
)  # fmt: skip


def changed(**fields):
    new = ConfigDict(OLD.to_dict())
    new.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return new


def test_a_run_goes_on_with_another_place_length_and_interval():
    configs.check_resumable(OLD, OLD)
    configs.check_resumable(
        OLD,
        changed(steps=9, keep=5, mesh__data=2, mesh__fsdp=4, data__threads=8, data__data_dir="x"),
    )
    configs.check_resumable(configs.from_json(configs.to_json(OLD)), OLD)


def test_other_changes_are_refused_and_listed():
    new = changed(optim__lr=2e-3, data__split="test", pair=(1, 3), steps=9)
    with new.unlocked():
        new.optim.clip_norm = 1.0
    with pytest.raises(UserError) as raised:
        configs.check_resumable(OLD, new)
    first, *rest = str(raised.value).splitlines()
    assert first == "the run in this workdir has another config; use a new --workdir or undo:"
    assert rest == [
        "  data.split: 'train' -> 'test'",
        "  optim.clip_norm: '(absent)' -> 1.0",
        "  optim.lr: 0.001 -> 0.002",
        "  pair: [1, 2] -> [1, 3]",
    ]


@pytest.mark.parametrize("field", ["keeper", "optim__steps"])
def test_a_name_that_only_begins_like_an_allowed_one_is_refused(field):
    with pytest.raises(UserError, match=field.replace("__", r"\.")):
        configs.check_resumable(OLD, changed(**{field: 7}))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model.depth", 0, "config.model.depth=0: must be at least 1"),
        ("model.heads", -2, "config.model.heads=-2: must be at least 1"),
        ("text.max_len", 0, "config.text.max_len=0: must be at least 1"),
        ("text.width", -8, "config.text.width=-8: must be at least 1"),
        ("eval.examples", 0, "config.eval.examples=0: must be at least 1"),
        ("data.shift", -1, "config.data.shift=-1: must be at least 0"),
        ("model.multipliers", (1, 0), r"config.model.multipliers=\[1, 0\]: must be at least 1"),
        ("model.multipliers", (), r"config.model.multipliers=\[\]: give at least one"),
        ("eval.splits", (), r"config.eval.splits=\[\]: give at least one"),
        ("steps", 1e6, "config.steps=1000000.0: give a whole number"),
        ("optim.clip_norm", 0.0, "config.optim.clip_norm=0.0: would make every gradient 0"),
        ("loss.weight", float("inf"), "config.loss.weight=inf: give a finite number"),
        ("optim.weight_decay", -0.1, "config.optim.weight_decay=-0.1: must be at least 0"),
        ("model.logit_bias", -10.0, None),
        ("preview_prompts", (), None),
        ("optim.lr", float("nan"), "config.optim.lr=nan: give a finite number"),
        ("log_every", 0, "config.log_every=0: must be at least 1; for never, give more than"),
        ("preview_every", 1, None),
        ("data.shift", 0, None),
        ("mesh.fsdp", -1, None),
        ("optim.warmup_steps", 0, None),
    ],
)
def test_numbers_that_cannot_work_are_refused(field, value, says):
    *groups, name = field.split(".")
    config = ConfigDict({groups[0]: {name: value}} if groups else {name: value})
    if says is None:
        return configs.check_numbers(config)
    with pytest.raises(UserError, match=says):
        configs.check_numbers(config)


@pytest.mark.parametrize("name", sorted(configs.list_configs()))
def test_shipped_numbers_can_work(name):
    for arg in ("", ":tiny"):
        configs.check_numbers(configs.load_config(name + arg))


def test_arguments_are_flags():
    assert configs.parse_arg("", tiny=False) == {"tiny": False}
    assert configs.parse_arg("b,tiny", tiny=False, b=False) == {"tiny": True, "b": True}
    with pytest.raises(UserError, match="config argument 'tinny' is unknown; known: tiny"):
        configs.parse_arg("tinny", tiny=False)


def test_one_of_several_arguments():
    of = lambda *chosen: {name: name in chosen for name in ("a", "b", "c")}
    assert configs.one_of(of("c"), "a", "b") == ""
    assert configs.one_of(of("b", "c"), "a", "b") == "b"
    with pytest.raises(UserError, match="config arguments 'a' and 'b': give one of them"):
        configs.one_of(of("a", "b"), "a", "b")
