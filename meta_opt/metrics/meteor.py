"""METEOR 1.5 with the stages that need no data: exact words and stems.

The tool of Denkowski and Lavie also matches WordNet synonyms and paraphrases from a
table. Without them fewer words match, so that scores are lower than the tool's default
and not comparable with published ones. They equal those of the tool with ``-m "exact
stem" -w "1.0 0.6"`` and the same function words, except in sentences with several words
of the same stem, where the tool's search sometimes leaves one of them unmatched.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
"""METEOR 1.5's parameters for English, tuned on rankings: weight of recall, exponent
and weight of the fragmentation penalty, weight of content words."""

EXACT, STEM, SYNONYM = 1.0, 0.6, 0.8
"""Weights of the matching stages."""

FUNCTION_WORDS = frozenset(
    "a an the this that these those and or but if of to in on at by for with from as "
    "into over up down out off about after before than i you he she it we they me him "
    "her us them my your his its our their who which what there here when is are was "
    "were be been am has have had do does did will would can could may not no n't 's "
    "all some more other also so then".split()
)
"""Frequent function words; the tool's list was derived from a news corpus."""

_BEAM = 40


def meteor(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    synonyms: Callable[[str], Collection[str]] | None = None,
    function_words: Collection[str] = FUNCTION_WORDS,
) -> float:
    r"""METEOR of a corpus (Denkowski and Lavie 2014, section 2).

    Words are aligned one to one (`align`), each pair with the weight w of the first
    stage at which it matches; a chunk is a sequence of pairs that are adjacent and in
    order on both sides. With :math:`\delta_c` and :math:`\delta_r` the weights of
    words, :math:`\delta` of content words and :math:`1 - \delta` of function words,

    .. math::
      P = \frac{\sum_{matched} w\, \delta_c}{\sum_c \delta_c}, \quad
      R = \frac{\sum_{matched} w\, \delta_r}{\sum_r \delta_r}, \quad
      F = \frac{P R}{\alpha P + (1 - \alpha) R}, \quad
      \Big(1 - \gamma \Big(\frac{chunks}{matches}\Big)^\beta\Big) F.

    Of several references the best-scoring one counts. The corpus score is computed from
    sums over sentences rather than as a mean of their scores; a sentence that equals
    its reference adds no chunk.

    Args:
        candidates: N sequences of words, lower case.
        references: for each, one or more sequences of words.
        synonyms: function that returns the synonyms of a word, such as ``lambda word:
            table.get(word, ())``. None disables this stage.
        function_words: words with a lower weight.

    Returns:
        The score, 0 to 1; 0 if nothing matches.

    >>> fish = "a red fish".split()
    >>> meteor([fish], [[fish]]), meteor([["fishes"]], [[["fish"]]])
    (1.0, 0.6)
    """
    from nltk.stem.snowball import SnowballStemmer

    stem = SnowballStemmer("english").stem
    stems: dict[str, str] = {}
    related: dict[str, Collection[str]] = {}
    for words in (*candidates, *(r for several in references for r in several)):
        for word in words:
            if word not in stems:
                stems[word] = stem(word)
                related[word] = synonyms(word) if synonyms else ()

    def match(a: str, b: str) -> float:
        if a == b:
            return EXACT
        if stems[a] == stems[b]:
            return STEM
        return SYNONYM if a in related[b] or b in related[a] else 0.0

    def weight(word: str) -> float:
        return 1 - DELTA if word in function_words else DELTA

    def counts(candidate: Sequence[str], reference: Sequence[str]) -> np.ndarray:
        """The statistics of a score, which are summed over sentences."""
        pairs = align([[match(a, b) for b in reference] for a in candidate])
        chunks = sum(
            not k or (i - 1, j - 1) != pairs[k - 1] for k, (i, j) in enumerate(pairs)
        )
        if chunks == 1 and len(pairs) == len(candidate) == len(reference):
            chunks = 0
        matched = [(candidate[i], reference[j]) for i, j in pairs]
        return np.array(
            [
                sum(match(a, b) * weight(a) for a, b in matched),
                sum(match(a, b) * weight(b) for a, b in matched),
                sum(map(weight, candidate)),
                sum(map(weight, reference)),
                len(pairs),
                chunks,
            ],
            float,
        )

    total = np.zeros(6)
    for candidate, several in zip(candidates, references, strict=True):
        total += max((counts(candidate, r) for r in several), key=_score)
    return _score(total)


def _score(counts: np.ndarray) -> float:
    of_candidate, of_reference, candidate, reference, matches, chunks = counts
    if not matches:
        return 0.0
    precision, recall = of_candidate / candidate, of_reference / reference
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    return float((1 - GAMMA * (chunks / matches) ** BETA) * mean)


def align(weights: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Aligns two sequences of words one to one, by a beam search.

    Args:
        weights: one row per word of the candidate and one column per word of the
            reference; 0 if the two do not match.

    Returns:
        Pairs of positions, ascending in the first, that maximise the sum of weights,
        then minimise the number of chunks, then the sum of distances.

    >>> align([[1, 0, 1], [0, 1, 0]])  # "the cat" and "the cat the"
    [(0, 0), (1, 1)]
    """
    # Beam state: cost, used positions, position of the previous word if it matched.
    beam: list[tuple] = [((0.0, 0, 0), 0, -2, ())]
    for i, row in enumerate(weights):
        best: dict[tuple[int, int], tuple] = {}
        for (gain, chunks, distance), taken, last, pairs in beam:
            steps = [((gain, chunks, distance), taken, -2, pairs)]
            for j, weight in enumerate(row):
                if weight and not taken >> j & 1:
                    cost = (
                        round(
                            gain - weight, 6
                        ),  # Rounded, so that equal sums compare as equal in any order.
                        chunks + (last != j - 1),
                        distance + abs(i - j),
                    )
                    steps.append((cost, taken | 1 << j, j, (*pairs, (i, j))))
            for state in steps:
                place = state[1:3]
                if place not in best or state[0] < best[place][0]:
                    best[place] = state
        beam = sorted(best.values(), key=lambda state: state[0])[:_BEAM]
    return list(min(beam, key=lambda state: state[0])[3])
