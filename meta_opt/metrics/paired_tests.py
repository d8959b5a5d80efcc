"""Paired significance tests of two classifiers on the same examples."""

from collections.abc import Sequence

import numpy as np


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact McNemar test: two-sided p value of equal accuracy.

    Under the null hypothesis, each example with exactly one right classifier has either
    with probability 1/2 (McNemar 1947; a binomial test).

    Args:
        first: bool [N], whether the first classifier is right.
        second: bool [N], whether the second classifier is right on the same examples.

    Raises:
        ValueError: arrays of different lengths.

    Example:
        >>> mcnemar(np.array([True] * 5), np.array([False] * 5))  # 2 / 2^5
        0.0625
    """
    from scipy.stats import binomtest

    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"answers of shapes {list(first.shape)} and {list(second.shape)} must be "
            "two [N] of the same examples"
        )
    only_first = int(np.sum(first & ~second))
    differing = int(np.sum(first != second))
    if differing == 0:
        return 1.0
    return float(binomtest(only_first, differing).pvalue)


def combine_p_values(p_values: Sequence[float]) -> float:
    """Combines p values of the same hypothesis under arbitrary dependence.

    The result is ``S / k`` times the k-th smallest of S, for ``k = S // 2 + 1`` (Rüger
    1978): about twice the median. Runs that are tested on the same examples are
    dependent.

    Args:
        p_values: p value of each run.

    Raises:
        ValueError: no p values.

    Example:
        >>> combine_p_values([0.5, 0.01, 0.02])  # 3 / 2 times the second
        0.03
    """
    if not len(p_values):
        raise ValueError("no p value to combine")
    rank = len(p_values) // 2 + 1
    return min(1.0, len(p_values) / rank * sorted(p_values)[rank - 1])
