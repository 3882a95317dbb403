"""Counting FLOPs: matrix products and convolutions by hand, loops by their turns."""

import jax
import jax.numpy as jnp
import pytest

from mmx.core.flops import matmul_flops


def of(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_product_is_two_a_multiply_add():
    assert matmul_flops(lambda a, b: jnp.tanh(a @ b), of(3, 5), of(5, 7)) == 2 * 3 * 5 * 7
    einsum = lambda a, b: jnp.einsum("bqhd,bkhd->bhqk", a, b)
    assert matmul_flops(einsum, of(2, 3, 4, 5), of(2, 7, 4, 5)) == 2 * 2 * 4 * 3 * 7 * 5


@pytest.mark.parametrize(("stride", "side"), [(1, 8), (2, 4)])
def test_a_convolution_is_a_product_at_every_place(stride, side):
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    args = of(2, 8, 8, 6), of(3, 3, 6, 10)
    forward = 2 * (2 * side * side) * (3 * 3 * 6) * 10
    assert matmul_flops(conv, *args) == forward
    # To the image and to the kernel, whatever the stride.
    gradient = jax.grad(lambda x, kernel: jnp.square(conv(x, kernel)).sum(), (0, 1))
    assert matmul_flops(gradient, *args) == 3 * forward


def test_loops_count_by_their_turns_and_choices_by_the_dearer():
    def scanned(x, w):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(jax.jit(jnp.dot))(x, w), None), x, None, 9)

    assert matmul_flops(scanned, of(4, 4), of(4, 4)) == 9 * 2 * 4**3
    either = lambda x: jax.lax.cond(x.sum() > 0, lambda: x @ x @ x, lambda: x @ x)
    assert matmul_flops(either, of(4, 4)) == 2 * 2 * 4**3
    unknown = lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x @ x, x)
    with pytest.raises(ValueError, match="while loop"):
        matmul_flops(unknown, of(4, 4))


def test_a_gradient_costs_twice_the_forward_pass_more():
    def loss(w, x):
        return jnp.square(jnp.tanh(x @ w[0]) @ w[1]).sum()

    args = ([of(8, 8), of(8, 8)], of(2, 8))
    forward = matmul_flops(loss, *args)
    # All but the gradient to the first layer's input.
    assert matmul_flops(jax.value_and_grad(loss), *args) == 3 * forward - 2 * 2 * 8 * 8
