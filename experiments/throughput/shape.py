"""The model that both sides build."""

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
