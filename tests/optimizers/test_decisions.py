"""What the controller decided, as it is read from an optimizer's state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import meta_opt
from meta_opt.features.tensors import GROUPS
from meta_opt.optimizers.decisions import DECISIONS, read_decisions

PARAMS = {
    "vision": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)},
    "head": {"kernel": jnp.ones((4, 2))},
}


def after(tx, steps=3):
    state = tx.init(PARAMS)
    for step in range(steps):
        grads = jax.tree.map(lambda p, s=step: (1.0 + s) * jnp.ones_like(p), PARAMS)
        _, state = tx.update(grads, state, PARAMS, value=1.0 / (1 + step))
    return state


def test_of_the_hand_designed_rule_they_are_its_constants():
    found = read_decisions(after(meta_opt.hand_designed(10)))
    assert {name.split("/")[0] for name in found} == {"vision", "head"}
    assert len(found) == 2 * len(DECISIONS)
    assert found["head/orthogonal"] == 1.0 and found["head/adam"] == 0.0
    # A kernel, orthogonalised, and a bias, by Adam.
    assert found["vision/orthogonal"] == found["vision/adam"] == 0.5
    assert found["vision/step"] == found["head/step"] == pytest.approx(1.0)


def test_of_the_learned_optimizer_they_change_and_bound_the_update():
    tx = meta_opt.learned_optimizer(10, safeguard=False)
    one, two = (read_decisions(after(tx, n)) for n in (1, 4))
    assert one != two
    assert two["vision/step"] > 0 and 0 < two["head/one_minus_b1"] < 1


def test_they_are_found_in_wrapped_states_and_of_others_there_are_none():
    tx = optax.chain(optax.clip_by_global_norm(1.0), meta_opt.hand_designed(10))
    assert read_decisions(tx.init(PARAMS))["head/step"] == pytest.approx(1.0)
    assert read_decisions(optax.adam(1e-3).init(PARAMS)) == {}
    state = meta_opt.hand_designed(10).init(PARAMS)
    assert state.decisions.shape == (len(GROUPS), len(DECISIONS))
    absent = [g not in ("vision", "head") for g in GROUPS]
    assert (np.asarray(state.decisions)[absent] == 0).all()
    assert {name.partition("/")[0] for name in read_decisions(state)} == {
        *("vision", "head")
    }
