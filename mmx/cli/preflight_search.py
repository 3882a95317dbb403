"""``mmx preflight --search``: each candidate compiled by a process of its own, results kept."""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

from mmx.cli import arguments
from mmx.core import config as configs
from mmx.core.errors import UserError
from mmx.core.progress import Progress

_MINUTES = 60.0  # ours: of a search
_OVER = "the budget is over"


def search(args, config, task, topology) -> int:
    """Try settings within ``args.budget`` minutes and print those that fit, the fastest first.

    Args:
      args: of the verb.
      config: resolved, without what the search sets.
      task: of shapes alone.
      topology: parsed.

    Returns:
      The exit code: 1 when all was tried and nothing fits.

    Raises:
      UserError: no setting was compiled, in the budget or at all.
    """
    from mmx.train import search as space

    if not topology.shape:  # this process would hold the memory that the others need
        raise UserError(f"--topology={topology.name}: --search is for TPU slices and cpu:N")
    chips = math.prod(topology.shape)
    left = space.candidates(config, chips, task.batch_coupled)
    if not left:
        raise UserError(
            f"config.batch_size={config.batch_size} divides over no mesh of {chips} devices"
        )
    minutes = _MINUTES if args.budget is None else args.budget
    total, ends = len(left), time.monotonic() + 60 * minutes
    progress = Progress(total, "search", every=1)
    found, too_large, fault = [], 0, ""
    try:
        while left and (seconds := ends - time.monotonic()) > 0:
            report = _report(args, left[0], topology, seconds)
            if report == _OVER:
                break
            candidate = left.pop(0)
            if isinstance(report, str):
                fault = f"{_name(candidate)}: {report}"
                progress.say(fault)
            else:
                fits = report["fits"] is not False
                left = [c for c in left if not space.rules_out(candidate, fits, c)]
                found += [(candidate, report)] * fits
                too_large += not fits
            progress.update(total - len(left), _name(candidate))
    finally:  # after Ctrl-C too: what is known took minutes each
        progress.close()
        if found:
            print(_table(found))
        if left:
            print(f"{len(left)} settings not tried in --budget={minutes:g} minutes")
    if args.json:
        rows = [{"overrides": candidate.overrides, **report} for candidate, report in found]
        arguments.write_json("--json", args.json, rows)
    if found:
        return 0
    if too_large and not left and not fault:
        print("nothing fits")
        return 1
    raise UserError(fault or f"--search: nothing that fits was found in {minutes:g} minutes")


def _report(args, candidate, topology, seconds: float):
    """The report of a candidate's train step; a line that says why there is none; ``_OVER``."""
    from mmx.cli.train import resolve

    overrides = [*args.overrides, *candidate.overrides]
    kept = _cache(resolve(args.config, overrides), topology)
    with contextlib.suppress(OSError, ValueError):  # none yet, or torn
        return json.loads(kept.read_text())
    command = [sys.executable, "-m", "mmx.cli.main", "preflight", "--config", args.config]
    command += ["--topology", topology.name, "--json", "-", *overrides]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return _OVER
    if done.returncode not in (0, 1) or not done.stdout:
        return (done.stderr.strip().splitlines() or ["no answer"])[-1].removeprefix("mmx: error: ")
    report = json.loads(done.stdout)[0]
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(report))
    temporary.replace(kept)
    return report


def _cache(config, topology) -> Path:
    """Where a result is kept: by config, topology, compilers and our own source."""
    digest = hashlib.sha256()
    for name in ("jax", "jaxlib", "libtpu"):
        try:
            digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
        except importlib.metadata.PackageNotFoundError:
            digest.update(f"{name}\n".encode())
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"):
        digest.update(f"{name} {os.environ.get(name, '')}\n".encode())
    package = Path(configs.__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        digest.update(file.read_bytes())
    digest.update(f"{topology.name}\n{configs.to_text(config)}".encode())
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "mmx", "preflight", digest.hexdigest()[:32] + ".json")


def _name(candidate) -> str:
    sizes = f"{candidate.data}x{candidate.fsdp}x{candidate.tensor}"
    remat = f" remat={candidate.remat}" if candidate.remat else ""
    return f"{sizes}{remat} accum={candidate.accum}"


def _table(found: list) -> str:
    rows = [("mesh", "remat", "accum", "GiB/device", "compute s", "MFU ceiling", "moved GB/device")]
    by_speed = lambda pair: pair[1]["compute_seconds"] or 0.0
    for candidate, report in sorted(found, key=by_speed):
        moved = sum(of["bytes"] for of in report["collectives"].values())
        rows.append(
            (
                f"{candidate.data}x{candidate.fsdp}x{candidate.tensor}",
                candidate.remat or "-",
                str(candidate.accum),
                f"{report['memory']['total'] / 2**30:.2f}",
                f"{report['compute_seconds']:.3f}" if report["compute_seconds"] else "-",
                f"{report['mfu_ceiling']:.1%}" if report["mfu_ceiling"] else "-",
                f"{moved / 1e9:.2f}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    best = min(found, key=by_speed)[0]
    return "\n".join(
        ["mesh: data x fsdp x tensor", *lines, "highest ceiling: " + " ".join(best.overrides)]
    )
