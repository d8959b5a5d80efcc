"""95% confidence intervals of means and proportions, and bootstrap intervals.

If several runs (training seeds) predict the same examples, neither predictions for the
same example nor predictions of the same run are independent: the bootstrap resamples
both.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

_TAIL = 0.025


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its 95% confidence interval.

    Attributes:
        mean: the estimate.
        low: lower end; None without an interval, as for a single value.
        high: upper end; None without an interval.
    """

    mean: float
    low: float | None
    high: float | None


def interval(values: Iterable[float]) -> Interval:
    """Returns ``mean ± t(0.975, n - 1) s / sqrt(n)`` (Student's t).

    >>> [round(x, 3) for x in dataclasses.astuple(interval([1.0, 2.0, 3.0]))]
    [2.0, -0.484, 4.484]
    """
    from scipy.stats import t

    x = np.array(list(values))
    mean = float(np.mean(x))
    if len(x) < 2:
        return Interval(mean, None, None)
    half = float(t.ppf(1 - _TAIL, len(x) - 1) * np.std(x, ddof=1) / math.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half)


def wilson(successes: int, count: int) -> Interval:
    """Wilson score interval of a proportion of independent trials.

    Args:
        successes: number of successes.
        count: number of trials.

    Raises:
        ValueError: no trials, or more successes than trials.

    Example:
        >>> [round(x, 3) for x in dataclasses.astuple(wilson(144, 180))]
        [0.8, 0.736, 0.852]
    """
    from scipy.stats import binomtest

    if not 0 <= successes <= count or count < 1:
        raise ValueError(f"{successes} successes of {count} trials have no proportion")
    found = binomtest(successes, count).proportion_ci(method="wilson")
    return Interval(successes / count, float(found.low), float(found.high))


@dataclasses.dataclass(frozen=True)
class Resamples:
    """Bootstrap samples of examples and runs, as weights.

    Comparisons need the same samples: use one object for all metrics and models.

    Attributes:
        examples: float [R, N], number of times each example is drawn, divided by N.
        runs: float [R, S], number of times each run is drawn, divided by S.
    """

    examples: np.ndarray
    runs: np.ndarray

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean of each bootstrap sample, [R], of values [S, N] (run, example)."""
        return np.einsum("rs,sn,rn->r", self.runs, values, self.examples, optimize=True)


def resample(
    num_examples: int, num_runs: int = 1, count: int = 2000, seed: int = 0
) -> Resamples:
    """Draws examples and, independently, runs with replacement.

    The samples of examples do not depend on the number of runs. For few runs the
    bootstrap underestimates their variance, by the factor ``(S - 1) / S``.

    Args:
        num_examples: N.
        num_runs: S.
        count: R, number of bootstrap samples.
        seed: random seed.

    Raises:
        ValueError: a number below 1.
    """
    if min(num_examples, num_runs, count) < 1:
        raise ValueError(
            f"{count} samples of {num_examples} examples and {num_runs} runs: each "
            "must be at least 1"
        )

    def drawn(stream: int, size: int) -> np.ndarray:
        rng = np.random.default_rng([seed, stream])
        return rng.multinomial(size, np.full(size, 1 / size), count) / size

    return Resamples(drawn(0, num_examples), drawn(1, num_runs))


def percentile_interval(estimate: float, values: np.ndarray) -> Interval:
    """Percentile bootstrap interval (Efron 1981).

    Args:
        estimate: estimate from all data.
        values: float [R], estimates from the bootstrap samples.
    """
    low, high = np.quantile(values, [_TAIL, 1 - _TAIL])
    return Interval(estimate, float(low), float(high))
