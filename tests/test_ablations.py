"""Ablations: a part that is set to zero has no say any more, the others have."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_cases import assert_close, make_grads, make_params, noisy_theta

from meta_opt.evaluation.ablations import ABLATIONS, AblationConfig, ablated, measure
from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.hand_designed import hand_designed
from meta_opt.optimizers.learned import learned_optimizer
from meta_opt.optimizers.weights import save_theta
from meta_opt.reporting.ablations import write_ablations
from meta_opt.tasks.families import make_task

CONFIG = ControllerConfig()
THETA = noisy_theta(CONFIG, scale=1.0)
STEPS = 6


def trajectory(tx, feedback):
    """Parameters after a few steps; feedback rises if it is given."""
    params = make_params()
    state = tx.init(params)
    step = jax.jit(lambda g, s, p, v, f: tx.update(g, s, p, value=v, feedback=f))
    for i, grads in enumerate(make_grads(params, STEPS)):
        told = jnp.float32(2.0 + i if feedback else jnp.nan)
        updates, state = step(grads, state, params, jnp.float32(3.0), told)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def learned(what, feedback=True, **told):
    theta = ablated(THETA, CONFIG, what)
    tx = learned_optimizer(STEPS, theta=theta, config=CONFIG, **told)
    return trajectory(tx, feedback)


def differ(a, b):
    return any(
        not np.allclose(x, y, rtol=1e-4)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_without_anything_it_is_the_hand_designed_rule():
    assert_close(learned(ABLATIONS[-1]), trajectory(hand_designed(STEPS), True))
    assert differ(learned("as shipped"), learned(ABLATIONS[-1]))


@pytest.mark.slow
def test_without_feedback_it_does_not_hear_it():
    assert_close(learned("without feedback"), learned("without feedback", False))
    assert differ(learned("as shipped"), learned("as shipped", False))


@pytest.mark.slow
def test_without_epochs_it_does_not_heed_them():
    name = "without epochs"
    assert_close(learned(name), learned(name, epochs=30.0))
    assert differ(learned("as shipped"), learned("as shipped", epochs=30.0))


def test_without_group_features_groups_change_nothing():
    groups = (("dense", "vision"),)
    name = "without group features"
    assert_close(learned(name), learned(name, groups=groups))
    assert differ(learned("as shipped"), learned("as shipped", groups=groups))


@pytest.mark.parametrize("what", ["without LSTMs", "step size only", "without mixture"])
def test_other_parts_are_zero_and_nothing_else(what):
    before, after = THETA["output"]["kernel"], ablated(THETA, CONFIG, what)
    kernel = np.asarray(after["output"]["kernel"])
    memory = CONFIG.tensor_hidden + CONFIG.global_hidden
    step = 4  # Behind the four directions.
    kept = np.zeros(before.shape, bool)
    if what == "without LSTMs":
        kept[memory:] = True
    elif what == "step size only":
        kept[:, step] = True
    else:
        kept[:, step:] = True
    np.testing.assert_array_equal(kernel, np.where(kept, before, 0.0))
    np.testing.assert_array_equal(after["tensor"]["kernel"], THETA["tensor"]["kernel"])


def test_an_unknown_part_is_an_error():
    with pytest.raises(ValueError, match="no ablation 'all'; there are as shipped"):
        ablated(THETA, CONFIG, "all")


def test_measures_all_parts_and_reports(tmp_path):
    save_theta(tmp_path / "noisy", THETA, CONFIG)
    path = str(tmp_path / "noisy.safetensors")
    config = AblationConfig(
        tasks=("digits_mlp",),
        weights=path,
        others={"again": path},
        budgets=(0.005,),
        seeds=(1, 2),
    )
    rows = measure(make_task("digits_mlp"), (2.0, 2.0), config)
    by_name = {row.name: row for row in rows}
    assert list(by_name) == [*ABLATIONS, "again"]
    assert by_name["again"].log_ratio == pytest.approx(by_name["as shipped"].log_ratio)
    first = by_name["as shipped"]
    assert first.log_ratio == pytest.approx(np.log(first.loss / 2.0))
    assert len({row.loss for row in rows}) > 4
    text = write_ablations(tmp_path, [vars(row) for row in rows], {"command": "none"})
    assert "without feedback" in text and f"{first.log_ratio:+.3f}" in text
    assert json.loads((tmp_path / "ablations.json").read_text())["rows"][0]["budget"]
    assert f"{first.log_ratio:+.3f}" in (tmp_path / "ablations.md").read_text()
