"""Leave-one-style-out: how well weights selected on some styles do on another."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from meta_opt.meta_training.scoring import over_tasks

Scores = Mapping[str, Mapping[str, float]]
"""Score of each candidate on each family, ``scores[family][candidate]``."""


@dataclasses.dataclass(frozen=True)
class Fold:
    """The result of leaving out one style.

    Attributes:
        style: name of the style that is left out.
        chosen: candidate with the lowest score on the families of all other styles.
        score: mean score of ``chosen`` on the families of ``style``.
        best: candidate with the lowest mean score on the families of ``style``.
        best_score: mean score of ``best`` on the families of ``style``.
    """

    style: str
    chosen: str
    score: float
    best: str
    best_score: float


def choose(scores: Scores, families: Sequence[str], worst_weight: float) -> str:
    """Returns the candidate with the lowest score over some families.

    Args:
        scores: scores of each candidate on each family; lower is better.
        families: families to select by.
        worst_weight: weight of the worst fifth of the families, see `over_tasks`.

    Returns:
        Name of the candidate; the first one if several are equal.

    >>> choose({"a": {"x": 0.1, "y": 0.2}, "b": {"x": 0.5, "y": 0.0}}, ["a", "b"], 0.0)
    'y'
    """
    totals = totals_of(scores, families, worst_weight)
    return min(totals, key=lambda name: totals[name])


def totals_of(
    scores: Scores, families: Sequence[str], worst_weight: float
) -> dict[str, float]:
    """Returns the score of every candidate over some families.

    Args:
        scores: scores of each candidate on each family.
        families: names of at least one family.
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
    """Selects by all styles but one, and evaluates the selection on that one.

    Args:
        scores: scores of each candidate on each family.
        styles: families of each style; at least two styles.
        worst_weight: see `over_tasks`; used for the selection, while the evaluation is
            the mean over the families of the style.

    Returns:
        A fold for each style, in order.

    Raises:
        ValueError: fewer than two styles.
    """
    if len(styles) < 2:
        raise ValueError(
            f"styles has {', '.join(styles) or 'no style'} alone; name at least two to "
            "leave one out"
        )
    folds = []
    for style, held_out in styles.items():
        others = [f for name, each in styles.items() if name != style for f in each]
        chosen = choose(scores, others, worst_weight)
        means = totals_of(scores, held_out, worst_weight=0.0)
        best = min(means, key=lambda name: means[name])
        folds.append(Fold(style, chosen, means[chosen], best, means[best]))
    return folds


def transferred(
    scores: Scores,
    styles: Mapping[str, Sequence[str]],
    folds: Sequence[Fold],
    worst_weight: float,
) -> float:
    """Returns the score over all families with the candidates that others selected.

    On each family, the candidate is the one selected by the styles it does not belong
    to.

    Args:
        scores: scores of each candidate on each family.
        styles: families of each style.
        folds: result of `leave_one_style_out`.
        worst_weight: see `over_tasks`.
    """
    each = [scores[f][fold.chosen] for fold in folds for f in styles[fold.style]]
    return float(over_tasks(np.array(each), worst_weight))
