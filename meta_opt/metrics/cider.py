"""CIDEr-D: TF-IDF similarity of n-grams with the references."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ORDERS = (1, 2, 3, 4)


def cider_d(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    sigma: float = 6.0,
) -> np.ndarray:
    r"""CIDEr-D of each candidate (Vedantam et al. 2015, arXiv:1411.5726, section 6).

    With g the vector over n-grams of counts times
    :math:`\log N - \log \max(1, \text{document frequency})`, where a document is all
    the references of one candidate, and l the number of words,

    .. math::
      \frac{10}{4 M} \sum_{n=1}^4 \sum_{m=1}^M
      e^{-(l(c) - l(s_m))^2 / 2 \sigma^2}\,
      \frac{\min(g^n(c), g^n(s_m)) \cdot g^n(s_m)}{\|g^n(c)\| \|g^n(s_m)\|}.

    Document frequencies are those of the evaluated set, so that values of different
    sets, or of subsets, are not comparable; with a single candidate all are zero.

    Args:
        candidates: N sequences of words, lower case.
        references: for each, M sequences of words, M at least 1.
        sigma: width of the length penalty, in words.

    Returns:
        float64 [N], 0 to 10. Tables report 100 times the mean.

    >>> fish, bird = "a red fish swims".split(), "the blue bird flies".split()
    >>> cider_d([fish, bird], [[fish], [bird]]).round(6).tolist()
    [10.0, 10.0]
    """
    counted = [[_ngrams(r) for r in several] for several in references]
    frequency = Counter(gram for several in counted for gram in set().union(*several))

    def vectors(grams: Counter) -> list[dict[tuple[str, ...], float]]:
        """One sparse vector per n-gram order."""
        parts: list[dict[tuple[str, ...], float]] = [{} for _ in _ORDERS]
        for gram, count in grams.items():
            rarity = math.log(len(references)) - math.log(max(1, frequency[gram]))
            parts[len(gram) - 1][gram] = count * rarity
        return parts

    scores = []
    for candidate, several, grams in zip(candidates, references, counted, strict=True):
        own = vectors(_ngrams(candidate))
        total = 0.0
        for reference, theirs in zip(several, map(vectors, grams), strict=True):
            difference = len(candidate) - len(reference)
            penalty = math.exp(-(difference**2) / (2 * sigma**2))
            total += penalty * sum(map(_clipped_cosine, own, theirs))
        scores.append(10 * total / (len(_ORDERS) * len(several)))
    return np.array(scores)


def _ngrams(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    """Counts of the n-grams of orders 1 to 4."""
    return Counter(
        tuple(words[i : i + n]) for n in _ORDERS for i in range(len(words) - n + 1)
    )


def _clipped_cosine(candidate: dict, reference: dict) -> float:
    """Cosine with the candidate clipped to the reference; 0 if undefined."""
    norms = math.hypot(*candidate.values()) * math.hypot(*reference.values())
    if not norms:
        return 0.0
    common = candidate.keys() & reference.keys()
    # The order of a set varies between runs; fsum does not depend on it.
    return (
        math.fsum(min(candidate[g], reference[g]) * reference[g] for g in common)
        / norms
    )
