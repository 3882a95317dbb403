"""A TPU kernel on a CPU."""

import functools

import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel runs here, step by step."""
    make = splash_attention_kernel.make_splash_mha
    monkeypatch.setattr(
        splash_attention_kernel, "make_splash_mha", functools.partial(make, interpret=True)
    )
