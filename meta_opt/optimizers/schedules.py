"""Learning-rate schedules of the baselines."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from meta_opt.types import PyTree, check_name

SCHEDULES = ("cosine", "constant", "plateau")
_MARGIN = 1e-5
"""By which a metric must be better; a share of fewer than 100,000 examples that rises
at all rises by more."""


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule after the warm-up.

    Attributes:
        name: ``cosine``, ``constant``, or ``plateau``: constant, and reduced where the
            validation metric (``loop.feedback``) no longer improves.
        final_fraction: of ``cosine``: the last learning rate over the peak.
        factor: of ``plateau``: factor of each reduction of the learning rate.
        patience: of ``plateau``: evaluations in a row without a better metric that are
            tolerated, as PyTorch's ``ReduceLROnPlateau`` counts: the next one reduces.
        mode: of ``plateau``: whether a better metric is ``min`` or ``max``.
    """

    name: str = "cosine"
    final_fraction: float = 0.0
    factor: float = 0.1
    patience: int = 1
    mode: str = "max"

    def __post_init__(self) -> None:
        """Raises ValueError for unknown names and values out of range."""
        check_name("schedule.name", self.name, SCHEDULES)
        check_name("schedule.mode", self.mode, ("min", "max"))
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(
                f"schedule.final_fraction={self.final_fraction} must be 0 to 1"
            )
        if not 0 < self.factor < 1:
            raise ValueError(f"schedule.factor={self.factor} must be between 0 and 1")
        if self.patience < 0:
            raise ValueError(f"schedule.patience={self.patience} must be at least 0")


def warmup_cosine(
    peak: float | jax.Array,
    num_steps: int | jax.Array,
    warmup_fraction: float | jax.Array,
    decays: bool,
    final_fraction: float = 0.0,
) -> optax.Schedule:
    """Linear warm-up to ``peak``, then cosine decay or constant.

    Args:
        peak: learning rate after the warm-up.
        num_steps: length of the run.
        warmup_fraction: share of the run with linear warm-up; one step at least, which
            is at the peak if it is the only one.
        decays: whether to decay after the warm-up.
        final_fraction: final learning rate as a fraction of the peak.
    """

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        # Here and not outside, so that no value need be known before a step is traced.
        warmup = jnp.maximum(1, jnp.round(jnp.float32(warmup_fraction) * num_steps))
        rising = peak * (count + 1.0) / warmup
        done = (count - warmup) / jnp.maximum(num_steps - warmup, 1)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        falling = final_fraction + (1 - final_fraction) * cosine if decays else 1.0
        return jnp.where(count < warmup, rising, peak * falling)

    return schedule


def reduce_on_plateau(config: ScheduleConfig) -> optax.GradientTransformationExtraArgs:
    """Scales updates by `optax.contrib.reduce_on_plateau` of the validation metric.

    The metric is the keyword ``feedback`` of ``update``, a scalar that is NaN in steps
    without an evaluation, which do not change the scale. Non-finite metrics count as no
    evaluation.

    Args:
        config: factor, patience and mode.

    Raises:
        ValueError: from ``update``, without ``feedback``.

    Example:
        >>> tx = reduce_on_plateau(ScheduleConfig("plateau", patience=1))
        >>> state, scales = tx.init(jnp.zeros(())), []
        >>> for accuracy in (0.5, 0.6, 0.6, float("nan"), 0.5, 0.5):
        ...     update, state = tx.update(jnp.ones(()), state, feedback=accuracy)
        ...     scales.append(round(float(update), 3))
        >>> scales
        [1.0, 1.0, 1.0, 1.0, 0.1, 0.1]
    """
    # Optax reduces at the evaluation that reaches its patience.
    rule = optax.contrib.reduce_on_plateau(
        config.factor, config.patience + 1, rtol=0.0, atol=_MARGIN
    )
    sign = 1.0 if config.mode == "min" else -1.0

    def update(
        updates: PyTree,
        state: Any,
        params: PyTree = None,
        *,
        feedback: jax.typing.ArrayLike | None = None,
        **extra: Any,
    ) -> tuple[PyTree, Any]:
        del params, extra
        if feedback is None:
            raise ValueError(
                "the schedule 'plateau' needs the validation metric in each step: set "
                "loop.feedback (or give `feedback` to update)"
            )
        metric = jnp.asarray(feedback)
        _, after = rule.update({}, state, value=sign * metric)
        evaluated = jnp.isfinite(metric)
        state = jax.tree.map(
            lambda new, old: jnp.where(evaluated, new, old), after, state
        )
        scaled = jax.tree.map(lambda u: u * state.scale.astype(u.dtype), updates)
        return scaled, state

    return optax.GradientTransformationExtraArgs(rule.init, update)
