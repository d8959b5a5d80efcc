"""A run keeps to its time, ends early, and gives its best parameters back."""

import dataclasses
import time

import jax.numpy as jnp
import numpy as np
import pytest

from meta_opt.data.array_batches import array_batches
from meta_opt.predictor.call_record import CallRecord
from meta_opt.predictor.fitting import Clock, FitCall
from meta_opt.predictor.plan import TrainingPlan, loop_of
from meta_opt.predictor.presets import Preset
from meta_opt.predictor.time_limit import fit_optimizer
from meta_opt.predictor.training import train
from meta_opt.workloads.workload import Workload

PRESET = Preset(20, (20, 2000), 32, 8, 1.0, evaluations=20, patience=100, early=0.0)
TWICE = dataclasses.replace(PRESET, patience=3, early=0.4)


class VirtualTime:
    """Seconds that pass only where something is said to take them."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Slow:
    """Batches that each take some seconds, more of them from some batch on."""

    def __init__(self, batches, clock, seconds, slower_from):
        self._batches, self._clock = batches, clock
        self._seconds, self._slower_from, self._count = seconds, slower_from, 0

    def __next__(self):
        self._count += 1
        slower = 3.0 if self._count > self._slower_from else 1.0
        self._clock.now += slower * self._seconds
        return next(self._batches)

    def __getattr__(self, name):
        return getattr(self._batches, name)


def workload(
    clock, seconds=0.1, evaluation=0.5, losses=None, slower_from=10**9, compiling=0.0
):
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    data = {"x": x, "y": x @ np.float32([1.0, -2.0])}
    shown = iter(losses or ())
    once = iter([compiling])

    def loss_fn(params, frozen, batch, rng):
        return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2), {}

    def evaluate(params, frozen, split):
        clock.now += evaluation + next(once, 0.0)
        loss = float(loss_fn(params, frozen, data, None)[0])
        return {"loss": next(shown, loss)}

    def batches(batch_size, seed=0, rows=None):
        found = array_batches(data, batch_size, seed, rows)
        return Slow(found, clock, seconds, slower_from)

    return Workload(
        {"w": jnp.zeros(2)},
        loss_fn,
        batches,
        evaluate=evaluate,
        describe=lambda: {"examples": {"train": 64}},
    )


@pytest.fixture
def clock(monkeypatch):
    found = VirtualTime()
    monkeypatch.setattr(time, "perf_counter", found)
    return found


def run(made, steps, limit, preset=PRESET):
    plan = TrainingPlan(loop_of(steps, 8, preset, 0), "loss", "min")
    return train(made, plan, FitCall(preset, Clock(limit), progress=False))


def history(trained, name):
    return [record for record in trained.result.history if name in record]


def decided(trained):
    return {one.name: one for one in trained.decisions}


def test_a_long_plan_takes_its_time_and_no_more(clock):
    trained = run(workload(clock), 2000, 100.0)
    assert 90 <= clock.now <= 100
    steps = decided(trained)["num_steps_in_time"]
    # 0.1 seconds a step, and a fifth of that for what else there is.
    assert 700 < steps.value < 900
    assert "a step takes 100 ms, an evaluation 500 ms" in steps.reason
    assert int(trained.result.state.step) == steps.value
    # The schedule is of this length, not of that of the steps that were timed.
    norms = [r["train/update_norm"] for r in history(trained, "train/update_norm")]
    assert min(norms[: len(norms) // 2]) > 0
    losses = [r["validation/loss"] for r in history(trained, "validation/loss")]
    assert trained.validation["loss"] < 0.5 * losses[0]


def test_infinite_time_is_no_limit(clock):
    trained = run(workload(clock), 30, float("inf"))
    assert "num_steps_in_time" not in decided(trained)
    assert int(trained.result.state.step) == 30


def test_a_plan_that_fits_is_not_made_longer(clock):
    trained = run(workload(clock), 40, 100.0)
    assert clock.now < 30 and int(trained.result.state.step) == 40


@pytest.mark.slow
def test_a_machine_that_becomes_slower_is_noticed(clock):
    trained = run(workload(clock, slower_from=100), 2000, 100.0)
    assert clock.now <= 110
    assert "of 100.0 s are spent" in decided(trained)["stopped_at"].reason


def test_what_compiling_took_is_not_expected_again(clock):
    trained = run(workload(clock, compiling=70.0), 2000, 100.0)
    assert "stopped_at" not in decided(trained)
    assert 90 <= clock.now <= 100 and int(trained.result.state.step) > 100


@pytest.mark.parametrize("limit", [2.0, 0.0])
def test_too_little_time_is_an_error(clock, limit):
    with pytest.raises(ValueError, match=f"time_limit={limit:g} s is too short"):
        run(workload(clock), 2000, limit)


def test_less_than_one_pass_is_said(clock):
    trained = run(workload(clock, seconds=1.0, evaluation=0.01), 200, 40.0)
    # 8 batches a pass; 20 steps at least.
    assert "passes over 64 samples" in decided(trained)["num_steps_in_time"].reason


def test_the_best_parameters_come_back_and_the_run_ends_early(clock):
    preset = dataclasses.replace(PRESET, patience=3)
    # The first is that before the first step.
    losses = [9.0, 5.0, 1.0, 2.0, 3.0, 4.0, 0.5]
    trained = run(workload(clock, losses=losses), 100, None, preset)
    assert int(trained.result.state.step) == 25  # Evaluation 5, of every 5 steps.
    assert trained.validation == {"loss": 1.0}
    assert decided(trained)["best_step"].value == 10
    at_the_end = np.asarray(trained.result.state.params["w"])
    assert np.abs(at_the_end - trained.params["w"]).max() > 1e-4


FIRST = [9.0, 5.0, 1.0, 2.0, 3.0, 4.0]
"""Losses of a run of 100 steps, best at step 10, that ends at step 25."""


def test_a_run_that_was_too_long_is_followed_by_a_shorter_one(clock):
    second = [9.0, 5.0, 0.5, 2.0, 3.0, 4.0]
    trained = run(workload(clock, losses=FIRST + second), 100, None, TWICE)
    decision = decided(trained)["second_run"]
    assert decision.value == 20  # Evaluated at every step.
    assert decision.reason == (
        "validation was best at step 10 of 100, where steps are still large; a run of "
        "20 from the same start has loss 0.5, the first 1: the second is taken"
    )
    assert trained.validation == {"loss": 0.5}
    assert decided(trained)["best_step"].value == trained.best_step == 2
    assert int(trained.result.state.step) == 5
    # It is a run of its own and not a continuation.
    (first_rate, *_) = history(trained, "train/update_norm")
    assert first_rate["step"] == 1


def test_the_first_run_is_kept_where_the_second_is_worse(clock):
    losses = [*FIRST, *(9.0, 5.0, 1.5, 2.0, 3.0, 4.0)]
    trained = run(workload(clock, losses=losses), 100, None, TWICE)
    assert "the first is taken" in decided(trained)["second_run"].reason
    assert trained.validation == {"loss": 1.0} and trained.best_step == 10
    assert decided(trained)["stopped_at"].value == 25
    (norm, *_) = history(trained, "train/update_norm")
    assert norm["step"] == 5


@pytest.mark.parametrize(
    "losses",
    [
        [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 1.5, 2.0, 3.0],  # Step 40 of 100.
        [1.0, 2.0, 3.0, 4.0],  # No step is better than the start.
    ],
)
def test_no_second_run(clock, losses):
    preset = dataclasses.replace(TWICE, early=0.39)
    trained = run(workload(clock, losses=losses), 100, None, preset)
    assert "second_run" not in decided(trained)


def test_no_second_run_without_time_for_it(clock):
    preset = dataclasses.replace(TWICE, patience=100)
    made = workload(clock, losses=[9.0] * 2 + [9.0, 5.0, 1.0] + [2.0] * 40)
    trained = run(made, 2000, 100.0, preset)
    assert "second_run" not in decided(trained) and clock.now <= 100


def test_an_interrupted_second_run_is_resumed(tmp_path):
    class Stopped(Exception):
        pass

    def overfitting(stop_at):
        """The target of validation lies on the way to that of training."""
        made = workload(VirtualTime())
        calls = []

        def evaluate(params, frozen, split):
            calls.append(split)
            if len(calls) == stop_at:
                raise Stopped
            error = params["w"] - np.float32([0.1, -0.2])
            return {"loss": float(jnp.sum(error**2))}

        return dataclasses.replace(made, evaluate=evaluate), calls

    def call(made, folder):
        plan = TrainingPlan(loop_of(400, 8, TWICE, 0), "loss", "min")
        record = CallRecord(folder, {}, {})
        limits = FitCall(TWICE, Clock(), folder / "run", progress=False, record=record)
        return train(made, plan, limits)

    made, calls = overfitting(0)
    whole = call(made, tmp_path / "whole")
    assert "second_run" in decided(whole) and len(calls) > 12
    folder = tmp_path / "broken"
    made, _ = overfitting(len(calls) - 1)
    with pytest.raises(Stopped):
        call(made, folder)
    assert (folder / "run" / "second").is_dir()
    resumed = call(overfitting(0)[0], folder)
    assert resumed.decisions == whole.decisions
    np.testing.assert_array_equal(resumed.params["w"], whole.params["w"])
    assert history(resumed, "train/loss") == history(whole, "train/loss")


def test_the_weights_are_those_of_the_preset():
    params = {"w": jnp.ones(3)}
    for weights in ("lstm-v3", "lstm-v4"):
        fit_optimizer(10, params, weights).init(params)
    with pytest.raises(ValueError, match="no weights 'lstm-v0'"):
        fit_optimizer(10, params, "lstm-v0").init(params)
