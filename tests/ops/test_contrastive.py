"""Both losses in both forms on meshes beside the plain ones in numpy, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmx.core.partition import MESH_AXES, RULES
from mmx.ops import contrastive
from mmx.ops.contrastive import contrastive_loss

B, D = 16, 5
# slice, data, fsdp, tensor: rows over 8, over 8 in three axes, over 4 with a tensor axis of 2.
MESHES = [(1, 8, 1, 1), (2, 2, 2, 1), (2, 1, 2, 2)]
KINDS = ["softmax", "sigmoid"]


def mesh_of(*sizes):
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)


def pairs(seed=0, count=B):
    rng = np.random.default_rng(seed)
    image, text = (rng.normal(size=(count, D)) for _ in range(2))
    return (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))


def by_hand(kind, image, text, log_scale, bias):
    """arXiv 2103.00020 fig. 3 and arXiv 2303.15343 eq. 1, one pair at a time."""
    z, total = np.exp(log_scale) * image @ text.T + bias, 0.0
    for i in range(len(z)):
        if kind == "softmax":
            total += np.log(np.exp(z[i]).sum()) / 2 + np.log(np.exp(z[:, i]).sum()) / 2 - z[i, i]
            continue
        for j in range(len(z)):
            sign = 1 if i == j else -1
            total += np.log(1 + np.exp(-sign * z[i, j]))
    return total / len(z)


def on_mesh(kind, form, sizes, *args):
    """(value, gradients by image, text, log scale, bias), rows spread over the mesh."""
    mesh = mesh_of(*sizes)
    rows = NamedSharding(mesh, PartitionSpec(RULES["act_batch"]))
    fn = jax.value_and_grad(lambda *a: contrastive_loss(kind, form, *a), argnums=(0, 1, 2, 3))
    with jax.set_mesh(mesh):
        image, text = jax.device_put(args[:2], rows)
        return jax.jit(fn)(image, text, *args[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_loss_is_the_papers(kind):
    with jax.enable_x64(True):
        image, text = pairs()
        got = contrastive_loss(kind, "gather", image, text, jnp.float64(1.3), -0.7)
        np.testing.assert_allclose(got, by_hand(kind, image, text, 1.3, -0.7), rtol=1e-13)


@pytest.mark.parametrize("form", contrastive.FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_on_a_mesh_are_those_of_one_device(kind, form):
    """B15, B17: not scaled by the number of devices, whatever it is, and none is cut off."""
    with jax.enable_x64(True):
        args = (*pairs(), jnp.float64(1.7), jnp.float64(-0.4))
        fn = jax.value_and_grad(contrastive.WHOLE[kind], argnums=(0, 1, 2, 3))
        want = jax.tree.leaves(fn(*args))
        for sizes in MESHES:
            got = jax.tree.leaves(on_mesh(kind, form, sizes, *args))
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-12, err_msg=str(sizes))


def test_negatives_are_of_the_global_batch_and_shards_may_change_places():
    """B16: ln of the global batch where all logits are equal. B18: labels know whose rows."""
    same = np.ones((64, D)) / D**0.5
    image, text = (x.astype(np.float32) for x in pairs())
    order = np.roll(np.arange(B), B // 4)  # whole shards
    for form in contrastive.FORMS:
        loss = lambda *a, form=form: on_mesh("softmax", form, (1, 4, 1, 1), *a)[0]
        assert float(loss(same, same, jnp.float32(2.0), jnp.float32(0))) == pytest.approx(
            np.log(64), abs=1e-5
        )
        args = jnp.float32(2.0), jnp.float32(0.0)
        moved = loss(image[order], text[order], *args)
        assert float(moved) == pytest.approx(float(loss(image, text, *args)), abs=1e-5)
        assert abs(float(loss(image[order], text, *args)) - float(moved)) > 0.1


def test_sigmoid_starts_where_the_paper_starts():
    """Orthogonal embeddings, t = ln 10, b = -10: softplus(10) + (B - 1) softplus(-10), and b = 0:
    B ln 2 (why b is -10). The sum is over B, not B^2 (B37)."""
    zeros = lambda count: np.zeros((count, D), np.float32)
    t = jnp.log(jnp.float32(10))
    softplus = lambda x: np.log1p(np.exp(x))
    for count, known in ((64, 10.003), (256, 10.012)):
        got = float(contrastive_loss("sigmoid", "ring", zeros(count), zeros(count), t, -10.0))
        assert got == pytest.approx(known, abs=1e-3)
        assert got == pytest.approx(softplus(10) + (count - 1) * softplus(-10), rel=1e-5)
    assert softplus(10) + 32767 * softplus(-10) == pytest.approx(11.488, abs=1e-3)
    flat = contrastive_loss("sigmoid", "ring", zeros(256), zeros(256), t, 0.0)
    assert float(flat) == pytest.approx(256 * np.log(2), rel=1e-5)


def test_the_ring_holds_one_block_at_a_time():
    """Its temporaries, value and gradient, are under half of the gather's, and no matrix of the
    gather's shape is in the program."""
    mesh, count = mesh_of(1, 8, 1, 1), 2048
    rows = NamedSharding(mesh, PartitionSpec(RULES["act_batch"]))
    x = jax.ShapeDtypeStruct((count, 16), jnp.float32, sharding=rows)
    t = jax.ShapeDtypeStruct((), jnp.float32)
    for kind in KINDS:
        temporaries = {}
        for form in contrastive.FORMS:
            fn = jax.value_and_grad(
                lambda *a, kind=kind, form=form: contrastive_loss(kind, form, *a), argnums=(0, 1)
            )
            with jax.set_mesh(mesh):
                compiled = jax.jit(fn).lower(x, x, t, t).compile()
            temporaries[form] = compiled.memory_analysis().temp_size_in_bytes
            block = f"f32[{count // 8},{count}]"
            assert (block in compiled.as_text()) == (form == "gather"), (kind, form)
        assert temporaries["ring"] < temporaries["gather"] / 2, (kind, temporaries)


def test_rows_of_length_one():
    x = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(contrastive.unit(x), [[0.6, 0.8], [0, 0]], atol=1e-7)
    grad = jax.grad(lambda x: contrastive.unit(x).sum())(x)
    assert np.isfinite(grad).all()
    assert contrastive.unit(x.astype(jnp.bfloat16)).dtype == jnp.float32
