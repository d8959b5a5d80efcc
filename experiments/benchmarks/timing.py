"""Times of alternatives that take turns, and the ratio that a line reports."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Ratio(NamedTuple):
    """One line of the report: milliseconds (or another unit) and their ratio.

    The target is a bound on the ratio: from above, or for rates from below.
    """

    what: str
    ours: float
    theirs: float
    unit: str
    target: float | None


def medians(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, taking turns, after two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 2):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if i >= 2:
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(t) for name, t in times.items()}
