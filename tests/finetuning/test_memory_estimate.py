"""Memory of a step from its trace: exact where that is known, near the compiler's."""

import itertools

import jax
import jax.numpy as jnp
import optax
import pytest

from meta_opt.finetuning.memory_estimate import estimate_memory, peak_live_bytes
from meta_opt.finetuning.planning import peak_bytes


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def peak(function, *args):
    return peak_live_bytes(jax.make_jaxpr(function)(*args).jaxpr)


def test_results_live_until_they_are_used_last():
    x = shape(1000)
    # One at a time beside the one that it is made of.
    assert peak(lambda x: jnp.sin(jnp.cos(jnp.sin(x))), x) == 2 * 4000
    # All three are kept for the sum.
    kept = peak(lambda x: (jnp.sin(x), jnp.cos(x), jnp.tan(x)), x)
    assert kept == 3 * 4000
    assert peak(lambda x: x, x) == 0
    # What is inside of a loop is there once.
    looped = peak(
        lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, None, length=9)[0], x
    )
    assert looped == 4000


@pytest.mark.parametrize("batch_size", [64, 1024])
def test_the_estimate_is_near_what_the_compiler_says(batch_size):
    widths = (64, 256, 256, 8)
    params = [shape(a, b) for a, b in itertools.pairwise(widths)]

    def loss_fn(params, frozen, batch, rng):
        x = batch
        for w in params:
            x = jax.nn.gelu(x @ w)
        return jnp.mean(x**2), {}

    tx, batch = optax.sgd(0.1, momentum=0.9), shape(batch_size, widths[0])
    found = estimate_memory(params, {}, loss_fn, tx, batch)
    assert found.parameters == found.gradients == found.optimizer
    assert found.parameters == 4 * (64 * 256 + 256 * 256 + 256 * 8)

    def step(params, opt_state, batch):
        grads = jax.grad(lambda p: loss_fn(p, {}, batch, None)[0])(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    state = jax.eval_shape(tx.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, batch)
    assert 0.5 < found.total / peak_bytes(compiled.compile()) < 2
