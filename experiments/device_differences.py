"""By how much runs on several numbers of devices differ."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.fault_trials.outcomes import largest_difference


def compare(found: Any, expected: Any) -> dict[str, float]:
    """How two results of one run differ.

    Args:
        found: a `meta_opt.finetuning.loop.RunResult`.
        expected: another.

    Returns:
        ``losses``, the largest relative difference of any record's metric, and
        ``parameters``, the largest difference of any parameter in units of its tensor's
        largest.
    """

    def differ(one: Any, other: Any) -> float:
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        return float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-30))

    apart = jax.tree.map(differ, found.state.params, expected.state.params)
    return {
        "losses": largest_difference(found.history, expected.history),
        "parameters": max(jax.tree.leaves(apart)),
    }


def table(differences: Mapping[int, Mapping[str, float]], first: int) -> str:
    """Markdown of the differences to the run on ``first`` devices."""
    lines = [
        f"| devices | losses differ from those of {first} by | parameters |",
        "|---|---|---|",
        *(
            f"| {count} | {found['losses']:.1e} | {found['parameters']:.1e} |"
            for count, found in differences.items()
        ),
    ]
    return "\n".join(lines) + "\n"
