"""Events that survive, and the arithmetic of the speeds."""

import numpy as np
import pytest
from conftest import read_scalars
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from mmx.core.config import flat_items
from mmx.core.errors import UserError
from mmx.train import goodput
from mmx.train.goodput import Goodput
from mmx.train.metrics import PEAK_FLOPS, Meter, Writer


def events_of(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    return events


def test_what_was_written_is_on_disk_at_once(tmp_path):
    writer = Writer(tmp_path, 0)
    writer.scalars(1, {"a/b": np.float32(0.1), "c": 2})
    # Not closed: the process could be killed now.
    assert read_scalars(tmp_path) == {"a/b": {1: np.float32(0.1)}, "c": {1: 2.0}}
    writer.close()


def test_a_resumed_run_purges_later_steps(tmp_path):
    for start, value in ((0, 1.0), (3, 2.0), (5, 3.0)):
        writer = Writer(tmp_path, start)
        for step in range(start + 1, start + 5):
            writer.scalars(step, {"x": value})
        writer.close()
    want = {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: 2.0, 6: 3.0, 7: 3.0, 8: 3.0, 9: 3.0}
    assert read_scalars(tmp_path)["x"] == want
    Writer(tmp_path).close()  # evaluating an earlier step hides nothing
    assert read_scalars(tmp_path)["x"] == want
    Writer(tmp_path, 0).close()  # a run that begins anew hides all
    assert read_scalars(tmp_path) in ({}, {"x": {}})


def test_only_host_0_writes(tmp_path):
    writer = Writer(tmp_path, 0, enabled=False)
    writer.scalars(1, {"x": 1.0})
    writer.text(1, "t", "text")
    writer.hparams(1, "run", {"a": 1}, ["x"])
    writer.close()
    assert not list(tmp_path.iterdir())


def test_images_text_and_hparams(toy_config, tmp_path):
    writer = Writer(tmp_path, 0)
    picture_u8 = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    writer.image(4, "samples", picture_u8)
    writer.text(0, "config", "lr = 1")
    writer.scalars(4, {"test/loss": 0.5})
    values = flat_items(toy_config()) | {"none": None, "pair": (1, 2)}
    writer.hparams(4, "my run", values, ["test/loss"])
    writer.close()
    events = events_of(tmp_path)
    image = events.Images("samples")[0]
    assert (image.step, image.height, image.width) == (4, 5, 4)
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert text == b"lr = 1"
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    hparams = start.hparams
    assert start.group_name == "my run"
    assert hparams["optim.lr"].number_value == 1e-2
    assert hparams["family"].string_value == "toy" and hparams["pair"].string_value == "(1, 2)"
    assert hparams["toy.gan"].bool_value is False
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    infos = metadata.parse_experiment_plugin_data(content).metric_infos
    assert [info.name.tag for info in infos] == ["test/loss"]
    # The scores are named there, not written a second time at another step.
    assert read_scalars(tmp_path) == {"test/loss": {4: 0.5}}


def test_a_full_disk_is_an_error_and_no_hang(tmp_path):
    writer = Writer(tmp_path, 0)
    writer._events.write_event = lambda event: (_ for _ in ()).throw(OSError(28, "No space left"))
    with pytest.raises(UserError, match=r"events\.out.*cannot write \(No space left\); free some"):
        for step in range(100):
            writer.scalars(step, {"x": 1.0})


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told, and a run's clock that goes by it."""

    class Clock(Goodput):
        now = 100.0

    monkeypatch.setattr(goodput.time, "monotonic", lambda: Clock.now)
    return Clock()


def test_speeds(clock):
    steps = clock.steps(10, 40)
    next(steps)
    type(clock).now += 7.0  # before the meter
    meter = Meter(clock, 10, 4, lambda: 3e9, peak=6e12)
    type(clock).now += 2.0
    with clock.span("eval"):
        type(clock).now += 50.0
    with clock.span("data"):
        type(clock).now += 1.0
    type(clock).now += 1.0
    want = {
        "speed/steps_per_sec": 20 / 4.0,
        "speed/examples_per_sec": 4 * 20 / 4.0,
        "speed/data_wait_share": 1.0 / 4.0,
        "speed/mfu": 20 * 3e9 / 6e12,  # 20 rows a second
    }
    assert meter.read(30) == pytest.approx(want)
    with clock.span("data"):
        type(clock).now += 1.5
    type(clock).now += 0.5  # the next reading starts from this one
    second = meter.read(31)
    assert second["speed/steps_per_sec"] == pytest.approx(0.5)
    assert second["speed/data_wait_share"] == pytest.approx(0.75)


def test_no_mfu_where_the_peak_is_not_known(clock):
    def never():
        raise AssertionError("FLOPs are not counted for nothing")

    meter = Meter(clock, 0, 4, never, peak=0.0)
    type(clock).now += 1.0
    assert "speed/mfu" not in meter.read(1)


def test_the_loop_counts_the_peak_of_all_devices(toy_config, train_toy, tmp_path, monkeypatch):
    monkeypatch.setitem(PEAK_FLOPS, "cpu", 1e6)
    train_toy(toy_config(steps=2), tmp_path / "run")
    scalars = read_scalars(tmp_path / "run")
    for step, mfu in scalars["speed/mfu"].items():
        rows = scalars["speed/examples_per_sec"][step]
        assert mfu == pytest.approx(rows * 1000.0 / (8 * 1e6), rel=1e-5)
    # The first step was compiled, which is no part of its time.
    assert len(scalars["speed/mfu"]) == 2
    events = events_of(tmp_path / "run")
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert start.group_name == str(tmp_path / "run")  # not "run", as another folder's would be
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "optim.lr = 0.01" in text
    assert events.Images("kernel")[0].step == 2


def test_compiling_is_no_part_of_the_speed(toy_config, train_toy, tmp_path):
    clock = Goodput()
    train_toy(toy_config(steps=1), tmp_path / "run", clock=clock)
    first = 1 / read_scalars(tmp_path / "run")["speed/steps_per_sec"][1]
    assert 0.0 < first < clock.seconds()["compile"]
