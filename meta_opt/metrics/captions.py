"""Caption metrics, as reported for YouCook2, MSR-VTT and COCO."""

import re
import types
from collections.abc import Callable, Collection, Sequence

from meta_opt.metrics.cider import cider_d
from meta_opt.metrics.meteor import meteor

_PUNCTUATION = frozenset("'' ' `` ` ( ) [ ] { } . ? ! , : - -- ... ;".split())
_BETA = 1.2


def words(text: str) -> list[str]:
    """Words of a caption in lower case, without punctuation.

    Uses NLTK's Penn Treebank tokenizer: like Stanford's, which the COCO tools use, it
    splits clitics and keeps hyphens. Unlike there, brackets are dropped, and so are
    full stops after abbreviations within a line.

    >>> words("Don't stir-fry the chef's onions. Add 1/2 cup (100 ml), then salt!")
    ... # doctest: +NORMALIZE_WHITESPACE
    ['do', "n't", 'stir-fry', 'the', 'chef', "'s", 'onions', 'add', '1/2', 'cup',
     '100', 'ml', 'then', 'salt']
    """
    from nltk.tokenize import TreebankWordTokenizer

    # Remove full stops at the ends of words; the tokenizer splits only the last one.
    text = re.sub(r"\.+(?!\S*\w)", " ", text.lower())
    found = TreebankWordTokenizer().tokenize(text)
    return [word for word in found if word not in _PUNCTUATION]


def caption_metrics(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    synonyms: Callable[[str], Collection[str]] | None = None,
) -> dict[str, float]:
    r"""BLEU, METEOR, ROUGE-L and CIDEr-D of a corpus of captions, in percent.

    Captions are tokenised by `words`.

    - BLEU of n-grams up to 3 and up to 4, by sacrebleu (Post 2018), without smoothing
      and with the length of the nearest reference.
    - METEOR (`meta_opt.metrics.meteor`) of exact words and stems. Without ``synonyms``
      it is lower than the Java tool's figure and does not compare with published ones;
      with them it still has no paraphrases.
    - ROUGE-L as COCO's tools have it: with the highest precision P and the highest
      recall R of the longest common subsequence over the references, each by
      rouge-score, the mean of
      :math:`(1 + \beta^2) P R / (R + \beta^2 P)`, :math:`\beta = 1.2`. The library's
      own F of several references has beta 1 and takes P and R from one of them.
    - CIDEr-D (`meta_opt.metrics.cider`), where 190 stands for the 1.90 that COCO's
      tools print; it can exceed 100.

    Args:
        candidates: N captions; those without words score zero.
        references: one or more references for each, with at least one word.
        synonyms: function that returns the synonyms of a word, for METEOR.

    Returns:
        ``bleu3``, ``bleu4``, ``meteor``, ``rouge_l`` and ``cider``.

    Raises:
        ValueError: if there is no caption, the numbers of candidates and of lists of
            references differ, or a list or a reference is empty.

    >>> fish, bird = "A red fish swims.", "The blue bird flies."
    >>> caption_metrics([fish, bird], [[fish], [bird, "A bird flies."]])["meteor"]
    100.0
    """
    if not candidates:
        raise ValueError("no captions to score; give at least one candidate")
    if len(candidates) != len(references):
        raise ValueError(
            f"{len(candidates)} candidates and {len(references)} lists of references; "
            f"index {min(len(candidates), len(references))} has only one of the two. "
            "Give a list of references for each candidate"
        )
    ours = [words(text) for text in candidates]
    theirs = []
    for i, several in enumerate(references):
        if isinstance(several, str):
            raise ValueError(
                f"references[{i}] is the string {several!r}; give a list of strings"
            )
        theirs.append([words(text) for text in several])
        if not theirs[i] or not all(theirs[i]):
            raise ValueError(
                f"references[{i}] is {list(several)}; give at least one reference, "
                "each with at least one word, or leave candidate and references out"
            )
    return {
        "bleu3": _bleu(ours, theirs, 3),
        "bleu4": _bleu(ours, theirs, 4),
        "meteor": 100 * meteor(ours, theirs, synonyms),
        "rouge_l": 100 * _rouge_l(ours, theirs),
        "cider": 100 * float(cider_d(ours, theirs).mean()),
    }


def _bleu(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    order: int,
) -> float:
    from sacrebleu.metrics import BLEU

    metric = BLEU(
        tokenize="none", smooth_method="none", max_ngram_order=order, force=True
    )
    # sacrebleu takes one list per reference index; missing references repeat the first.
    columns = [
        [
            " ".join(several[i] if i < len(several) else several[0])
            for several in references
        ]
        for i in range(max(map(len, references)))
    ]
    return metric.corpus_score([" ".join(c) for c in candidates], columns).score


def _rouge_l(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(
        ["rougeL"], tokenizer=types.SimpleNamespace(tokenize=str.split)
    )
    total = 0.0
    for candidate, several in zip(candidates, references, strict=True):
        found = [
            scorer.score(" ".join(reference), " ".join(candidate))["rougeL"]
            for reference in several
        ]
        precision = max(score.precision for score in found)
        recall = max(score.recall for score in found)
        if precision and recall:
            total += (
                (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
            )
    return total / len(candidates)
