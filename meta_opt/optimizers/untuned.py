"""Baselines that are run without tuning: one setting for all tasks, or none at all.

`CALIBRATED` are ordinary optimizers at the one setting that did best over the
meta-training families; `LEARNING_RATE_FREE` estimate their own step sizes and are run
at optax's defaults.
"""

import dataclasses
from collections.abc import Callable

import jax
import optax

from meta_opt.optimizers.baselines import baseline
from meta_opt.optimizers.schedules import warmup_cosine
from meta_opt.types import near_match


@dataclasses.dataclass(frozen=True)
class Setting:
    """Hyper-parameters of a calibrated baseline, the same on every task.

    Attributes:
        learning_rate: peak, after 5% of warm-up and before a cosine decay to zero.
        weight_decay: decoupled.
    """

    learning_rate: float
    weight_decay: float


CALIBRATED: dict[str, Setting] = {
    "adamw": Setting(2e-3, 0.1),
    "nadamw": Setting(3e-3, 0.1),
    "lion": Setting(1e-3, 1.0),
    "muon": Setting(5e-3, 0.1),
}
"""The best over the training families: ``python -m experiments.calibrate_baselines
--config configs/calibrate.py:families``; all that was tried is in
``results/calibrated_baselines.json``."""

LEARNING_RATE_FREE = (
    "prodigy",
    "schedule_free_adamw",
    "dog",
    "mechanic_adamw",
    "momo",
    "momo_adam",
)
"""Prodigy (Mishchenko & Defazio 2023, arXiv:2306.06101), Schedule-Free (Defazio et al.
2024, arXiv:2405.15682), DoG (Ivgi et al. 2023, arXiv:2302.12022), Mechanic (Cutkosky et
al. 2023, arXiv:2306.00144), MoMo and MoMo-Adam (Schaipp et al. 2023,
arXiv:2305.07583)."""

NEEDS_VALUE = ("momo", "momo_adam")
"""Those that cannot do without the loss as ``value``."""


def calibrated(
    name: str,
    num_steps: int | jax.Array,
    *,
    learning_rate: float | jax.Array | None = None,
    weight_decay: float | jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """One of `CALIBRATED`, with 5% of warm-up and cosine decay to zero.

    Args:
        name: a name in `CALIBRATED`.
        num_steps: length of the schedule; may be traced, as may the others.
        learning_rate: peak; None for the calibrated one.
        weight_decay: decoupled; None for the calibrated one.

    Returns:
        The transformation; extra keywords such as ``value`` are ignored.

    Raises:
        ValueError: an unknown name.
    """
    setting = CALIBRATED[_known(name, tuple(CALIBRATED))]
    rate = setting.learning_rate if learning_rate is None else learning_rate
    decay = setting.weight_decay if weight_decay is None else weight_decay
    if name == "nadamw":
        schedule = warmup_cosine(rate, num_steps, 0.05, decays=True)
        return optax.with_extra_args_support(optax.nadamw(schedule, weight_decay=decay))
    return baseline(name, num_steps, learning_rate=rate, weight_decay=decay)


def learning_rate_free(
    name: str, num_steps: int | jax.Array
) -> optax.GradientTransformationExtraArgs:
    """One of `LEARNING_RATE_FREE` at optax's defaults.

    Mechanic scales AdamW under a warm-up of 5% and cosine decay, peak 1.
    Schedule-Free is to be evaluated at `meta_opt.optimizers.baselines.averaged_params`.

    Args:
        name: a name in `LEARNING_RATE_FREE`; those in `NEEDS_VALUE` need ``value=loss``
            at every update.
        num_steps: length of the run, which only Mechanic's base asks for.

    Returns:
        The transformation; extra keywords are ignored.

    Raises:
        ValueError: an unknown name.
    """
    from optax import contrib

    rule: Callable[[], optax.GradientTransformation] = {
        "prodigy": contrib.prodigy,
        "schedule_free_adamw": contrib.schedule_free_adamw,
        "dog": contrib.dog,
        "mechanic_adamw": lambda: contrib.mechanize(
            optax.adamw(warmup_cosine(1.0, num_steps, 0.05, decays=True))
        ),
        "momo": contrib.momo,
        "momo_adam": contrib.momo_adam,
    }[_known(name, LEARNING_RATE_FREE)]
    return optax.with_extra_args_support(rule())


def _known(name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise ValueError(
            f"unknown untuned baseline {name!r}{near_match(name, names)}; available: "
            f"{', '.join(names)}"
        )
    return name
