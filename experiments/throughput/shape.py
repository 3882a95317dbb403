"""The model that both sides build, and a small one that shows in seconds that all runs."""

from types import SimpleNamespace

SHAPE = SimpleNamespace(
    depth=8,
    width=512,
    heads=8,
    grid=16,
    vocab=8192,
    text=32,
    batch=4,
    sample_steps=18,
    guidance=3.0,
)
TINY = {"depth": 1, "width": 64, "heads": 2, "grid": 8, "vocab": 512, "sample_steps": 3}
