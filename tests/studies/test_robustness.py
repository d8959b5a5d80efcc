"""Adverse conditions do what they say, and the report counts what happened."""

import dataclasses
import importlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import safeguard
from meta_opt.studies.robustness.measure import (
    CONTENDERS,
    FALLBACK,
    GUARDED,
    RobustnessConfig,
    RunOutcome,
    compare,
    measure,
)
from meta_opt.studies.robustness.report import write_robustness_report
from meta_opt.tasks.families import SPLIT_OF_DATASET
from meta_opt.tasks.inner_run import InnerRun
from meta_opt.tasks.perturbations import CONDITIONS, Condition, Moment, largest
from meta_opt.tasks.task import Splits, Task
from meta_opt.types import from_config

GRADS = {"bias": jnp.arange(1.0, 5.0), "kernel": jnp.full((200, 3), 1 / 3)}
PARAMS = {"bias": jnp.ones(4), "kernel": jnp.full((200, 3), 2.0)}
START = jax.tree.map(jnp.zeros_like, PARAMS)


@jax.jit
def signals(condition):
    """Loss and gradient of the 100 steps of a run."""

    def one(step):
        key = jax.random.fold_in(jax.random.key(0), step)
        moment = Moment(step, 100, key)
        return condition.signal(START, moment, jnp.float32(2.3), GRADS, PARAMS)

    return jax.lax.map(one, jnp.arange(100))


def signals_of(condition):
    """All conditions through one program: they are numbers."""
    return signals(jax.tree.map(jnp.float32, condition))


def test_an_ordinary_run_is_not_disturbed():
    value, grads = signals_of(CONDITIONS["ordinary"])
    np.testing.assert_array_equal(value, np.full(100, 2.3, np.float32))
    for name, g in GRADS.items():
        np.testing.assert_array_equal(grads[name], np.tile(g, (100, *[1] * g.ndim)))


def test_nan_and_spikes_come_at_random_steps():
    value, grads = signals_of(Condition(broken=0.2))
    broken = np.isnan(value)
    assert 10 <= broken.sum() <= 30
    for g in grads.values():
        bad = np.isnan(np.asarray(g).reshape(100, -1))
        np.testing.assert_array_equal(bad.all(1), broken)
        np.testing.assert_array_equal(bad.any(1), broken)
    value, grads = signals_of(Condition(spikes=0.2))
    spiked = np.asarray(value) > 1e5
    assert 10 <= spiked.sum() <= 30 and (spiked != broken).any()
    factor = np.where(spiked, 1e6, 1.0)
    np.testing.assert_allclose(value, 2.3 * factor, rtol=1e-6)
    np.testing.assert_allclose(grads["bias"][:, 0], factor, rtol=1e-6)


def test_scale_constant_and_coarse():
    value, grads = signals_of(CONDITIONS["loss x 1e-6"])
    np.testing.assert_allclose(value, 2.3e-6, rtol=1e-5)
    np.testing.assert_allclose(grads["bias"][7], 1e-6 * GRADS["bias"], rtol=1e-5)
    value, grads = signals_of(CONDITIONS["constant loss"])
    assert (np.asarray(value) == 1.0).all()
    assert not any(np.any(g) for g in grads.values())
    value, grads = signals_of(CONDITIONS["bfloat16 gradients"])
    rounded = jnp.bfloat16(1 / 3).astype(jnp.float32)
    assert (np.asarray(grads["kernel"]) == rounded).all() and rounded != 1 / 3
    assert value[0] == jnp.bfloat16(2.3).astype(jnp.float32)


def test_sparse_gradients_have_few_rows():
    _, grads = signals_of(CONDITIONS["sparse gradients"])
    kernel = np.asarray(grads["kernel"]) != 0
    np.testing.assert_array_equal(kernel.all(-1), kernel.any(-1))
    assert abs(kernel.mean() - 0.05) < 0.01
    # Others in each step.
    assert (kernel[0] != kernel[1]).any()


def test_curvature_grows_where_parameters_moved():
    value, grads = signals_of(Condition(curvature=1e6))
    extra = np.asarray(grads["kernel"]) - 1 / 3
    curved = extra[-1, :, 0] > 1
    assert 0.03 < curved.mean() < 0.2
    h = 1e-2 * 1e8 ** (np.arange(100) / 100)
    np.testing.assert_allclose(extra[:, curved][:, 0, 0], 2.0 * h, rtol=1e-3)
    assert not extra[:, ~curved].any()
    # The loss is the integral of the gradient.
    rows = np.concatenate([extra.reshape(100, -1) / h[:, None]], axis=1)
    bias = (np.asarray(grads["bias"]) - np.asarray(GRADS["bias"])) / h[:, None]
    square = (rows**2).sum(1) + (bias**2).sum(1)
    np.testing.assert_allclose(value - 2.3, 0.5 * h * square, rtol=2e-3)


def test_the_change_moves_classes_and_tokens_until_it_comes():
    batch = {
        "label": jnp.array([0, 1, 2]),
        "text": jnp.array([[3, 1, 0]]),
        "image": jnp.ones((1, 2)),
    }
    classes = largest(batch)
    assert set(classes) == {"label", "text"}

    def at(step):
        moment = Moment(jnp.int32(step), 10, jax.random.key(0))
        return CONDITIONS["change of the data"].batch(batch, classes, moment)

    assert at(4)["label"].tolist() == [1, 2, 0]
    assert at(4)["text"].tolist() == [[1, 2, 0]]
    assert at(5)["label"].tolist() == [0, 1, 2]
    assert at(5)["text"].tolist() == [[3, 1, 0]]
    assert at(0)["image"].tolist() == [[1.0, 1.0]]


def test_the_optimizer_is_given_the_wrong_length():
    steps = {name: int(c.horizon(90)) for name, c in CONDITIONS.items()}
    assert steps["ordinary"] == steps["10 x longer"] == 90
    assert steps["num_steps 3 x too long"] == 270
    assert steps["num_steps 3 x too short"] == 30
    assert int(Condition(horizon_factor=0.1).horizon(1)) == 1


# Runs


def line_task():
    """Least squares on a line; NaN gradients reach the parameters of plain SGD."""
    x = jnp.linspace(-1.0, 1.0, 24)
    arrays = [{"x": x[i::3], "y": 2 * x[i::3]} for i in range(3)]

    def loss(params, arrays):
        error = jnp.mean((params["w"][0] * arrays["x"] - arrays["y"]) ** 2)
        return error, error

    return Task(
        name="line",
        dataset="line",
        init=lambda key: {"w": jax.random.normal(key, (1,))},
        loss=loss,
        splits=Splits(*arrays),
        batch_size=4,
        horizons=(10, 20),
    )


def test_one_program_serves_all_conditions():
    seen = []

    def make(num_steps, settings):
        # Steps of SGD while it believes that the run goes on.
        def update(grads, state, params=None, **extra):
            rate = jnp.where(state < num_steps, 0.2, 0.0)
            return jax.tree.map(lambda g: -rate * g, grads), state + 1

        seen.append(num_steps)
        return optax.GradientTransformationExtraArgs(lambda p: jnp.int32(0), update)

    run = InnerRun(line_task(), make, seeds_at_once=2)
    found = {
        name: run([0, 1], 20, {}, condition)[0].validation_loss
        for name, condition in CONDITIONS.items()
    }
    start = run([0, 1], 0, {}, Condition())[0].validation_loss
    broken = run([0, 1], 20, {}, Condition(broken=0.5))[0].validation_loss
    assert len(seen) == 1 and np.isnan(broken).all()
    np.testing.assert_array_equal(found["constant loss"], start)
    assert (found["ordinary"] < 0.1 * start).all()
    assert (found["num_steps 3 x too short"] > found["ordinary"]).all()
    # Batches and initial parameters are those of a run without condition.
    plain = InnerRun(line_task(), make, seeds_at_once=2)([0, 1], 20, {})[0]
    np.testing.assert_allclose(plain.validation_loss, found["ordinary"], rtol=1e-5)


def outcome(task, condition, contender, *loss, start=1.0):
    return RunOutcome(task, condition, contender, 10, (start,) * len(loss), loss)


def test_failures_and_ratios():
    assert outcome("t", "c", GUARDED, 1.04, 1.06, math.inf, 0.5).failures == 2
    assert outcome("t", "c", GUARDED, math.nan).failures == 1
    losses = {
        ("a", "ordinary"): (0.6, 0.5),
        ("b", "ordinary"): (0.5, 0.5),
        ("a", "bad"): (0.6, 0.5),
        ("b", "bad"): (2.0, 0.5),
    }
    outcomes = [
        outcome(task, condition, contender, ours if contender == GUARDED else theirs)
        for (task, condition), (ours, theirs) in losses.items()
        for contender in CONTENDERS
    ]
    (ordinary, bad), by_task = compare(outcomes)
    assert ordinary.worse == 1 and ordinary.over_ordinary == pytest.approx(1.0)
    assert bad.failures == {e: int(e == GUARDED) for e in CONTENDERS} and bad.runs == 2
    assert bad.worst_task == "b" and bad.worst_ratio == 4.0 and bad.worse == 2
    assert bad.over_ordinary == pytest.approx(2.0)
    ratios = {(r.task, r.condition): (r.ratio, r.over_ordinary) for r in by_task}
    assert ratios["a", "bad"] == pytest.approx((1.2, 1.0))
    gone = [
        dataclasses.replace(e, loss=(math.inf,))
        if (e.condition, e.contender) == ("bad", GUARDED)
        else e
        for e in outcomes
    ]
    assert compare(gone)[0][1].worst_ratio == math.inf
    both = [dataclasses.replace(e, loss=(math.inf,)) for e in outcomes]
    assert compare(both)[0][1].failures[FALLBACK] == 2


def test_the_report_is_json_without_infinities(tmp_path):
    outcomes = [
        outcome("a", c, e, math.inf if (c, e) == ("bad", GUARDED) else 0.5)
        for c in ("ordinary", "bad")
        for e in CONTENDERS
    ]
    rows, by_task = compare(outcomes)
    text = write_robustness_report(
        tmp_path,
        rows=[dataclasses.asdict(r) for r in rows],
        by_task=[dataclasses.asdict(r) for r in by_task],
        outcomes=[dataclasses.asdict(e) for e in outcomes],
        facts={"weights": "none"},
    )
    assert "failed" in text
    found = json.loads((tmp_path / "safeguard.json").read_text())
    assert found["conditions"][1]["worst_ratio"] is None
    assert "| bad | 1 | 0 | 0 | 0 |" in (tmp_path / "safeguard.md").read_text()


# The experiment


def config_of(variant):
    return from_config(
        RobustnessConfig, safeguard.get_config(variant).to_dict()["robustness"]
    )


def test_configs_build_and_keep_to_meta_training_data():
    for variant in ("robustness", "smoke"):
        config = config_of(variant)
        of = {SPLIT_OF_DATASET[name.split("_")[0]] for name in config.tasks}
        assert of == {"train"}
    for wrong, why in (
        ({"tasks": ()}, "at least one"),
        ({"conditions": ("ordinari",)}, "did you mean 'ordinary'"),
        ({"conditions": ("loss x 1e6",)}, "lack 'ordinary'"),
        ({"num_steps": {"other": 3}}, "not among the tasks"),
    ):
        with pytest.raises(ValueError, match=why):
            RobustnessConfig(**{"tasks": ("digits_mlp",), "weights": "any", **wrong})


def test_measure_yields_every_outcome(monkeypatch):
    from meta_opt.studies.robustness import measure as robustness

    def cheap(contender, task, weights):
        return (lambda n, _: optax.sgd(0.1)), {}

    monkeypatch.setattr(robustness, "_optimizer", cheap)
    config = RobustnessConfig(("line",), "none", ("ordinary", "10 x longer"))
    outcomes = list(measure(line_task(), config))
    assert [(e.contender, e.condition) for e in outcomes] == [
        (e, c) for e in CONTENDERS for c in ("ordinary", "10 x longer")
    ]
    assert [e.num_steps for e in outcomes[:2]] == [20, 200]
    assert all(len(e.loss) == 3 and e.failures == 0 for e in outcomes)


@pytest.mark.slow
def test_smoke_shows_what_the_guard_is_for(tmp_path):
    config = config_of("smoke")
    experiment = importlib.import_module("experiments.safeguard")
    text = experiment.measure_and_report(config, None, tmp_path)
    assert "NaN in 5% of steps" in text
    found = json.loads((tmp_path / "safeguard.json").read_text())
    failures = {row["condition"]: row["failures"] for row in found["conditions"]}
    broken = failures["NaN in 5% of steps"]
    assert [broken[e] for e in CONTENDERS] == [0, 2, 0, 2]
    assert not any(failures["constant loss"].values())
