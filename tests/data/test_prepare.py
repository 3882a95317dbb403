"""``mmx prepare`` as a user calls it."""

import time

from PIL import Image


def test_openmoji_again_is_instant_and_says_so(mmx, data_dir):
    done = mmx("prepare", "openmoji", "--data_dir", data_dir)
    assert "tfds:openmoji/32: already prepared in" in done.stdout
    assert "train 1718, train_toned 1343, test 350, heldout_composition 157" in done.stdout
    assert "OpenMoji, CC BY-SA 4.0" in done.stdout


def test_folder(mmx, tmp_path):
    for i in range(4):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"number {i}")
    (tmp_path / "bad.png").write_bytes(b"")
    call = ("prepare", "folder", tmp_path, "--name", "mine", "--data_dir", tmp_path / "data")
    refused = mmx(*call, check=False)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "--skip-bad" in refused.stderr.splitlines()[-1]
    done = mmx(*call, "--skip-bad", "--test-share", "0", "--size", "8")
    assert "tfds:mine: prepared in" in done.stdout and "  train 4\n" in done.stdout


def test_help_is_fast_and_has_examples(mmx):
    began = time.monotonic()
    shown = mmx("prepare", "--help").stdout
    assert "mmx prepare openmoji" in shown and "--skip-bad" in shown
    assert time.monotonic() - began < 10  # a second on an idle machine: nothing heavy is imported
