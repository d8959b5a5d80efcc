"""Metrics of generated answers."""

import re
import string
from collections.abc import Sequence

# Not the point of a decimal fraction, nor the sign of a number.
_MARKS = re.compile(rf"(?!(?<=\d)\.\d|(?<!\w)-\d)[{re.escape(string.punctuation)}]")


def plain(text: str) -> str:
    """Normalises a text for exact match: lower case, no punctuation, single spaces.

    Decimal points and signs of numbers are kept, and so is a text of punctuation alone,
    such as an operator.

    >>> plain(" A red  Fish. "), plain("-1.5."), plain(" + ")
    ('a red fish', '-1.5', '+')
    """
    lower = text.lower()
    kept = _MARKS.sub("", lower)
    return re.sub(r"\s+", " ", kept if kept.strip() else lower).strip()


def answer_metrics(
    written: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Exact match, and lower-case corpus BLEU and chrF by sacrebleu (Post 2018).

    Args:
        written: N generated answers.
        references: for each, the right answers.

    Returns:
        ``exact_match``: percentage of answers that equal a reference after `plain`;
        ``bleu`` and ``chrf``: 0 to 100.

    Raises:
        ValueError: no answers, or an answer without references.

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
    # sacrebleu takes one list per reference index; missing references repeat the first.
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
