"""Checks whether a new measurement agrees with the published number."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from meta_opt.metrics.intervals import interval

ROUNDING = 1e-3
"""Minimum half-width of an interval over seeds, relative to the mean. Seeds may agree
to the last digit, while other machines sum in a different order."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A published number and a new measurement of it.

    Attributes:
        quantity: name of the quantity.
        stored: published value.
        measured: new value.
        low: lower bound of agreement.
        high: upper bound of agreement.
        rule: definition of the bounds, in words.
    """

    quantity: str
    stored: float
    measured: float
    low: float
    high: float
    rule: str

    @property
    def agrees(self) -> bool:
        """Whether the new value is finite and within the bounds."""
        return math.isfinite(self.measured) and self.low <= self.measured <= self.high


def by_seeds(
    quantity: str, stored: Sequence[float], measured: Sequence[float]
) -> Comparison:
    """Compares a new mean with the 95% confidence interval of the stored seeds' mean.

    The interval is Student's t, see `meta_opt.metrics.intervals.interval`, widened to
    at least `ROUNDING` on either side.

    Args:
        quantity: name of the quantity.
        stored: stored values of at least two seeds.
        measured: new values of any number of seeds, finite or not.

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
    """Compares a new value with the stored one up to a tolerance.

    Args:
        quantity: name of the quantity.
        stored: published value, which is deterministic or has no interval.
        measured: new value.
        relative: tolerance as a fraction of the stored value.
        absolute: tolerance in the quantity's unit, added to the relative one.

    >>> by_tolerance("operations", 100.0, 101.0, relative=0.02).agrees
    True
    """
    half = relative * abs(stored) + absolute
    parts = [f"{100 * relative:g}%"] if relative else []
    parts += [f"{absolute:g}"] if absolute else []
    rule = "± " + " + ".join(parts) if parts else "equal"
    return Comparison(quantity, stored, measured, stored - half, stored + half, rule)
