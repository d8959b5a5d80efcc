"""Hand-designed baselines from optax with common settings.

The learned optimizer is compared with SGD, Adam, AdamW, RMSProp and Lion
(`CORE_BASELINES`), and with three newer ones: Muon, schedule-free AdamW and Prodigy
(`EXTRA_BASELINES`). Default learning rates are common starting points.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from meta_opt.optimizers.arguments import check_num_steps
from meta_opt.optimizers.group_rates import AVERAGING
from meta_opt.optimizers.schedules import (
    ScheduleConfig,
    reduce_on_plateau,
    warmup_cosine,
)
from meta_opt.types import PyTree, near_match

CORE_BASELINES = ("sgd", "adam", "adamw", "rmsprop", "lion")
EXTRA_BASELINES = ("muon", "schedule_free_adamw", "prodigy")

DEFAULT_LEARNING_RATE = {
    "sgd": 1e-2,
    "adam": 1e-3,
    "adamw": 1e-3,
    "rmsprop": 1e-3,
    "lion": 1e-4,
    "muon": 2e-3,
    "schedule_free_adamw": 2.5e-3,
    "prodigy": 1.0,
}

_MUON_RMS = 0.2
"""RMS of Muon's update of a matrix at learning rate 1: about AdamW's, so that one
learning rate suits matrices and other tensors (Liu et al. 2025, arXiv:2502.16982)."""


def baseline(
    name: str,
    num_steps: int | jax.Array,
    *,
    learning_rate: float | jax.Array | None = None,
    weight_decay: float | jax.Array = 0.0,
    momentum: float | jax.Array = 0.9,
    warmup_fraction: float | jax.Array = 0.05,
    schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
) -> optax.GradientTransformationExtraArgs:
    """Builds a baseline.

    All arguments but ``name`` and ``schedule`` may be traced, so that a step is
    compiled once for all settings and lengths. Linear warm-up, and by default cosine
    decay to zero; schedule-free AdamW stays at the peak, and is to be evaluated at
    `averaged_params`.

    Args:
        name: a name in `CORE_BASELINES` or `EXTRA_BASELINES`.
        num_steps: length of the schedule.
        learning_rate: peak learning rate; None for the default. For Prodigy, a multiple
            of its own estimate.
        weight_decay: added to the gradient for sgd, adam and rmsprop; decoupled for the
            others, for muon on matrices only.
        momentum: momentum of SGD, RMSProp and Muon, weight of the average in
            schedule-free AdamW's interpolation, first decay rate of the others.
        warmup_fraction: share of the run with linear warm-up.
        schedule: schedule of the learning rate after the warm-up.

    Returns:
        The transformation, which ignores extra keywords such as ``value``, except that
        the schedule ``plateau`` uses ``feedback``.

    Raises:
        ValueError: an unknown name, ``num_steps`` below 1, or the schedule ``plateau``
            for one whose updates are not proportional to its learning rate.
        TypeError: ``num_steps`` that is not an integer.
    """
    check_num_steps(num_steps)
    if name not in DEFAULT_LEARNING_RATE:
        raise ValueError(
            f"unknown baseline {name!r}{near_match(name, DEFAULT_LEARNING_RATE)}; "
            f"available: {', '.join(DEFAULT_LEARNING_RATE)}"
        )
    peak = DEFAULT_LEARNING_RATE[name] if learning_rate is None else learning_rate
    if schedule.name == "plateau" and name in AVERAGING:
        raise ValueError(
            f"schedule.name='plateau': updates of {name!r} are not proportional to the "
            "learning rate; use another schedule"
        )
    decays = schedule.name == "cosine" and name != "schedule_free_adamw"
    rate = warmup_cosine(
        peak, num_steps, warmup_fraction, decays, schedule.final_fraction
    )
    rule: Callable[[], optax.GradientTransformation] = {
        "sgd": lambda: optax.sgd(rate, momentum=momentum),
        "adam": lambda: optax.adam(rate, b1=momentum),
        "adamw": lambda: optax.adamw(rate, b1=momentum, weight_decay=weight_decay),
        "rmsprop": lambda: optax.rmsprop(rate, momentum=momentum),
        "lion": lambda: optax.lion(rate, b1=momentum, weight_decay=weight_decay),
        "muon": lambda: optax.contrib.muon(
            rate,
            beta=momentum,
            adam_b1=momentum,
            weight_decay=weight_decay,
            consistent_rms=_MUON_RMS,
        ),
        "schedule_free_adamw": lambda: optax.contrib.schedule_free_adamw(
            rate, b1=momentum, weight_decay=weight_decay
        ),
        "prodigy": lambda: optax.contrib.prodigy(
            rate,
            betas=(momentum, 0.999),
            weight_decay=weight_decay,
            safeguard_warmup=True,
        ),
    }[name]
    tx = rule()
    if name in ("sgd", "adam", "rmsprop"):
        tx = optax.chain(optax.add_decayed_weights(weight_decay), tx)
    if schedule.name == "plateau":
        tx = optax.chain(tx, reduce_on_plateau(schedule))
    tx = optax.with_extra_args_support(tx)
    if name == "prodigy":
        # Its state contains the parameters themselves, which then could not be donated.
        init = tx.init
        return tx._replace(init=lambda params: init(jax.tree.map(jnp.copy, params)))
    return tx


def averaged_params(state: optax.OptState, params: PyTree) -> PyTree:
    """The parameters to evaluate or ship: schedule-free averages, else ``params``.

    Args:
        state: state of any optimizer, not wrapped.
        params: the parameters that it trains.
    """
    if isinstance(state, optax.contrib.ScheduleFreeState):
        return optax.contrib.schedule_free_eval_params(state, params)
    return params
