"""The README's table: what each flagship config needs on its TPU slice, by preflight.

    python experiments/scale/flagships.py            # compiles all, minutes each; writes the table
    python experiments/scale/flagships.py muse/base_3b   # only that config's rows anew

Needs ``mmx[preflight]``. Results lie in ``flagships.json`` beside this file.
"""

import hashlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from mmx.core import config as configs

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
RESULTS = HERE / "flagships.json"
# (config, slice, size of the data axis; the rest of the slice is fsdp). Two on a square slice: over
# all of it at once libtpu sums gradients whole instead of scattering them.
ROWS = [
    ("muse/base_3b", "v5e:16x16", 2),
    ("muse/base_3b", "v4:8x8x8", 1),
    ("muse/base_632m", "v5e:4x4", 2),
    ("clip/vit_l14", "v5e:16x16", 16),
    ("transfusion/b7000", "v5p:4x4x4", 1),
    ("transfusion/b7000", "v5e:16x16", 1),
    ("spae/imagenet128", "v5e:8x8", 64),
]
BEGIN, END = "<!-- flagships: begin -->\n", "<!-- flagships: end -->\n"


# Fields that no train step depends on.
BESIDE = ("eval", "sample", "preview_prompts", "log_every", "eval_every", "preview_every",
          "save_every", "keep")  # fmt: skip


def digest(name: str) -> str:
    """Of what a config says of its train step: a result of another text is stale."""
    items = configs.flat_items(configs.load_config(name)).items()
    kept = [f"{field} = {value!r}" for field, value in items if field.split(".")[0] not in BESIDE]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def compile_row(name: str, topology: str, data: int) -> dict:
    """Run the command that a user types, and keep what the table shows."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = ["preflight", "--config", name, "--topology", topology, "--json", file.name]
        command += [f"--config.mesh.data={data}", "--config.mesh.fsdp=-1"]
        done = subprocess.run([sys.executable, "-m", "mmx.cli.main", *command], check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(f"mmx {' '.join(command)} -> {done.returncode}")
        report = json.loads(Path(file.name).read_text())[0]
    report["config"], report["digest"] = name, digest(name)
    report["versions"] = {n: importlib.metadata.version(n) for n in ("jax", "libtpu")}
    return report


def table(results: list[dict]) -> str:
    """The results as Markdown, in the order of ``ROWS``."""
    lines = [
        "| config | slice | data x fsdp | batch | memory/chip, GiB | compute, s/step "
        "| MFU ceiling | collectives/step and chip (share beside computation) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        moved = [
            f"{kind} {of['bytes'] / 1e9:.2f} GB ({of['overlapped_bytes'] / of['bytes']:.0%})"
            for kind, of in one["collectives"].items()
            if of["bytes"] > 1e7
        ]
        fits = "" if one["fits"] else " does not fit"
        batch = configs.load_config(one["config"]).batch_size
        lines.append(
            f"| `{one['config']}` | {one['topology']} "
            f"| {one['mesh']['data']} x {one['mesh']['fsdp']} | {batch} "
            f"| {one['memory']['total'] / 2**30:.1f} of {one['memory_limit'] / 2**30:.1f}{fits} "
            f"| {one['compute_seconds']:.3f} | {one['mfu_ceiling']:.0%} "
            f"| {', '.join(moved) or 'under 10 MB'} |"
        )
    versions = results[0]["versions"]
    lines += ["", f"jax {versions['jax']}, libtpu {versions['libtpu']}."]
    return "\n".join(lines) + "\n"


def shown(readme: str) -> str:
    """The table that a README's text has."""
    return readme.split(BEGIN)[1].split(END)[0]


def main(only: list[str]) -> None:
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    kept = {(one["config"], one["topology"], one["mesh"]["data"]): one for one in kept}
    for row in ROWS:
        if not only or row[0] in only:
            kept[row] = compile_row(*row)
            results = [kept[row] for row in ROWS if row in kept]
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    before, _, rest = README.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(before + BEGIN + table([kept[row] for row in ROWS]) + END + after)


if __name__ == "__main__":
    main(sys.argv[1:])
