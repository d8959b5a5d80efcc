"""Leave-one-style-out: what a choice by some styles of task is worth on another."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from meta_opt.meta_training.scoring import over_tasks

Scores = Mapping[str, Mapping[str, float]]
"""Score of each candidate on each family, ``scores[family][candidate]``."""


@dataclasses.dataclass(frozen=True)
class Fold:
    """One style left out.

    Attributes:
        style: name of the style.
        chosen: the candidate of the least score on the families of all other styles.
        score: the mean score of the chosen one on the families of ``style``.
        best: the candidate that would have been the best on them.
        best_score: its mean score there.
    """

    style: str
    chosen: str
    score: float
    best: str
    best_score: float


def choose(scores: Scores, families: Sequence[str], worst_weight: float) -> str:
    """Returns the candidate of the least score over some families.

    Args:
        scores: scores of each candidate on each family; less is better.
        families: those that choose.
        worst_weight: weight of the worst fifth of the families, see `over_tasks`.

    Returns:
        Its name; of equals the first.

    >>> choose({"a": {"x": 0.1, "y": 0.2}, "b": {"x": 0.5, "y": 0.0}}, ["a", "b"], 0.0)
    'y'
    """
    totals = totals_of(scores, families, worst_weight)
    return min(totals, key=lambda name: totals[name])


def totals_of(
    scores: Scores, families: Sequence[str], worst_weight: float
) -> dict[str, float]:
    """Score of every candidate over some families.

    Args:
        scores: scores of each candidate on each family.
        families: at least one.
        worst_weight: see `over_tasks`.

    Raises:
        ValueError: no families.
    """
    if not families:
        raise ValueError("a choice needs at least one family")
    names = list(scores[families[0]])
    table = np.array([[scores[family][name] for name in names] for family in families])
    totals = over_tasks(table, worst_weight)
    return dict(zip(names, map(float, totals), strict=True))


def leave_one_style_out(
    scores: Scores, styles: Mapping[str, Sequence[str]], worst_weight: float
) -> list[Fold]:
    """Chooses by all styles but one, and reads the choice on that one.

    Args:
        scores: scores of each candidate on each family.
        styles: families of each style; at least two styles.
        worst_weight: see `over_tasks`; the left-out style is read by its mean.

    Returns:
        A fold for each style, in order.

    Raises:
        ValueError: fewer than two styles.
    """
    if len(styles) < 2:
        raise ValueError(
            f"there is one style, {', '.join(styles)}; name at least two to leave one "
            "out"
        )
    folds = []
    for style, held_out in styles.items():
        others = [f for name, each in styles.items() if name != style for f in each]
        chosen = choose(scores, others, worst_weight)
        there = totals_of(scores, held_out, worst_weight=0.0)
        best = min(there, key=lambda name: there[name])
        folds.append(Fold(style, chosen, there[chosen], best, there[best]))
    return folds


def transferred(
    scores: Scores, styles: Mapping[str, Sequence[str]], worst_weight: float
) -> float:
    """Score over all families if each is run with what the other styles chose.

    Args:
        scores: scores of each candidate on each family.
        styles: families of each style.
        worst_weight: see `over_tasks`.
    """
    folds = leave_one_style_out(scores, styles, worst_weight)
    each = [scores[f][fold.chosen] for fold in folds for f in styles[fold.style]]
    return float(over_tasks(np.array(each), worst_weight))
