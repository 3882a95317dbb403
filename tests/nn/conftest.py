"""Kernels of TPUs and GPUs on a CPU."""

import functools

import pytest
from jax.experimental import pallas
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels run here, step by step."""
    for module, name in ((splash_attention_kernel, "make_splash_mha"), (pallas, "pallas_call")):
        make = functools.partial(getattr(module, name), interpret=True)
        monkeypatch.setattr(module, name, make)
