"""How soon a curve of losses gets where it should."""

from collections.abc import Sequence

_NEAR, _STAYS = 1.01, 3


def convergence_epoch(losses: Sequence[float]) -> int:
    """The first epoch within 1% of the run's best loss that stays so for 3 epochs.

    Args:
        losses: on validation data after each epoch.

    Returns:
        From 1. At the end of a run fewer epochs are enough; a run that always leaves
        again, since it overfits, converges with its last epoch.

    >>> convergence_epoch([2.0, 1.0, 1.5, 1.001, 1.0, 1.0])
    4
    """
    best = min(losses)
    near = [loss <= _NEAR * best for loss in losses]
    for epoch in range(len(near)):
        if all(near[epoch : epoch + _STAYS]):
            return epoch + 1
    return len(losses)


def steps_to_target(
    steps: Sequence[int], values: Sequence[float], target: float
) -> int | None:
    """Returns the first step whose value is at or below ``target``.

    Only steps with an evaluation count: nothing is interpolated.

    Args:
        steps: ascending.
        values: one for each step; NaN reaches nothing.
        target: a loss.

    Returns:
        A step, or None if the target was not reached.

    >>> steps_to_target([0, 10, 20], [3.0, 2.0, 1.0], 2.0)
    10
    """
    for step, value in zip(steps, values, strict=True):
        if value <= target:
            return step
    return None
