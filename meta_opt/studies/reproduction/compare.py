"""Whether a number that is measured again agrees with the published one."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from meta_opt.metrics.intervals import interval

ROUNDING = 1e-3
"""Relative: half the width that an interval of seeds has at least. Seeds may agree to
the last digit, and other machines sum in another order."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A published number and the one measured again.

    Attributes:
        quantity: what it is.
        stored: the published value.
        measured: the new one.
        low: lower end of what counts as agreement.
        high: upper end.
        rule: how the ends are defined, in words.
    """

    quantity: str
    stored: float
    measured: float
    low: float
    high: float
    rule: str

    @property
    def agrees(self) -> bool:
        """Whether the new value is finite and within the ends."""
        return math.isfinite(self.measured) and self.low <= self.measured <= self.high


def by_seeds(
    quantity: str, stored: Sequence[float], measured: Sequence[float]
) -> Comparison:
    """Returns the new mean must lie in the 95% interval of the stored seeds' mean.

    Student's t, see `meta_opt.metrics.intervals.interval`, and at least `ROUNDING`
    wide on either side.

    Args:
        quantity: what it is.
        stored: a value for each of at least two seeds.
        measured: a value for each seed, finite or not.

    Raises:
        ValueError: fewer than two stored seeds, which have no interval.

    >>> by_seeds("loss", [1.0, 2.0, 3.0], [2.5, 2.5]).agrees
    True
    """
    if len(stored) < 2:
        raise ValueError(
            f"{quantity}: {len(stored)} stored seeds have no interval; give a tolerance"
        )
    found = interval(stored)
    assert found.low is not None and found.high is not None
    least = ROUNDING * abs(found.mean)
    return Comparison(
        quantity,
        found.mean,
        float(np.mean(measured)),
        min(found.low, found.mean - least),
        max(found.high, found.mean + least),
        f"95% of {len(stored)} seeds",
    )


def by_tolerance(
    quantity: str,
    stored: float,
    measured: float,
    *,
    relative: float = 0.0,
    absolute: float = 0.0,
) -> Comparison:
    """Returns the new value must be within a stated distance of the stored one.

    Args:
        quantity: what it is.
        stored: published value; it has no interval, or is deterministic.
        measured: the new one.
        relative: share of the stored value.
        absolute: in the quantity's unit; added to the relative part.

    >>> by_tolerance("operations", 100.0, 101.0, relative=0.02).agrees
    True
    """
    half = relative * abs(stored) + absolute
    parts = [f"{100 * relative:g}%"] if relative else []
    parts += [f"{absolute:g}"] if absolute else []
    rule = "± " + " + ".join(parts) if parts else "equal"
    return Comparison(quantity, stored, measured, stored - half, stored + half, rule)
