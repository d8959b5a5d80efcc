"""The geometric mean, for averages of ratios."""

from collections.abc import Iterable

import numpy as np


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean; 0 if a value is 0.

    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    with np.errstate(divide="ignore"):
        return float(np.exp(np.mean(np.log(list(values)))))
