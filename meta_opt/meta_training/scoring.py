"""Scores of runs relative to a reference, on a scale that tasks share."""

import jax
import jax.numpy as jnp
import numpy as np

CAP = 4.0
"""Bound on the log ratio to the reference; also what a diverged run scores."""
_BETTER = 1.0 / 3.0


def relative_score(
    loss: jax.Array, reference: jax.Array, floor: float = 1e-2
) -> jax.Array:
    """Returns the bounded log ratio of loss to reference; NaN and inf are worst.

    Losses of all tasks become comparable: 0 is as good as the reference, lower is
    better.

    Args:
        loss: loss of a run; need not be finite.
        reference: loss to compare with.
        floor: value added to both losses, so that negligible losses are equivalent.
    """
    ratio = jnp.log((loss + floor) / (reference + floor))
    return jnp.where(jnp.isfinite(ratio), jnp.clip(ratio, -CAP, CAP), CAP)


def asymmetric_log1p(x: jax.Array) -> jax.Array:
    """Returns ``log(1 + x)`` for positive x, a third of ``-log(1 - x)`` for negative.

    Being worse than the reference has full weight, being better a third of it. The
    logarithm prevents tasks on which all rules are much better, or much worse, from
    dominating.

    >>> [round(float(asymmetric_log1p(jnp.float32(x))), 3) for x in (1.0, -1.0)]
    [0.693, -0.231]
    """
    size = jnp.log1p(jnp.abs(x))
    return jnp.where(x > 0, size, -_BETTER * size)


def meta_objective(
    loss: jax.Array,
    error: jax.Array,
    reference_loss: jax.Array,
    reference_error: jax.Array,
    error_weight: float,
    floor: float = 1e-2,
) -> jax.Array:
    """Returns the meta-training objective, of loss and error relative to a reference.

    ``f(log((loss + floor) / (reference_loss + floor))) + error_weight *
    f(error - reference_error)`` with f = `asymmetric_log1p`; 0 is as good as the
    reference, lower is better.

    Args:
        loss: loss of the run; need not be finite.
        error: error rate of the run in [0, 1]; need not be finite.
        reference_loss: loss of the reference.
        reference_error: error rate of the reference.
        error_weight: weight of the error, which is added to the log loss.
        floor: see `relative_score`.
    """
    more = jnp.where(jnp.isfinite(error), error, 1.0) - reference_error
    relative = relative_score(loss, reference_loss, floor)
    return asymmetric_log1p(relative) + error_weight * asymmetric_log1p(more)


def over_tasks(scores: np.ndarray, worst_weight: float) -> np.ndarray:
    """Returns the mean over tasks plus ``worst_weight`` times that of the worst fifth.

    The mean over the worst fifth is the conditional value at risk (Rockafellar and
    Uryasev 2000): rules that fail on a few tasks cannot compensate for it elsewhere.

    Args:
        scores: float [tasks, ...]; larger is worse.
        worst_weight: weight of the worst fifth, at least one task.

    >>> over_tasks(np.array([0.0, 0.0, 0.0, 0.0, 1.0]), 0.5).item()
    0.7
    """
    count = max(1, round(len(scores) / 5))
    worst = np.sort(scores, axis=0)[-count:]
    return np.mean(scores, axis=0) + worst_weight * np.mean(worst, axis=0)
