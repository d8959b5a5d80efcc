r"""The overhead of MELTR as a formula of the losses, the interval and the model.

With :math:`s_1` and :math:`s_T` the cost of a step on the primary loss alone and on all
T losses with equal weights, both known without MELTR, and K the interval of meta-steps,

.. math::
    \text{overhead} = \frac{1}{s_T}\Big(\kappa
        + \frac{1}{K} \big(a\, s_1 + b\, s_T + d\big)\Big).

:math:`a` is the primary loss's gradient on the first batch, :math:`b` the passes over
the second, :math:`\kappa` and :math:`d` the combiner itself, which costs the same
whatever the model is. T enters through :math:`s_T`.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Point(NamedTuple):
    """Costs of one case at one interval, in one unit: operations or milliseconds.

    Attributes:
        model: name of the model.
        num_losses: T.
        interval: K.
        primary: s_1, of a step on the primary loss alone.
        equal: s_T, of a step with equal weights.
        meltr: meltr of MELTR's base step.
        meta: meta of a meta-step.
    """

    model: str
    num_losses: int
    interval: int
    primary: float
    equal: float
    meltr: float
    meta: float

    @property
    def overhead(self) -> float:
        """The cost of MELTR's step and its share of a meta-step over equal weights.

        >>> Point("nano", 2, 4, 1.0, 2.0, 2.0, 4.0).overhead
        0.5
        """
        return (self.meltr + self.meta / self.interval) / self.equal - 1


@dataclasses.dataclass(frozen=True)
class CostModel:
    """The formula's coefficients; see the module.

    Attributes:
        combiner: kappa, in the unit of the points.
        primary: a.
        losses: b.
        constant: d, in the unit of the points.
    """

    combiner: float
    primary: float
    losses: float
    constant: float

    def overhead(self, point: Point) -> float:
        """Predicts, from ``primary``, ``equal`` and ``interval`` of a point alone."""
        coefficients = (self.combiner, self.primary, self.losses, self.constant)
        return float(np.dot(_terms(point), coefficients))

    def step_error(self, point: Point) -> float:
        """Of the predicted cost of a step, meta-steps included; relative, absolute."""
        return abs((1 + self.overhead(point)) / (1 + point.overhead) - 1)

    def overhead_error(self, point: Point) -> float:
        """Of the predicted overhead, relative to that of the point; absolute."""
        return abs(self.overhead(point) / point.overhead - 1)


def fit(points: Sequence[Point]) -> CostModel:
    """Least squares of the cost of a step, relative to what it is.

    Raises:
        ValueError: fewer than three cases (pairs of model and T), or a single interval,
            which do not determine the coefficients.
    """
    cases = {(p.model, p.num_losses) for p in points}
    if len(cases) < 3 or len({p.interval for p in points}) < 2:
        raise ValueError(
            f"{len(cases)} cases of {len(points)} points: the cost model needs three "
            "cases, and two intervals"
        )
    weights = np.array([1 / (1 + p.overhead) for p in points])
    terms = np.array([_terms(p) for p in points]) * weights[:, None]
    # Columns are in different units.
    sizes = np.linalg.norm(terms, axis=0)
    sought = np.array([p.overhead for p in points]) * weights
    found, *_ = np.linalg.lstsq(terms / sizes, sought, rcond=None)
    return CostModel(*map(float, found / sizes))


def _terms(point: Point) -> tuple[float, float, float, float]:
    share = 1 / point.interval
    return (
        1 / point.equal,
        share * point.primary / point.equal,
        share,
        share / point.equal,
    )


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Which points are held out of the fit: those with any of these.

    Attributes:
        models: names.
        num_losses: T.
        intervals: values of K, the interval of meta-steps.
    """

    models: tuple[str, ...] = ()
    num_losses: tuple[int, ...] = ()
    intervals: tuple[int, ...] = ()

    def holds(self, point: Point) -> bool:
        """Whether a point is held out."""
        return (
            point.model in self.models
            or point.num_losses in self.num_losses
            or point.interval in self.intervals
        )
