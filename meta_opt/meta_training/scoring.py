"""Scores of runs relative to a reference, on a scale that is common to all tasks."""

import jax
import jax.numpy as jnp
import numpy as np

CAP = 4.0
"""Bound on the log ratio to the reference; also the log ratio of a diverged run."""
_BETTER_WEIGHT = 1.0 / 3.0
"""Weight of scores below 0, which are better than the reference."""


def relative_score(
    loss: jax.Array, reference: jax.Array, floor: float = 1e-2
) -> jax.Array:
    """Returns the bounded log ratio of loss to reference; `CAP` if it is not finite.

    0 means as good as the reference, negative is better; independent of the task's
    scale.

    Args:
        loss: loss of a run; need not be finite.
        reference: loss to compare with.
        floor: added to both losses, so that differences near zero do not count.
    """
    ratio = jnp.log((loss + floor) / (reference + floor))
    return jnp.where(jnp.isfinite(ratio), jnp.clip(ratio, -CAP, CAP), CAP)


def asymmetric_log1p(x: jax.Array) -> jax.Array:
    """Returns ``log(1 + x)`` above 0, and a third of ``-log(1 - x)`` below.

    Being worse than the reference counts in full, being better only a third. The
    logarithm keeps tasks with very large differences from dominating.

    >>> [round(float(asymmetric_log1p(jnp.float32(x))), 3) for x in (1.0, -1.0)]
    [0.693, -0.231]
    """
    size = jnp.log1p(jnp.abs(x))
    return jnp.where(x > 0, size, -_BETTER_WEIGHT * size)


def meta_objective(
    loss: jax.Array,
    error: jax.Array,
    reference_loss: jax.Array,
    reference_error: jax.Array,
    error_weight: float,
    floor: float = 1e-2,
) -> jax.Array:
    """Objective of meta-training: a run's loss and error rate relative to a reference.

    ``f(log((loss + floor) / (reference_loss + floor))) + error_weight *
    f(error - reference_error)`` with f = `asymmetric_log1p`; 0 means as good as the
    reference, lower is better.

    Args:
        loss: loss of the run; need not be finite.
        error: error rate of the run in [0, 1]; need not be finite.
        reference_loss: loss of the reference.
        reference_error: error rate of the reference.
        error_weight: weight of the error rate relative to the log loss.
        floor: added to both losses, see `relative_score`.
    """
    more = jnp.where(jnp.isfinite(error), error, 1.0) - reference_error
    relative = relative_score(loss, reference_loss, floor)
    return asymmetric_log1p(relative) + error_weight * asymmetric_log1p(more)


def over_tasks(scores: np.ndarray, worst_weight: float) -> np.ndarray:
    """Mean over tasks plus ``worst_weight`` times the mean over the worst fifth.

    The mean over the worst fifth is the conditional value at risk (Rockafellar and
    Uryasev 2000): good results elsewhere do not compensate for failures on a few tasks.

    Args:
        scores: scores, float [tasks, ...]; larger is worse.
        worst_weight: weight of the mean over the worst fifth (at least one task).

    >>> over_tasks(np.array([0.0, 0.0, 0.0, 0.0, 1.0]), 0.5).item()
    0.7
    """
    count = max(1, round(len(scores) / 5))
    worst = np.sort(scores, axis=0)[-count:]
    return np.mean(scores, axis=0) + worst_weight * np.mean(worst, axis=0)
