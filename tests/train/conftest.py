"""The toy family by import (``import toy``), runs of it in this process, and readers of events."""

import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "data")]


def read_scalars(run) -> dict[str, dict[int, float]]:
    """{tag: {step: value}} of all scalars of a run, as TensorBoard shows them after its purge."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    events.Reload()
    out = {}
    for tag in events.Tags()["scalars"]:
        points = [(e.step, e.value) for e in events.Scalars(tag)]
        assert len({step for step, _ in points}) == len(points), f"{tag}: a step twice: {points}"
        out[tag] = dict(points)
    return out


def goodput_of(run) -> list[list[dict]]:
    """The records of each start of a run, the oldest first."""
    files = sorted((run / "goodput").glob("*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def training(scalars) -> dict:
    """Without speeds and times, which are never the same twice."""
    clocked = ("speed/", "goodput/", "goodput_seconds/")
    return {tag: points for tag, points in scalars.items() if not tag.startswith(clocked)}


@pytest.fixture
def toy_config():
    """``(arg="", **fields) -> config``, fields as ``optim__lr=1``."""
    from mmx.core.config import load_config

    def make(arg="", **fields):
        config = load_config(f"{HERE / 'toy_config.py'}:{arg}")
        with config.unlocked():
            for name, value in fields.items():
                *parents, last = name.split("__")
                node = config
                for parent in parents:
                    node = node[parent]
                assert last in node, name
                node[last] = value
        return config

    return make


@pytest.fixture
def train_toy(monkeypatch):
    """``(config, folder, **kwargs) -> task`` after training in this process, on all devices."""
    import toy

    from mmx.core.run_dir import open_or_create
    from mmx.train import loop

    monkeypatch.setattr(loop, "open_source", toy.open_toy)

    def run(config, folder, task=None, **kwargs):
        task = task or toy.ToyTask(config)
        loop.train(task, config, open_or_create(folder, config), **kwargs)
        return task

    return run
