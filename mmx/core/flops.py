"""Model FLOPs of a function, from its jaxpr: the same on every backend, nothing is compiled.

XLA's own count knows neither how often a loop runs nor anything at all on some accelerators.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax


def matmul_flops(fn: Callable, *args: Any) -> float:
    """FLOPs of the matrix products and convolutions of ``fn(*args)``, two a multiply-add.

    Element-wise work does not count, as usual for MFU (arXiv 2204.02311 app. B). The body of a scan
    counts once a turn, of a cond the most expensive branch; padding counts as if it were data, but
    not the zeros that the gradient of a strided convolution puts between.

    Args:
      fn: traceable by JAX.
      args: arrays or ``jax.ShapeDtypeStruct``.

    Raises:
      ValueError: there is a product in a while loop, whose number of turns nobody knows.
    """
    return float(_count(jax.make_jaxpr(fn)(*args).jaxpr))


def _count(jaxpr) -> int:
    return sum(_count_one(equation) for equation in jaxpr.eqns)


def _count_one(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_channels = kernel[params["dimension_numbers"].rhs_spec[0]]
        taps = math.prod(kernel) // math.prod(params["lhs_dilation"])
        return 2 * equation.outvars[0].aval.size * taps // out_channels
    inner = [_count(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("a matrix product in a while loop: its turns cannot be counted")
    return sum(inner)


def _jaxprs(params: dict) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if hasattr(part, "eqns"):
                yield part
            elif hasattr(getattr(part, "jaxpr", None), "eqns"):
                yield part.jaxpr


def kernel_scope(flops: float) -> contextlib.AbstractContextManager:
    """Say what a Pallas kernel that is called inside costs, where no compiler can tell.

    Args:
      flops: of the matrix products of one forward call on one device, in the blocks that are live.
    """
    return jax.named_scope(f"kernel_flops_{round(flops)}")


def scoped_flops(op_name: str) -> float:
    """What :func:`kernel_scope` said around an operation.

    Raises:
      ValueError: nothing.
    """
    found = re.findall(r"kernel_flops_(\d+)", op_name)
    if not found:
        raise ValueError(f"{op_name}: a kernel whose caller states no FLOPs (kernel_scope)")
    return float(found[-1])
