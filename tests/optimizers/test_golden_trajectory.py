"""Thirty steps of each of our optimizers, pinned: a refactoring changes no number.

The numbers are in ``tests/golden/optimizer/trajectory.npz``. Where the optimizer is
meant to change,

    PYTHONPATH=.:tests/fixtures python tests/optimizers/test_golden_trajectory.py

renews them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import paths
import pytest

import meta_opt
from meta_opt.tree_paths import leaves_by_path

EXPECTED = paths.GOLDEN / "optimizer" / "trajectory.npz"
RULES = {
    "learned": meta_opt.learned_optimizer,
    "hand_designed": meta_opt.hand_designed,
}
STEPS = 30
KEPT = (1, 10, 30)
"""Steps after which the parameters are compared."""
STACKED = "^layers/"


def start():
    """Matrices, vectors, a scalar, layers stacked as for a scan, a bfloat16 leaf."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "embed": normal(8, 6) / 3,
        "layers": {"kernel": normal(3, 6, 6) / 3, "scale": jnp.ones((3, 6))},
        "head": {"kernel": normal(6, 4).astype(jnp.bfloat16), "bias": jnp.zeros(4)},
        "temperature": jnp.float32(1.0),
    }


def loss_fn(params, x, y):
    hidden = x @ params["embed"]
    for kernel, scale in zip(*params["layers"].values(), strict=True):
        hidden = hidden + scale[None] * jnp.tanh(hidden @ kernel)
    head = params["head"]["kernel"].astype(jnp.float32)
    logits = params["temperature"] * (hidden @ head + params["head"]["bias"][None])
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def trajectory(rule):
    """Losses, and parameters and momenta after the steps in `KEPT`, by path.

    One step has a loss that is not finite, and one in ten a validation loss.
    """
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(STEPS, 16, 8)), jnp.float32)
    y = jnp.argmax(x[..., :4], axis=-1)
    params = start()
    tx = RULES[rule](STEPS, stacked=STACKED)
    state = tx.init(params)

    @jax.jit
    def step(params, state, x, y, feedback, broken):
        value, grads = jax.value_and_grad(loss_fn)(params, x, y)
        updates, state = tx.update(
            grads,
            state,
            params,
            value=jnp.where(broken, jnp.inf, value),
            feedback=feedback,
        )
        return optax.apply_updates(params, updates), state, value

    found, losses = {}, []
    for t in range(STEPS):
        feedback = jnp.float32(1.5 - 0.01 * t if t % 10 == 5 else jnp.nan)
        params, state, value = step(params, state, x[t], y[t], feedback, t == 12)
        losses.append(value)
        if t + 1 in KEPT:
            for name, tree in (("params", params), ("momentum", state.momentum)):
                for key, leaf in leaves_by_path(tree).items():
                    found[f"{rule}/{t + 1}/{name}/{key}"] = np.asarray(leaf, np.float32)
    found[f"{rule}/losses"] = np.asarray(losses, np.float32)
    return found


@pytest.mark.filterwarnings("ignore:.* parameters in .* tensors are")
@pytest.mark.parametrize("rule", RULES)
def test_thirty_steps_are_the_golden_ones(rule):
    golden = {k: v for k, v in np.load(EXPECTED).items() if k.startswith(f"{rule}/")}
    found = trajectory(rule)
    assert sorted(found) == sorted(golden)
    for name, expected in golden.items():
        # Compilers sum in other orders, and an element of the bfloat16 momentum that
        # rounds the other way is 2**-8 of itself away.
        coarse = "/momentum/" in name or "params/head/kernel" in name
        rtol, atol = (2**-7, 1e-4) if coarse else (1e-4, 1e-5)
        np.testing.assert_allclose(found[name], expected, rtol, atol, err_msg=name)
    moved = found[f"{rule}/{STEPS}/params/embed"] - np.asarray(start()["embed"])
    assert np.abs(moved).min() > 1e-5  # Every element has been somewhere.


if __name__ == "__main__":
    EXPECTED.parent.mkdir(exist_ok=True)
    np.savez(EXPECTED, **{k: v for rule in RULES for k, v in trajectory(rule).items()})
