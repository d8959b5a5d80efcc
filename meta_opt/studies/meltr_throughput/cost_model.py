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
        """Relative extra cost of MELTR's step over equal weights.

        The cost of the meta-step is spread over K steps.

        >>> Point("nano", 2, 4, 1.0, 2.0, 2.0, 4.0).overhead
        0.5
        """
        return (self.meltr + self.meta / self.interval) / self.equal - 1


@dataclasses.dataclass(frozen=True)
class CostModel:
    """Coefficients of the formula in the module's docstring.

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
        """Predicts a point's overhead from its s_1, s_T and K alone."""
        coefficients = (self.combiner, self.primary, self.losses, self.constant)
        return float(np.dot(_terms(point), coefficients))

    def step_error(self, point: Point) -> float:
        """Returns the absolute relative error of a step's cost with meta-steps."""
        return abs((1 + self.overhead(point)) / (1 + point.overhead) - 1)

    def overhead_error(self, point: Point) -> float:
        """Returns the absolute relative error of the predicted overhead."""
        return abs(self.overhead(point) / point.overhead - 1)


def fit(points: Sequence[Point]) -> CostModel:
    """Fits the cost model by least squares of relative errors of a step's cost.

    Raises:
        ValueError: fewer than three cases (pairs of model and T) or a single interval,
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
    # Normalised, because the columns have different units.
    scales = np.linalg.norm(terms, axis=0)
    targets = np.array([p.overhead for p in points]) * weights
    coefficients, *_ = np.linalg.lstsq(terms / scales, targets, rcond=None)
    return CostModel(*map(float, coefficients / scales))


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
    """Selection of the points that are held out of the fit.

    A point is held out if it has any of these values.

    Attributes:
        models: names of models.
        num_losses: values of T, the number of losses.
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
