"""The search of meshes: what is tried, what a result rules out, what is kept."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from mmx.cli.main import main
from mmx.core.config import load_config
from mmx.nn.remat import REMAT
from mmx.train import search


def muse():
    return load_config("muse/base_3b")


def test_every_candidate_uses_all_chips_and_divides_the_batch():
    found = search.candidates(muse(), 64, batch_coupled=False)
    assert len(found) == len(set(found)) > 100
    for c in found:
        assert c.data * c.fsdp * c.tensor == 64
        assert 512 % (c.data * c.fsdp * c.accum) == 0
    assert {c.remat for c in found} == set(REMAT)
    # The simplest first: all chips on fsdp, nothing recomputed, the batch whole.
    assert found[0] == search.Candidate(1, 64, 1, "none", 1)
    # Two slices halve what a slice can divide.
    config = muse().copy_and_resolve_references()
    config.mesh.slice = 8
    assert max(c.accum for c in search.candidates(config, 64, False) if c.tensor == 1) == 1


def test_a_family_without_a_choice_is_not_asked_for_one():
    found = search.candidates(load_config("vqgan/muse256"), 16, batch_coupled=True)
    assert {(c.remat, c.accum) for c in found} == {(None, 1)}
    assert all("remat" not in flag for c in found for flag in c.overrides)


def test_no_setting_that_a_result_rules_out_could_be_better():
    """Against a model in which memory falls with recomputing and dividing, time rises with dividing
    and recomputing is the faster at times: the fastest setting that fits is found, whatever the
    limit, with fewer compiles."""
    found = search.candidates(muse(), 16, batch_coupled=False)
    order = tuple(reversed(REMAT))
    memory = lambda c: (10 - 2 * order.index(c.remat)) / c.accum + 8 / c.fsdp + 4 / c.tensor
    seconds = lambda c: (
        1 - 0.1 * (order.index(c.remat) - 1) ** 2 + 0.2 * c.accum + 0.3 * c.tensor + c.data / 99
    )
    for limit in (6, 8, 10, 12, 30):
        left, tried = list(found), []
        while left:
            one = left.pop(0)
            tried.append(one)
            left = [c for c in left if not search.rules_out(one, memory(one) <= limit, c)]
        fitting = [c for c in found if memory(c) <= limit]
        assert min(map(seconds, fitting)) == min(seconds(c) for c in tried if memory(c) <= limit)
        assert len(tried) < len(found)
    meshes = {(c.data, c.fsdp, c.tensor) for c in found}
    assert len(tried) == len(meshes) * len(REMAT)  # in plenty of memory none is divided


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """Stands for the processes that compile: notes them, says what is set here."""
    calls, answers = [], {"fits": lambda flags: True, "code": 0, "slow": False}

    def run(command, timeout, **kwargs):
        flags = dict(part[2:].split("=") for part in command if part.startswith("--config."))
        calls.append(flags)
        if answers["slow"]:
            raise subprocess.TimeoutExpired(command, timeout)
        fits = answers["fits"](flags)
        report = {
            "fits": fits,
            "memory": {"total": 2**30 * int(flags["config.mesh.fsdp"])},
            "compute_seconds": float(flags["config.mesh.data"]) if fits else None,
            "mfu_ceiling": 0.5 if fits else None,
            "collectives": {"all-reduce": {"count": 1, "bytes": 1e9, "overlapped_bytes": 0}},
        }
        error = "mmx: error: config.x=1: no" if answers["code"] == 2 else ""
        text = "" if error else json.dumps([report])
        return SimpleNamespace(returncode=answers["code"], stdout=text, stderr=error)

    monkeypatch.setattr("mmx.cli.preflight_search.subprocess.run", run)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return calls, answers


ARGV = ["preflight", "--config", "muse/openmoji32:tiny", "--topology", "v5e:2x2", "--search"]
ALL = len(search.candidates(load_config("muse/openmoji32:tiny"), 4, batch_coupled=False))


def test_the_best_is_printed_first_and_nothing_is_compiled_twice(compiler, capsys, tmp_path):
    calls, _ = compiler
    file = tmp_path / "found.json"
    assert main([*ARGV, "--json", str(file)]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert rows[1][:3] == ["mesh", "remat", "accum"] and rows[2][:3] == ["1x4x1", "none", "1"]
    assert {tuple(row[:3]) for row in rows[2:-1]} >= {
        ("4x1x1", "full", "1"),
        ("1x2x2", "dots", "1"),
    }
    seconds = [float(row[4]) for row in rows[2:-1]]
    assert seconds == sorted(seconds) and len(seconds) == len(calls)
    assert out.splitlines()[-1].startswith(
        "highest ceiling: --config.mesh.data=1 --config.mesh.fsdp=4 "
    )
    assert f"search {ALL}/{ALL} eta" in err and len(calls) < ALL  # what is ruled out counts as done
    assert len(json.loads(file.read_text())) == len(calls)
    first = len(calls)
    assert main(ARGV) == 0 and len(calls) == first  # all kept
    assert main([*ARGV, "--config.batch_size=8"]) == 0 and len(calls) > first  # of this config


def test_nothing_fits_is_exit_1(compiler, capsys):
    calls, answers = compiler
    answers["fits"] = lambda flags: False
    assert main(ARGV) == 1
    assert "nothing fits" in capsys.readouterr().out
    kinds = {(c["config.model.remat"], c["config.optim.accum"]) for c in calls}
    assert ("full", "1") in kinds  # what saves more was tried


def test_the_budget_ends_the_search(compiler, capsys):
    """Nothing found in time is no claim that nothing fits."""
    calls, answers = compiler
    answers["slow"] = True
    assert main([*ARGV, "--budget", "0.5"]) == 2
    out, err = capsys.readouterr()
    assert len(calls) == 1 and f"{ALL} settings not tried in --budget=0.5 minutes" in out
    assert "nothing that fits was found in 0.5 minutes" in err and "nothing fits" not in out
    assert main([*ARGV, "--budget", "0"]) == 2 and len(calls) == 1


def test_a_setting_that_cannot_be_is_said_and_left(compiler, capsys):
    """Each once, and the search goes on; that nothing fits is not known then."""
    calls, answers = compiler
    answers["code"] = 2
    assert main(ARGV) == 2
    out, err = capsys.readouterr()
    assert len(calls) == ALL and err.count("1x4x1 remat=none accum=1: config.x=1: no") == 1
    assert "nothing fits" not in out


def test_a_torn_record_is_compiled_anew(compiler, tmp_path):
    calls, _ = compiler
    assert main(ARGV) == 0
    first = len(calls)
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text("{")
    assert main(ARGV) == 0 and len(calls) == 2 * first


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sample"], "--sample: --search compiles the train step alone"),
        (["--config.mesh.slice=0"], "config.mesh.slice=0: name the number of slices"),
        (["--json", "/"], "--json=/: name a file"),
        (["--json", "gs://bucket/x.json"], "name a file in a folder of this machine"),
    ],
)
def test_what_cannot_be_is_said_before_anything_compiles(compiler, capsys, flags, message):
    calls, _ = compiler
    assert main([*ARGV, *flags]) == 2 and calls == []
    assert message in capsys.readouterr().err


def test_a_gpu_is_not_searched(capsys):
    assert main([*ARGV[:3], "--topology", "gpu", "--search"]) == 2
    assert "--search is for TPU slices and cpu:N" in capsys.readouterr().err
