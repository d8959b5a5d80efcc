r"""A formula of MELTR's overhead, in terms of losses, interval and model.

Let :math:`s_1` and :math:`s_T` be the cost of a step on the primary loss alone and on
all T losses with equal weights, both known without MELTR, and K the interval of
meta-steps. Then

.. math::
    \text{overhead} = \frac{1}{s_T}\Big(\kappa
        + \frac{1}{K} \big(a\, s_1 + b\, s_T + d\big)\Big).

:math:`a` is the cost of the primary loss's gradient on the first batch, :math:`b` that
of the passes over the second batch, :math:`\kappa` and :math:`d` that of the combiner
itself, which does not depend on the model. T enters through :math:`s_T`.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Point(NamedTuple):
    """Costs of a case at an interval, in operations or milliseconds.

    Attributes:
        model: name of the model.
        num_losses: T, number of losses.
        interval: K, number of steps between meta-steps.
        primary: s_1, cost of a step on the primary loss alone.
        equal: s_T, cost of a step with equal weights.
        meltr: cost of MELTR's base step.
        meta: cost of a meta-step.
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
        """Relative extra cost of a MELTR step with its share of a meta-step.

        >>> Point("nano", 2, 4, 1.0, 2.0, 2.0, 4.0).overhead
        0.5
        """
        return (self.meltr + self.meta / self.interval) / self.equal - 1


@dataclasses.dataclass(frozen=True)
class CostModel:
    """Coefficients of the formula of this module.

    Attributes:
        combiner: kappa, in the unit of the points.
        primary: a, coefficient of s_1.
        losses: b, coefficient of s_T.
        constant: d, in the unit of the points.
    """

    combiner: float
    primary: float
    losses: float
    constant: float

    def overhead(self, point: Point) -> float:
        """Predicts the overhead from ``primary``, ``equal`` and ``interval`` only."""
        coefficients = (self.combiner, self.primary, self.losses, self.constant)
        return float(np.dot(_terms(point), coefficients))

    def step_error(self, point: Point) -> float:
        """Absolute relative error of the predicted cost of a step with meta-steps."""
        return abs((1 + self.overhead(point)) / (1 + point.overhead) - 1)

    def overhead_error(self, point: Point) -> float:
        """Absolute relative error of the predicted overhead."""
        return abs(self.overhead(point) / point.overhead - 1)


def fit(points: Sequence[Point]) -> CostModel:
    """Fits the coefficients by least squares of the relative error of step costs.

    Raises:
        ValueError: there are fewer than three cases (pairs of model and T) or two
            intervals, which do not determine the coefficients.
    """
    cases = {(p.model, p.num_losses) for p in points}
    if len(cases) < 3 or len({p.interval for p in points}) < 2:
        raise ValueError(
            f"{len(cases)} cases of {len(points)} points: the cost model needs three "
            "cases, and two intervals"
        )
    weights = np.array([1 / (1 + p.overhead) for p in points])
    terms = np.array([_terms(p) for p in points]) * weights[:, None]
    # Normalise the columns, which have different units.
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
    """Selects held-out points: those that have any of these values.

    Attributes:
        models: names of models.
        num_losses: numbers of losses T.
        intervals: intervals K.
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
