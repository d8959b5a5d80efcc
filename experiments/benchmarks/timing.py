"""Interleaved timing of alternatives, and the ratio that the report has."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Ratio(NamedTuple):
    """One line of the report: two measurements in the same unit and their ratio.

    The target is an upper bound on the ratio, or a lower bound if the unit is a rate.
    """

    what: str
    ours: float
    theirs: float
    unit: str
    target: float | None


def medians(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Returns median milliseconds by name, called in turns after two warm-up rounds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 2):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if i >= 2:
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(t) for name, t in times.items()}
