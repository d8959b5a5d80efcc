"""Clipped gradients and learning rates by group."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.tuning.injected import injected

PARAMS = {"head": {"kernel": jnp.ones(3)}, "stage": {"kernel": jnp.full(4, 2.0)}}
GRADS = {"head": {"kernel": jnp.full(3, 30.0)}, "stage": {"kernel": jnp.full(4, 40.0)}}
FACTORS = (("^head/", 10.0),)


def updates(make, grads=GRADS, steps=3, **changes):
    tx = make(
        OptimizerConfig("adamw", 10, learning_rate=1e-2, weight_decay=0.1, **changes)
    )
    state, params = tx.init(PARAMS), PARAMS
    for _ in range(steps):
        found, state = tx.update(grads, state, params, value=jnp.float32(1))
    return found


@pytest.mark.parametrize("make", [make_optimizer, injected])
def test_a_factor_is_a_group_with_another_learning_rate(make):
    found, plain = updates(make, rate_factors=FACTORS), updates(make)
    # Decoupled weight decay is scaled with the rate, as in PyTorch's groups.
    np.testing.assert_allclose(
        found["head"]["kernel"], 10 * plain["head"]["kernel"], rtol=1e-6
    )
    np.testing.assert_array_equal(found["stage"]["kernel"], plain["stage"]["kernel"])


@pytest.mark.parametrize("make", [make_optimizer, injected])
def test_gradients_are_clipped_by_their_global_norm(make):
    norm = float(optax.tree.norm(GRADS))
    small = jax.tree.map(lambda g: g / norm, GRADS)

    def sgd(grads, clip_norm):
        config = OptimizerConfig("sgd", 10, learning_rate=1.0, clip_norm=clip_norm)
        tx = make(config)
        return tx.update(grads, tx.init(PARAMS), PARAMS)[0]

    found, expected = sgd(GRADS, 1.0), sgd(small, 0.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected
    )


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("adam", {"clip_norm": -1.0}, "clip_norm=-1.0 must be"),
        ("adam", {"rate_factors": (("a", 0.0),)}, "must be above 0"),
        ("prodigy", {"rate_factors": FACTORS}, "are not proportional"),
        ("learned", {"rate_factors": FACTORS}, "sets clipping and the step"),
        ("hand_designed", {"clip_norm": 1.0}, "sets clipping and the step"),
    ],
)
def test_errors(name, changes, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(OptimizerConfig(name, 10, **changes))


def test_an_expression_that_finds_nothing_is_an_error():
    tx = make_optimizer(OptimizerConfig("adam", 10, rate_factors=(("^hed/", 2.0),)))
    with pytest.raises(ValueError, match="finds none of the parameters"):
        tx.init(PARAMS)
