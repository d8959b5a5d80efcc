"""How a run is scored against a yardstick, on a scale that tasks share."""

import jax
import jax.numpy as jnp
import numpy as np

CAP = 4.0
"""Bound on the log ratio to the reference; also what a diverged run scores."""
_BETTER = 1.0 / 3.0


def relative_score(
    loss: jax.Array, reference: jax.Array, floor: float = 1e-2
) -> jax.Array:
    """Log of loss over reference, bounded; what is not finite scores worst.

    Each task is judged on its own scale: 0 is as good as the reference, below is
    better.

    Args:
        loss: of a run; need not be finite.
        reference: to compare with.
        floor: added to both, so that losses next to nothing are alike.
    """
    ratio = jnp.log((loss + floor) / (reference + floor))
    return jnp.where(jnp.isfinite(ratio), jnp.clip(ratio, -CAP, CAP), CAP)


def priced(x: jax.Array) -> jax.Array:
    """Being worse than the yardstick counts in full, being better a third.

    What is far off has less weight still, so that a task on which all rules are much
    better, or much worse, does not decide for the others.

    >>> [round(float(priced(jnp.float32(x))), 3) for x in (1.0, -1.0)]
    [0.693, -0.231]
    """
    size = jnp.log1p(jnp.abs(x))
    return jnp.where(x > 0, size, -_BETTER * size)


def against(
    loss: jax.Array,
    error: jax.Array,
    reference_loss: jax.Array,
    reference_error: jax.Array,
    error_weight: float,
    floor: float = 1e-2,
) -> jax.Array:
    """The price of a run's loss and error rate against the yardstick's.

    Args:
        loss: of the run; need not be finite.
        error: its error rate; likewise.
        reference_loss: of the yardstick.
        reference_error: likewise.
        error_weight: weight of the error beside the log loss.
        floor: see `relative_score`.
    """
    more = jnp.where(jnp.isfinite(error), error, 1.0) - reference_error
    return priced(relative_score(loss, reference_loss, floor)) + error_weight * priced(
        more
    )


def over_tasks(scores: np.ndarray, worst_weight: float) -> np.ndarray:
    """Mean over tasks plus ``worst_weight`` times the mean over the worst fifth.

    The latter is the conditional value at risk (Rockafellar and Uryasev 2000): rules
    that fail on a few tasks do not make up for it elsewhere.

    Args:
        scores: float [tasks, ...]; larger is worse.
        worst_weight: weight of the worst fifth, at least one task.

    >>> over_tasks(np.array([0.0, 0.0, 0.0, 0.0, 1.0]), 0.5).item()
    0.7
    """
    count = max(1, round(len(scores) / 5))
    worst = np.sort(scores, axis=0)[-count:]
    return np.mean(scores, axis=0) + worst_weight * np.mean(worst, axis=0)
