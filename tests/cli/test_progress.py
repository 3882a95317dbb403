"""The bar on a terminal and the lines in a log, seen from the other end of a pseudo-terminal."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading

import pytest

from mmx.core import progress as module
from mmx.core.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    """``terminal(columns) -> read``: stderr is a terminal; ``read()`` ends it: all that it got."""

    def make(columns: int):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        stderr = os.fdopen(theirs, "w")
        monkeypatch.setattr(sys, "stderr", stderr)
        got: list[bytes] = []

        def drain():
            # The far end closed: an error on Linux, the end of the file elsewhere.
            with contextlib.suppress(OSError):
                while chunk := os.read(ours, 4096):
                    got.append(chunk)
            os.close(ours)

        reader = threading.Thread(target=drain)
        reader.start()

        def read() -> str:
            monkeypatch.undo()
            stderr.close()
            reader.join()
            return b"".join(got).decode()

        return read

    return make


def frames(text: str) -> list[str]:
    return [frame.rstrip("\r\n") for frame in text.split("\r\033[K")[1:]]


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_bar_keeps_to_one_line(terminal, clock, columns):
    read = terminal(columns)
    bar = Progress(1000, "train muse")
    for done in range(1, 101):
        clock[0] += 1
        bar.update(done, "loss/total 1.234  " * 8)
    shown = frames(read())
    assert len(shown) == 100
    # A line of the full width already wraps on some terminals.
    assert {len(frame) for frame in shown} == {columns - 1}


def test_bar_shows_count_share_and_time_left(terminal, clock):
    read = terminal(100)
    bar = Progress(100, "draw")
    clock[0] = 50.0  # the first unit compiles for 50 s: no measure of the rest
    bar.update(1, "first")
    for done in range(2, 51):
        clock[0] += 2
        bar.update(done)
    bar.say("a line\nand another")
    clock[0] += 2
    bar.update(51)
    bar.close()
    text = read()
    shown = frames(text)
    assert shown[0] == "draw [....................] 1/100 eta 1:22:30  first"
    # The note stays; the bar is half full; 50 units of 2 s are left.
    assert shown[49] == "draw [##########..........] 50/100 eta 1:40  first"
    assert shown[50] == "a line\r\nand another"
    assert text.endswith("51/100 eta 1:38  first\r\n")


def test_words_come_before_the_bar(terminal, clock):
    """The bar shrinks, and goes, where the line would not fit otherwise."""
    for columns, shown in (
        (80, "train [##########..........] 5/10 eta ?  loss 1.234  psnr 21"),
        (50, "train [####.....] 5/10 eta ?  loss 1.234  psnr 21"),
        (45, "train 5/10 eta ?  loss 1.234  psnr 21"),
    ):
        read = terminal(columns)
        bar = Progress(10, "train", start=5)
        bar.update(5, "loss 1.234  psnr 21")
        assert frames(read()) == [shown]


def test_bar_is_not_redrawn_for_nothing(terminal, clock):
    read = terminal(80)
    bar = Progress(1000, "train")
    for done in range(1, 1001):
        clock[0] += 0.001
        bar.update(done)
    shown = frames(read())
    assert 15 < len(shown) < 25
    assert "1000/1000 eta 0:00" in shown[-1]


def test_log_has_plain_lines(capsys, clock):
    log = Progress(100, "train", start=20, every=25)
    for done in range(21, 101):
        clock[0] += 1
        log.update(done, f"loss {done}")
    log.say("a table")
    log.close()
    assert capsys.readouterr().err == (
        "train 25/100 eta 1:15  loss 25\n"
        "train 50/100 eta 0:50  loss 50\n"
        "train 75/100 eta 0:25  loss 75\n"
        "train 100/100 eta 0:00  loss 100\n"
        "a table\n"
    )


def test_other_hosts_say_nothing(capsys):
    quiet = Progress(2, "train", every=1, enabled=False)
    quiet.say("a table")
    quiet.update(1, "loss 1")
    quiet.update(2)
    quiet.close()
    assert capsys.readouterr() == ("", "")


def test_training_notes_are_short():
    from mmx.train.metrics import brief

    values = {
        "accuracy": 0.25361, "codebook/usage": 0.5, "grad_norm/main": 1.19, "loss/l2": 0.3,
        "loss/total": 4.68412, "lr/main": 9e-4, "speed/examples_per_sec": 212.9,
        "speed/steps_per_sec": 13.306, "test/loss": 3.8734, "test/loss_mask_0_25": 3.88,
        "psnr": 21.0512,
    }  # fmt: skip
    assert brief(values) == (
        "accuracy 0.2536  loss 4.684  psnr 21.05  steps/s 13.31  test/loss 3.873"
    )
    assert not re.search(r"=|\n", brief(values))
