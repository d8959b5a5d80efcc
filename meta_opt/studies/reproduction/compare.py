"""Agreement of reproduced numbers with the published ones."""

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
    """A published number and its reproduction.

    Attributes:
        quantity: name of the quantity.
        stored: published value.
        measured: reproduced value.
        low: lower bound of the agreement interval.
        high: upper bound of the agreement interval.
        rule: description of how the bounds are defined.
    """

    quantity: str
    stored: float
    measured: float
    low: float
    high: float
    rule: str

    @property
    def agrees(self) -> bool:
        """Whether the reproduced value is finite and within the bounds."""
        return math.isfinite(self.measured) and self.low <= self.measured <= self.high


def by_seeds(
    quantity: str, stored: Sequence[float], measured: Sequence[float]
) -> Comparison:
    """Requires the new mean to be in the 95% interval of the stored seeds' mean.

    Student's t, see `meta_opt.metrics.intervals.interval`, and at least `ROUNDING`
    wide on either side.

    Args:
        quantity: name of the quantity.
        stored: published values by seed, at least two.
        measured: reproduced values by seed, finite or not.

    Raises:
        ValueError: there are fewer than two stored seeds, hence no interval.

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
    """Requires the new value to be within a tolerance of the stored one.

    Args:
        quantity: name of the quantity.
        stored: published value that has no interval or is deterministic.
        measured: reproduced value.
        relative: relative tolerance, as a share of the stored value.
        absolute: absolute tolerance, which is added to the relative one.

    >>> by_tolerance("operations", 100.0, 101.0, relative=0.02).agrees
    True
    """
    half = relative * abs(stored) + absolute
    parts = [f"{100 * relative:g}%"] if relative else []
    parts += [f"{absolute:g}"] if absolute else []
    rule = "± " + " + ".join(parts) if parts else "equal"
    return Comparison(quantity, stored, measured, stored - half, stored + half, rule)
