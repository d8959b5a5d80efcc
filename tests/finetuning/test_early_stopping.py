"""Runs that end where a named validation metric no longer improves."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_opt.data.array_batches import array_batches
from meta_opt.finetuning.early_stopping import EarlyStopping
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.trial import Trial
from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.workloads.workload import Workload

LOOP = LoopConfig(20, 4, eval_every=2, progress=False)
SCORES = (0.2, 0.5, 0.4, 0.5, 0.3, 0.9)


@dataclasses.dataclass(frozen=True)
class Counting:
    """One weight that grows by the learning rate in each step; scores are given."""

    def build(self, seed=0, mesh=None, export=None):
        data = {"x": np.zeros((8, 1), np.float32)}
        scores = iter(SCORES)

        def loss_fn(params, frozen, batch, rng):
            return -params["w"] + jnp.sum(batch["x"]), {}

        def evaluate(params, frozen, split):
            if split == "test":
                return {"w": float(params["w"])}
            if float(params["w"]) == 0:
                return {"loss": 9.0, "score": 1.0}
            return {"loss": -float(params["w"]), "score": next(scores)}

        return Workload(
            params={"w": jnp.float32(0)},
            loss_fn=loss_fn,
            train_batches=lambda size, seed=0, rows=None: array_batches(
                data, size, seed, rows
            ),
            evaluate=evaluate,
        )


def trial(stopping, loop=LOOP, **changes):
    base = RunConfig(Counting(), loop, OptimizerConfig("adam", loop.num_steps))
    return Trial(
        base, lambda config: optax.sgd(1.0), early_stopping=stopping, **changes
    )


def run(*args, report=None, loop=None, **changes):
    found = trial(*args, **changes)
    return found(OptimizerConfig("adam", LOOP.num_steps), report=report, loop=loop)


BY_SCORE = EarlyStopping("score", "max", patience=3)


@pytest.mark.parametrize("checked_first", [False, True])
def test_a_run_stops_and_is_tested_where_it_was_best(checked_first):
    # With another best_metric the loop evaluates before the first step, which counts
    # neither as an evaluation of the trial nor for stopping.
    metric = {"best_metric": "score", "best_mode": "max"} if checked_first else {}
    reports = []
    found = run(
        BY_SCORE,
        dataclasses.replace(LOOP, **metric),
        metric="score",
        report=lambda step, value: reports.append((step, value)),
    )
    # Equal to the best is not better.
    assert [e.step for e in found.evaluations] == [2, 4, 6, 8, 10]
    assert reports == list(zip((2, 4, 6, 8, 10), SCORES, strict=False))
    assert found.test == {"w": 4.0}


def test_without_early_stopping_the_last_parameters_are_tested():
    loop = dataclasses.replace(LOOP, eval_every=4, batch_size=8)
    found = run(None, loop=loop)
    assert [e.step for e in found.evaluations] == [4, 8, 12, 16, 20]
    assert found.test == {"w": 20.0}


def test_a_metric_that_is_not_finite_is_never_best():
    stopping = EarlyStopping("score", "max", patience=2)
    nan = float("nan")
    assert stopping.best([nan, 0.1, nan, 0.3]) == 3
    assert stopping.best([nan, nan]) == 0
    assert stopping.stops([0.1, nan, nan]) and not stopping.stops([nan, nan, 0.1])


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="no metric 'scor'; did you mean 'score'"):
        run(EarlyStopping("scor", "max"))
    with pytest.raises(ValueError, match="no metric 'f1'"):
        run(None, metric="f1", report=lambda step, value: None)
    with pytest.raises(ValueError, match="patience=0 must be at least 1"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match="mode='most' must be one of min, max"):
        EarlyStopping(mode="most")
