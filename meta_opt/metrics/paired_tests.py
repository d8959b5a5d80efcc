"""Tests of whether one of two classifiers of the same examples is right more often."""

from collections.abc import Sequence

import numpy as np


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """McNemar's exact test: two-sided p value that both are right equally often.

    Of the examples of which just one classifier is right, each has either with
    probability 1/2 (McNemar 1947; a binomial test).

    Args:
        first: bool [N], where the first is right.
        second: bool [N], where the second is, on the same examples.

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
    """One p value from several of the same hypothesis, however they depend.

    It is ``S / k`` times the k-th smallest of S, for ``k = S // 2 + 1`` (Rüger 1978):
    about twice the median. Runs that are tested on the same examples do depend.

    Args:
        p_values: one for each run.

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
