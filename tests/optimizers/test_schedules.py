"""Learning-rate schedules of the baselines."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.optimizers.schedules import ScheduleConfig
from meta_opt.tuning.injected import injected

PARAMS = {"w": jnp.ones(2)}
GRADS = {"w": jnp.full(2, -1.0)}
STEPS = 10


def rates(make, schedule, metrics=None, rate=0.1, warmup=0.0):
    """The learning rate of each step: SGD's update of a gradient of -1."""
    config = OptimizerConfig(
        "sgd",
        STEPS,
        learning_rate=rate,
        momentum=0.0,
        warmup_fraction=warmup,
        clip_norm=10.0,
        rate_factors=(("w", 2.0),),
        schedule=schedule,
    )
    tx = make(config)
    state, found = tx.init(PARAMS), []
    step = jax.jit(lambda s, f: tx.update(GRADS, s, PARAMS, value=1.0, feedback=f))
    for i in range(STEPS):
        feedback = math.nan if metrics is None else metrics[i]
        updates, state = step(state, jnp.float32(feedback))
        found.append(float(updates["w"][0]) / 2)
    return found, step.lower(state, jnp.float32(0)).as_text()


both = pytest.mark.parametrize("make", [make_optimizer, injected])


@both
def test_cosine_falls_to_its_floor(make):
    found, _ = rates(make, ScheduleConfig("cosine", final_fraction=0.01), warmup=0.2)
    falling = [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    expected = [0.05, 0.1, *(0.1 * (0.01 + 0.99 * x) for x in falling)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@both
def test_constant_is_at_the_peak_from_the_first_step(make):
    found, _ = rates(make, ScheduleConfig("constant"))
    np.testing.assert_allclose(found, [0.1] * STEPS, rtol=1e-6)


def torch_plateau(metrics, factor, patience):
    """The rates of PyTorch's ReduceLROnPlateau(mode="max"), as its manual defines."""
    best, bad, rate, found = -math.inf, 0, 0.1, []
    for metric in metrics:
        if math.isfinite(metric):
            bad = 0 if metric > best * (1 + 1e-4) else bad + 1
            best = max(best, metric)
            if bad > patience:
                rate, bad = rate * factor, 0
        found.append(rate)
    return found


@both
@pytest.mark.parametrize("patience", [0, 1])
def test_plateau_is_that_of_pytorch(make, patience):
    nan = math.nan
    metrics = [0.5, 0.6, 0.6, nan, 0.55, nan, 0.7, 0.7, 0.2, 0.65]
    schedule = ScheduleConfig("plateau", factor=0.1, patience=patience)
    found, program = rates(make, schedule, metrics)
    expected = torch_plateau(metrics, 0.1, patience)
    assert len(set(expected)) > 2 - (patience > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    down = ScheduleConfig("plateau", factor=0.1, patience=patience, mode="min")
    losses = [-metric for metric in metrics]
    np.testing.assert_allclose(rates(make, down, losses)[0], expected, rtol=1e-5)
    if make is injected:
        assert rates(make, schedule, rate=0.3)[1] == program


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ({"mode": "top"}, "schedule.mode='top' must be one of min, max"),
        ({"final_fraction": 1.5}, "final_fraction=1.5 must be 0 to 1"),
        ({"factor": 1.0}, "factor=1.0 must be between 0 and 1"),
        ({"patience": -1}, "patience=-1 must be at least 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ScheduleConfig(**settings)


def test_what_does_not_go_together():
    plateau = ScheduleConfig("plateau")
    for name in ("learned", "hand_designed"):
        with pytest.raises(ValueError, match="has its own schedule"):
            make_optimizer(OptimizerConfig(name, STEPS, schedule=plateau))
    with pytest.raises(ValueError, match="'prodigy' are not proportional"):
        make_optimizer(OptimizerConfig("prodigy", STEPS, schedule=plateau))
    optimizer = OptimizerConfig("adam", STEPS, schedule=plateau)
    tx = make_optimizer(optimizer)
    with pytest.raises(ValueError, match=r"set loop\.feedback"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, value=1.0)
    with pytest.raises(ValueError, match=r"set loop\.feedback=True"):
        RunConfig(None, LoopConfig(STEPS, 4), optimizer)
    with pytest.raises(ValueError, match=r"'max' and loop\.best_mode='min' differ"):
        RunConfig(None, LoopConfig(STEPS, 4, feedback=True), optimizer)
