"""The Pallas kernel of what is measured, against numpy and against the plain path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import meta_opt
from meta_opt.optimizers import fused_sums as module
from meta_opt.optimizers.fused_sums import factored_sums
from meta_opt.parallel.mesh import MeshConfig, make_mesh


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel in place of XLA, run by the interpreter; counts its calls."""
    calls = []

    def kernel(grads, momentum):
        calls.append(grads.shape)
        return factored_sums(grads, momentum, interpret=True)

    # On a CPU `platform_dependent` takes the default.
    monkeypatch.setattr(module, "_by_xla", kernel)
    return calls


@pytest.mark.parametrize("shape", [(2, 256, 384), (1, 128, 1024), (3, 512, 128)])
@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16])
def test_the_kernel_sums_as_numpy_does(monkeypatch, shape, kind):
    # With blocks smaller than the matrix, so that several are summed.
    monkeypatch.setitem(module._SIDES, "tpu", (128, 128))
    monkeypatch.setattr(module, "_by_xla", None)  # It must not be what is tested.
    rng = np.random.default_rng(0)
    grads = jnp.asarray(rng.normal(size=shape), kind)
    momentum = jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
    found = factored_sums(grads, momentum, interpret=True)
    g, m = (np.asarray(x, np.float64) for x in (grads, momentum))
    np.testing.assert_allclose(found.row, np.mean(g * g, axis=2), rtol=1e-5)
    np.testing.assert_allclose(found.column, np.mean(g * g, axis=1), rtol=1e-5)
    expected = np.sum(g * m, axis=(1, 2))
    np.testing.assert_allclose(found.product, expected, rtol=1e-4, atol=1e-2)


def test_sides_that_no_block_divides_go_through_xla():
    grads = jnp.ones((1, 100, 384))
    found = factored_sums(grads, grads, interpret=True)
    assert found.row.shape == (1, 100) and float(found.product[0]) == 38400.0


def test_updates_are_those_without_the_kernel(interpreted):
    rng = np.random.default_rng(0)
    shapes = {"up": (128, 2, 256), "down": (512, 128), "small": (8, 4), "bias": (300,)}
    params, grads = (
        {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
        for _ in range(2)
    )
    found = []
    for pallas in (False, True):
        tx = meta_opt.learned_optimizer(10, pallas=pallas)
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(grads, state, params, value=1.0)
        found.append((updates, state))
    # The two large matrices, in every program that was traced.
    assert set(interpreted) == {(1, 256, 256), (1, 512, 128)}
    (plain, plain_state), (fused, fused_state) = found
    assert jax.tree.structure(plain_state) == jax.tree.structure(fused_state)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(fused), strict=True):
        # Orthogonalisation in bfloat16 makes more of a last bit.
        assert np.linalg.norm(a - b) <= 0.02 * np.linalg.norm(a)
    for a, b in zip(
        jax.tree.leaves(plain_state.second),
        jax.tree.leaves(fused_state.second),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_mesh_of_several_devices_is_an_error():
    params = {"kernel": jnp.ones((256, 256))}
    tx = meta_opt.learned_optimizer(10, pallas=True)
    mesh = make_mesh(MeshConfig(fsdp=8), jax.devices())
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match=r"pallas=True .* one device, .*'fsdp': 8"),
    ):
        jax.eval_shape(lambda s: tx.update(params, s, params), tx.init(params))


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 11), reason="JAX lowers Triton for a present GPU only"
)
def test_a_gpus_kernel_is_lowered_without_one():
    """To Triton; compiling that needs a GPU's plugin."""
    abstract = jax.ShapeDtypeStruct((2, 768, 3072), jnp.float32)
    traced = jax.jit(factored_sums).trace(abstract, abstract)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" in text and "factored_sums" in text
