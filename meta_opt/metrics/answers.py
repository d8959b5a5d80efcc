"""How near written answers are to those that people gave."""

import re
import string
from collections.abc import Sequence

_MARKS = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    """Lower case, no punctuation, single spaces: what an exact match compares.

    >>> plain(" A red  Fish. ")
    'a red fish'
    """
    return re.sub(r"\s+", " ", text.lower().translate(_MARKS)).strip()


def answer_metrics(
    written: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Exact match, BLEU and chrF of a corpus, by sacrebleu (Post 2018), lower case.

    Args:
        written: N answers.
        references: of each, those that are right.

    Returns:
        ``exact_match``: percent whose `plain` form is that of a reference; ``bleu`` and
        ``chrf``: 0 to 100.

    Raises:
        ValueError: no answer, or none to compare one with.

    >>> answer_metrics(["a Red fish."], [["a red fish"]])["exact_match"]
    100.0
    """
    import sacrebleu

    if not written or len(written) != len(references) or not all(references):
        raise ValueError(
            f"{len(written)} answers and {len(references)} lists of references; each "
            "answer needs at least one"
        )
    hits = [
        plain(text) in {plain(reference) for reference in right}
        for text, right in zip(written, references, strict=True)
    ]
    # A list for each rank of a reference; shorter ones are filled with the first.
    most = max(len(right) for right in references)
    columns = [
        [(right[i] if i < len(right) else right[0]).lower() for right in references]
        for i in range(most)
    ]
    lower = [text.lower() for text in written]
    return {
        "exact_match": 100.0 * sum(hits) / len(hits),
        "bleu": sacrebleu.corpus_bleu(lower, columns).score,
        "chrf": sacrebleu.corpus_chrf(lower, columns).score,
    }
