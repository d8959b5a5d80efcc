"""All optimizers by name, with one config."""

import dataclasses
import math

import optax

from meta_opt.optimizers.baselines import DEFAULT_LEARNING_RATE, baseline
from meta_opt.optimizers.group_rates import with_group_rates
from meta_opt.optimizers.hand_designed import hand_designed
from meta_opt.optimizers.learned import learned_optimizer
from meta_opt.optimizers.schedules import ScheduleConfig
from meta_opt.optimizers.weights import DEFAULT
from meta_opt.types import near_match

NAMES = (*DEFAULT_LEARNING_RATE, "hand_designed", "learned")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Name and settings of an optimizer.

    Attributes:
        name: one of `NAMES`.
        num_steps: length of the run.
        learning_rate: peak learning rate of a baseline; None for its default.
        weight_decay: of a baseline.
        momentum: of a baseline (first decay rate of Adam, AdamW and Lion).
        warmup_fraction: of a baseline.
        schedule: of a baseline's learning rate after the warm-up.
        clip_norm: of a baseline: global norm to which gradients are clipped; 0 for no
            clipping.
        rate_factors: of a baseline: (regular expression, factor) pairs; the learning
            rate of a parameter is multiplied by the factor of the first expression that
            matches its path.
        weights: of the learned optimizer: a shipped name or a path.
        stacked: of the learned optimizer and the hand-designed rule: regular expression
            for scan-stacked parameters.
        groups: of these two: (regular expression, modality group) pairs, for logging.
        safeguard: of these two: whether broken steps are skipped.
        pallas: of the learned optimizer; see `learned_optimizer`.
    """

    name: str = "learned"
    num_steps: int = 1000
    learning_rate: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.9
    warmup_fraction: float = 0.05
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    clip_norm: float = 0.0
    rate_factors: tuple[tuple[str, float], ...] = ()
    weights: str = DEFAULT
    stacked: str | None = None
    groups: tuple[tuple[str, str], ...] = ()
    safeguard: bool = True
    pallas: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for settings out of range.

        >>> OptimizerConfig("adamw", learning_rate=-1e-3)
        Traceback (most recent call last):
        ValueError: learning_rate=-0.001 must be a finite number of 0 or more
        """
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be a finite number of 0 or more")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be from 0 to below 1")
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(
                f"warmup_fraction={self.warmup_fraction} must be from 0 to 1"
            )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Builds the optimizer that ``config`` names.

    Args:
        config: name and settings.

    Returns:
        A transformation; all of them accept ``value`` and ``feedback`` in ``update``.

    Raises:
        ValueError: an unknown name (with the nearest one), a learning rate for an
            optimizer that has none, or settings that the optimizer rejects.
        TypeError: ``num_steps`` that is not an integer.
    """
    if config.name in DEFAULT_LEARNING_RATE:
        tx = baseline(
            config.name,
            config.num_steps,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            warmup_fraction=config.warmup_fraction,
            schedule=config.schedule,
        )
        return with_group_rates(tx, config.name, config.clip_norm, config.rate_factors)
    if config.name not in NAMES:
        raise ValueError(
            f"unknown optimizer {config.name!r}{near_match(config.name, NAMES)}; "
            f"available: {', '.join(NAMES)}"
        )
    if config.learning_rate is not None:
        raise ValueError(
            f"{config.name!r} has no learning rate: leave learning_rate out "
            f"(got {config.learning_rate})"
        )
    if config.clip_norm or config.rate_factors:
        raise ValueError(
            f"{config.name!r} sets clipping and the step of each tensor itself: leave "
            f"clip_norm={config.clip_norm} and rate_factors={config.rate_factors} out"
        )
    if config.schedule != ScheduleConfig():
        raise ValueError(
            f"{config.name!r} has its own schedule: leave schedule={config.schedule} "
            "out"
        )
    if config.name == "hand_designed":
        return hand_designed(
            config.num_steps,
            stacked=config.stacked,
            groups=config.groups,
            safeguard=config.safeguard,
        )
    return learned_optimizer(
        config.num_steps,
        weights=config.weights,
        stacked=config.stacked,
        groups=config.groups,
        safeguard=config.safeguard,
        pallas=config.pallas,
    )
