"""Ablations: a part that is set to zero has no say any more, the others have."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_cases import assert_close, make_grads, make_params, noisy_theta

from meta_opt.features.statistics import TENSOR_FEATURES
from meta_opt.optimizers.controller import FEATURES, OUTPUTS, ControllerConfig
from meta_opt.optimizers.hand_designed import hand_designed
from meta_opt.optimizers.learned import learned_optimizer
from meta_opt.optimizers.weights import save_theta
from meta_opt.studies.ablations.measure import (
    ABLATIONS,
    FEATURE_GROUPS,
    AblationConfig,
    ablated,
    measure,
)
from meta_opt.studies.ablations.report import write_ablations
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


def learned(what, feedback=True):
    theta, config = ablated(THETA, CONFIG, what)
    tx = learned_optimizer(STEPS, theta=theta, config=config)
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


def test_groups_have_every_feature_but_the_constant_once():
    found = [feature for group in FEATURE_GROUPS.values() for feature in group]
    assert len(set(found)) == len(found)
    assert set(FEATURES) - set(found) == {"constant"} and set(found) <= set(FEATURES)


@pytest.mark.parametrize("group", FEATURE_GROUPS)
def test_without_a_group_its_features_have_no_weight_and_the_others_theirs(group):
    theta, config = ablated(THETA, CONFIG, f"without {group}")
    assert config == CONFIG
    unseen = np.isin(FEATURES, FEATURE_GROUPS[group])
    memory = CONFIG.tensor_hidden + CONFIG.global_hidden
    tensors = len(TENSOR_FEATURES)
    for lstm, start, gone in (
        ("output", memory, unseen),
        ("tensor", 0, unseen[:tensors]),
        ("global", 0, unseen[tensors:]),
    ):
        before, after = (np.array(x[lstm]["kernel"]) for x in (THETA, theta))
        before[start : start + len(gone)][gone] = 0.0
        np.testing.assert_array_equal(after, before)


def test_without_the_orthogonalised_direction_matrices_take_adams():
    theta, config = ablated(THETA, CONFIG, "without orthogonalised direction")
    assert theta is THETA and config == dataclasses.replace(CONFIG, orthogonal=False)


@pytest.mark.parametrize(
    "what", ["without recurrence", "step size only", "without mixture"]
)
def test_other_parts_are_zero_and_nothing_else(what):
    before = THETA["output"]["kernel"]
    after, _ = ablated(THETA, CONFIG, what)
    kernel = np.asarray(after["output"]["kernel"])
    memory = CONFIG.tensor_hidden + CONFIG.global_hidden
    step = OUTPUTS.index("step")  # Behind the directions.
    kept = np.zeros(before.shape, bool)
    if what == "without recurrence":
        kept[memory:] = True
    elif what == "step size only":
        kept[:, step] = True
    else:
        kept[:, step:] = True
    np.testing.assert_array_equal(kernel, np.where(kept, before, 0.0))
    np.testing.assert_array_equal(after["tensor"]["kernel"], THETA["tensor"]["kernel"])


def test_an_unknown_part_is_an_error():
    with pytest.raises(ValueError, match="unknown ablation 'all'; available: as"):
        ablated(THETA, CONFIG, "all")


@pytest.mark.slow
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
