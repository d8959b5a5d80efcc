"""Differences between runs on different numbers of devices."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.fault_trials.outcomes import largest_difference
from meta_opt.markdown import markdown_table


def compare(found: Any, expected: Any) -> dict[str, float]:
    """Compares two results of the same run.

    Args:
        found: a `meta_opt.finetuning.run_result.RunResult`.
        expected: the result to compare with.

    Returns:
        ``losses``, the largest relative difference of any recorded loss, and
        ``parameters``, the norm of the parameters' difference over their norm.
    """

    def norm(tree: Any) -> float:
        return sum(float((x**2).sum()) for x in jax.tree.leaves(tree)) ** 0.5

    host, other = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), result.state.params)
        for result in (found, expected)
    )
    apart = jax.tree.map(np.subtract, host, other)
    return {
        "losses": largest_difference(_losses(found), _losses(expected)),
        "parameters": norm(apart) / norm(other),
    }


def _losses(result: Any) -> list[dict[str, float]]:
    kept = ("step", "train/loss", "validation/loss")
    return [{k: x[k] for k in kept if k in x} for x in result.history]


def table(differences: Mapping[int, Mapping[str, float]], first: int) -> str:
    """Returns a Markdown table of the differences to the run on ``first`` devices."""
    head = ("devices", f"losses differ from those of {first} by", "parameters")
    rows = [
        (str(count), f"{found['losses']:.1e}", f"{found['parameters']:.1e}")
        for count, found in differences.items()
    ]
    return markdown_table(head, rows, numbers=False) + "\n"
