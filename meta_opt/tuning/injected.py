"""Optimizers whose settings live in the state: one compiled step for all trials."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from meta_opt.optimizers.baselines import DEFAULT_LEARNING_RATE, baseline
from meta_opt.optimizers.group_rates import with_group_rates
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer


def injected_baseline(
    config: OptimizerConfig,
) -> optax.GradientTransformationExtraArgs:
    """Returns the baseline that ``config`` names, with its settings as traced values.

    Learning rate, weight decay, momentum and warm-up are arrays of the optimizer's
    state and not constants of the program, so that the step of every trial is the same
    program, which JAX's persistent compilation cache finds again. Updates equal those
    of `meta_opt.optimizers.registry.make_optimizer` to rounding.

    Args:
        config: configuration of a baseline. Length and schedule remain constants.

    Raises:
        ValueError: if ``config`` is not of a baseline.
    """
    if config.name not in DEFAULT_LEARNING_RATE:
        raise ValueError(
            f"{config.name!r} is not a baseline; those are "
            f"{', '.join(DEFAULT_LEARNING_RATE)}"
        )
    peak = config.learning_rate
    make = optax.inject_hyperparams(
        baseline, static_args=("name", "num_steps", "schedule")
    )
    tx = optax.with_extra_args_support(
        make(
            name=config.name,
            num_steps=config.num_steps,
            learning_rate=DEFAULT_LEARNING_RATE[config.name] if peak is None else peak,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            warmup_fraction=config.warmup_fraction,
            schedule=config.schedule,
        )
    )
    return with_group_rates(tx, config.name, config.clip_norm, config.rate_factors)


def injected_learned(
    config: OptimizerConfig,
) -> optax.GradientTransformationExtraArgs:
    """The learned optimizer with its length as a value of the state.

    The step of runs of any length is the same program.

    Args:
        config: configuration of the learned optimizer.

    Raises:
        ValueError: if ``config`` is not of the learned optimizer.
    """
    if config.name != "learned":
        raise ValueError(f"name={config.name!r} must be 'learned'")

    def make(num_steps: jax.Array) -> optax.GradientTransformationExtraArgs:
        steps: Any = jnp.round(num_steps).astype(jnp.int32)
        return make_optimizer(dataclasses.replace(config, num_steps=steps))

    return optax.inject_hyperparams(make)(num_steps=float(config.num_steps))


def injected(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """`injected_learned` or `injected_baseline`, by the optimizer's name."""
    return (injected_learned if config.name == "learned" else injected_baseline)(config)
