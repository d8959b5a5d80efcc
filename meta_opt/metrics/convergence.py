"""Convergence speed of loss curves."""

import math
from collections.abc import Sequence

_NEAR, _STAYS = 1.01, 3


def convergence_epoch(losses: Sequence[float]) -> int:
    """The first of 3 consecutive epochs within 1% of the run's best loss.

    Args:
        losses: validation loss after each epoch, at least one; one that is NaN or
            infinite is never the best.

    Returns:
        The epoch, from 1. Near the end of a run fewer than 3 epochs suffice; a run that
        always leaves the range again, since it overfits, converges at its last epoch.

    >>> convergence_epoch([2.0, 1.0, 1.5, 1.001, 1.0, 1.0])
    4
    """
    best = min(filter(math.isfinite, losses), default=math.nan)
    # Within 1% of a negative loss is above it, too.
    bound = _NEAR * best if best >= 0 else best / _NEAR
    near = [loss <= bound and math.isfinite(loss) for loss in losses]
    for epoch in range(len(near)):
        if all(near[epoch : epoch + _STAYS]):
            return epoch + 1
    return len(losses)


def steps_to_target(
    steps: Sequence[int], values: Sequence[float], target: float
) -> int | None:
    """Returns the first step whose value is at or below ``target``.

    Only evaluated steps are considered, without interpolation.

    Args:
        steps: ascending.
        values: loss at each step; NaN never reaches the target.
        target: target loss.

    Returns:
        The step, or None if the target was not reached.

    >>> steps_to_target([0, 10, 20], [3.0, 2.0, 1.0], 2.0)
    10
    """
    for step, value in zip(steps, values, strict=True):
        if value <= target:
            return step
    return None
