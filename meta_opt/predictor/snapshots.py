"""Snapshots of the best parameters of a run, in host memory, and their average."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from meta_opt.parallel.placement import to_host
from meta_opt.types import PyTree


class Snapshot(NamedTuple):
    """Parameters at an evaluation.

    Attributes:
        step: number of optimizer updates so far.
        value: value of the selecting metric.
        params: pytree of arrays on the host.
    """

    step: int
    value: float
    params: PyTree


class Snapshots:
    """Keeps the best parameters of a run in host memory.

    The best parameters are kept exactly, the ones to be averaged in bfloat16.

    Args:
        keep: maximum number of snapshots to average; 1 for no averaging.
        metric: metric that selects snapshots; ties are broken by the lower ``loss``.
        mode: ``min`` or ``max``, whichever is better.

    Attributes:
        best: the best snapshot; None before the first evaluation.
        keep: maximum number of snapshots to average.

    >>> snapshots = Snapshots(2, "accuracy", "max")
    >>> for step, accuracy in enumerate([0.5, 0.9, 0.7]):
    ...     params = {"w": np.float32([step])}
    ...     snapshots.show(step, params, {"accuracy": accuracy, "loss": 1.0})
    >>> snapshots.best.step, [one.step for one in snapshots.ranked()]
    (1, [1, 2])
    """

    def __init__(self, keep: int, metric: str, mode: str) -> None:
        self.best: Snapshot | None = None
        self.keep, self._metric = keep, metric
        self._sign = 1.0 if mode == "max" else -1.0
        self._best_rank: tuple[float, float] = (-np.inf, -np.inf)
        self._kept: list[tuple[tuple[float, float], int, Snapshot]] = []

    def show(self, step: int, params: PyTree, metrics: Mapping[str, float]) -> None:
        """Keeps a copy of the parameters if they are among the best.

        With several processes, all must call this with the same metrics.
        """
        rank = self.rank(metrics)
        value = metrics[self._metric]
        best = self.best is None or rank > self._best_rank
        averaged = self.keep > 1 and (
            len(self._kept) < self.keep or rank > self._kept[0][0]
        )
        if not (best or averaged):
            return
        here = to_host(params)
        if best:
            self._best_rank = rank
            self.best = Snapshot(step, value, jax.tree.map(np.array, here))
        if averaged:
            half = Snapshot(step, value, jax.tree.map(_half, here))
            # Of snapshots with equal metrics the earlier one is kept.
            heapq.heappush(self._kept, (rank, -step, half))
            if len(self._kept) > self.keep:
                heapq.heappop(self._kept)

    def restore(
        self,
        best: Snapshot,
        averaged: Sequence[Snapshot],
        metrics: Mapping[int, Mapping[str, float]],
    ) -> None:
        """Restores the snapshots of an interrupted process.

        Args:
            best: the attribute `best` of that process.
            averaged: the result of `ranked` in that process.
            metrics: validation metrics of these snapshots by step.
        """
        self.best, self._best_rank = best, self.rank(metrics[best.step])
        self._kept = [(self.rank(metrics[x.step]), -x.step, x) for x in averaged]
        heapq.heapify(self._kept)

    def rank(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """Returns a sort key that is larger for better metrics; non-finite is worst."""
        found = (self._sign * metrics[self._metric], -metrics["loss"])
        first, second = (x if np.isfinite(x) else -np.inf for x in found)
        return first, second

    def ranked(self) -> list[Snapshot]:
        """Returns the snapshots to average, best first."""
        return [one for _, _, one in sorted(self._kept, key=lambda x: x[:2])[::-1]]


class Soup(NamedTuple):
    """An average of snapshots.

    Attributes:
        params: averaged parameters, a pytree of arrays on the host.
        steps: steps of the averaged snapshots.
        metrics: validation metrics of the average.
    """

    params: PyTree
    steps: tuple[int, ...]
    metrics: Mapping[str, float]


def greedy_soup(
    snapshots: Snapshots,
    evaluate: Callable[[PyTree], Mapping[str, float]],
    enough_time: Callable[[], bool] = lambda: True,
) -> Soup | None:
    """Averages snapshots greedily, best first, skipping those that worsen validation.

    Wortsman et al. 2022 (arXiv:2203.05482), recipe 1.

    Args:
        snapshots: snapshots of a run.
        evaluate: function from parameters to validation metrics.
        enough_time: called before each evaluation; the search ends if it is False.

    Returns:
        The average, or None if no average of several snapshots is better than the best
        one.
    """
    ranked = snapshots.ranked()
    if len(ranked) < 2 or snapshots.best is None:
        return None
    soup = jax.tree.map(_single, ranked[0].params)
    if not enough_time():
        return None
    metrics = evaluate(snapshots.best.params)
    start = best = snapshots.rank(metrics)
    steps = [ranked[0].step]
    for one in ranked[1:]:
        if not enough_time():
            break
        count = len(steps)
        tried = jax.tree.map(
            lambda s, x, n=count: (s * n + _single(x)) / (n + 1), soup, one.params
        )
        found = evaluate(tried)
        if snapshots.rank(found) >= best:
            soup, metrics, best = tried, found, snapshots.rank(found)
            steps.append(one.step)
    if len(steps) == 1 or not best > start:
        return None
    return Soup(soup, tuple(steps), metrics)


def _half(x: Any) -> np.ndarray:
    x = np.asarray(x)
    floating = np.issubdtype(x.dtype, np.floating)
    return x.astype(ml_dtypes.bfloat16) if floating else np.array(x)


def _single(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype == ml_dtypes.bfloat16 else x
