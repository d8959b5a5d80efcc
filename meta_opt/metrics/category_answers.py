r"""Lenient parsing and scoring of category answers of the form ``{"category": X}``.

Accepted are answers in another case or Unicode form; with single, double, typographic,
escaped or no quotes; with or without braces, a code fence, a list or a nested object
around them; with text before and after; the name of a category alone, after a list
marker or ``Answer:``; and slightly misspelt names. Answers that cannot be parsed, and
answers that list several categories, are wrong and counted separately from wrong
categories.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

LETTERS_PER_EDIT = 5
"""A name of L letters may be misspelt by ``L // LETTERS_PER_EDIT`` edits: 1 of
"fruit", 2 of "map symbol", none of "bird"."""

MAX_CHARACTERS = 4000
"""Largest number of characters of an answer that are parsed, which bounds the time for
endlessly repeating answers."""

_DOUBLE = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033"
_SINGLE = "\u2018\u2019\u201a\u201b\u2039\u203a\u2032\u00b4"
_QUOTES = str.maketrans(_DOUBLE + _SINGLE, '"' * len(_DOUBLE) + "'" * len(_SINGLE))
_ESCAPED = re.compile(r"(?<!\\)\\+(u[0-9a-f]{4}|[\"'/])", re.IGNORECASE)
_KEY = re.compile(r"(?<!\w)category[\"'`*_]{0,4}\s?(?:[:=]{1,2}>?|is\b)")
# The key of a JSON object, which has precedence over the word in running text.
_JSON_KEY = re.compile(r"[{,]\s*([\"'])category\1\s*:")
_NESTED = re.compile(r"[\s\[]*\{\s*([\"']?)\w+\1\s*:")
_FENCE = re.compile(r"```[ \t]*(?:json[0-9]?|text|plaintext)?", re.IGNORECASE)
# What may precede the name of a category alone.
_MARKER = re.compile(r"(?:[-*+\u2022\u2013]|\d{1,2}[.)])\s+")
_NEXT_ITEM = re.compile(rf"\s*\n\s*{_MARKER.pattern}")
_LABEL = re.compile(
    r"[*_`\"']{0,3}(?:(?:the|my|final|correct|best)\s){0,2}"
    r"answer[*_`\"']{0,3}\s?(?:[:=]|is\b)[*_`\"']{0,3}\s*"
)
_AROUND = " \t\n\"'`*{}[]()<>.,:;!?"
# The end of a name: not an apostrophe within a word; after other marks, any text may
# follow.
_END = re.compile(r"\s*(?:$|\n|[\"}\]).,;:!?<`*(|]|'(?!\w)|[-\u2013\u2014]+\s)")
# Separators between several names, as in {"category": ["fruit", "bird"]}.
_NEXT = re.compile(r"[\s\"'\])}*`]*(?:[,;/|&]|\band\b|\bor\b)[\s\"'\[({*`]*")
_COLON = re.compile(r"[\"']?\s*:")
_WELL_FORMED = re.compile(
    r'\s*\{\s*"category"\s*:\s*"(?:[^"\\\x00-\x1f]|\\.)*"\s*\}\s*', re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class CategoryAnswer:
    """A parsed answer.

    Attributes:
        category: index of the category; -1 if none was found.
        status: ``exact``, a category's name; ``nearest``, a category's name misspelt;
            ``unlisted``, a value that is not a category, or several; ``unparseable``,
            no value.
        well_formed: whether the answer is exactly the requested JSON object.
    """

    category: int
    status: str
    well_formed: bool


class CategoryParser:
    r"""Parses answers that name one of a list of categories.

    Args:
        categories: K names.

    Raises:
        ValueError: no categories, an empty name, or two names that differ only in case,
            spaces, quotes or Unicode form.

    Example:
        >>> parser = CategoryParser(["fruit", "road sign"])
        >>> parser("```\n{'category': 'Road sign'}\n```").category
        1
        >>> parser('{"category": "froit"}').status, parser("a picture").status
        ('nearest', 'unparseable')
    """

    def __init__(self, categories: Sequence[str]) -> None:
        self.categories = tuple(categories)
        if not self.categories:
            raise ValueError("no category to answer")
        self._names: dict[str, int] = {}
        for i, name in enumerate(self.categories):
            folded = _fold(name).strip()
            if not folded.strip(_AROUND):
                raise ValueError(f"category {i}, {name!r}, has no letters")
            if (other := self._names.setdefault(folded, i)) != i:
                raise ValueError(
                    f"categories {self.categories[other]!r} and {name!r} cannot be "
                    "told apart in answers: they differ in case, spaces, quotes or "
                    "Unicode form at most; rename one, or make them one"
                )
        # Longest first: "dress shoes" before "dress".
        self._longest = sorted(self._names, key=len, reverse=True)

    def __call__(self, text: str) -> CategoryAnswer:
        """Parses an answer; the first ``category`` with a value counts.

        The key of a JSON object has precedence over the word in running text.

        Args:
            text: any model output, of which the first `MAX_CHARACTERS` are parsed.
        """
        well_formed = _WELL_FORMED.fullmatch(text) is not None
        folded = _fold(text[:MAX_CHARACTERS])
        values = list(_values(folded))
        several = False
        for value in values or self._furthest_first(_alone(folded)):
            name, after = self._named(value)
            if name is not None:
                several = _other_elements(value, name) or self._lists_another(
                    name, after, () if values else (_NEXT_ITEM,)
                )
                if several:
                    break
                return CategoryAnswer(self._names[name], "exact", well_formed)
        # Without a key, running text must not match as a misspelt name.
        candidates = [_quoted(value) for value in values] or _alone(folded)
        several = several or any(map(_other_elements, values, candidates))
        for candidate in () if several else dict.fromkeys(candidates):
            name, distance = self._nearest(candidate.strip(_AROUND))
            if name is not None:
                status = "nearest" if distance else "exact"
                return CategoryAnswer(self._names[name], status, well_formed)
        said = any(candidate.strip(_AROUND) for candidate in candidates)
        status = "unlisted" if values and said else "unparseable"
        return CategoryAnswer(-1, status, well_formed)

    def _named(self, value: str) -> tuple[str | None, str]:
        """The category that a value begins with, and the remaining text."""
        opened = value.lstrip(" \t\n{([`*")
        quote = opened[:1] if opened[:1] in ('"', "'") else ""
        # A quote may be part of a name, such as 'n' roll.
        unquoted = opened[len(quote) :].lstrip()
        for start in dict.fromkeys((unquoted, opened, value.lstrip())):
            for name in self._longest:
                if not start.startswith(name):
                    continue
                after = start[len(name) :]
                # Within quotes, a comma is part of the value: "fruit, red".
                if quote and start is unquoted:
                    ends = re.match(rf"\s*(?:$|\n|\}}|[.]?\s*{quote}(?!\w))", after)
                else:
                    ends = _END.match(after)
                if ends:
                    return name, after
        return None, ""

    def _furthest_first(self, variants: Sequence[str]) -> list[str]:
        """Sorts variants of a text by how far to the right their category ends.

        A list marker or label may itself be a category: with the categories 0 and 1,
        ``1. 0`` answers 0.
        """
        return sorted(variants, key=lambda value: len(self._named(value)[1]))

    def _lists_another(
        self, name: str, after: str, items: Sequence[re.Pattern[str]]
    ) -> bool:
        """Whether an answer lists another category after the first.

        Args:
            name: name of the first category.
            after: text after the name.
            items: further patterns of separators between two names.
        """
        patterns = (_NEXT, *items)
        while between := next(filter(None, (p.match(after) for p in patterns)), None):
            text = after[between.end() :]
            for other in self._longest:
                if text.startswith(other):
                    after = text[len(other) :]
                    if _END.match(after) or any(p.match(after) for p in patterns):
                        break
            else:
                return False
            if other != name:
                return not _COLON.match(after)  # Another key of the object.
        return False

    def _nearest(self, value: str) -> tuple[str | None, int]:
        """The unique nearest category within the edit bound."""
        found = []
        for name in self._names:
            bound = len(name) // LETTERS_PER_EDIT
            if abs(len(name) - len(value)) > bound:
                continue
            distance = edit_distance(value, name.strip(_AROUND))
            if distance <= bound:
                found.append((distance, name))
        found.sort()
        if not found or (len(found) > 1 and found[0][0] == found[1][0]):
            return None, 0
        return found[0][1], found[0][0]


def edit_distance(a: str, b: str) -> int:
    """Edit distance: insertions, deletions and substitutions of letters.

    Levenshtein 1966; O(len(a) len(b)).

    >>> edit_distance("fruit", "fruits"), edit_distance("sitting", "kitten")
    (1, 3)
    """
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            before, row[j] = (
                row[j],
                min(row[j] + 1, row[j - 1] + 1, before + (letter != other)),
            )
    return row[-1]


def _fold(text: str) -> str:
    """Normalises case, Unicode form, quotes, escapes and spaces; keeps line breaks."""
    text = unicodedata.normalize("NFKC", _ESCAPED.sub(_unescape, text))
    text = text.translate(_QUOTES).casefold()
    text = text.replace("\\n", "\n")
    return re.sub(r"[^\S\n]+", " ", text)


def _unescape(found: re.Match[str]) -> str:
    code = found[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else code


def _alone(text: str) -> list[str]:
    """Variants of a text without a key: as it is, and without list marker and label."""
    variants = [_FENCE.sub("", text).strip()]
    for before in (_MARKER, _LABEL, _MARKER):
        if found := before.match(variants[-1]):
            variants.append(variants[-1][found.end() :])
    return variants


def _values(text: str) -> Iterator[str]:
    """The text after each ``category:``, to the end.

    Keys of objects come first, since a model may give reasons before its answer.
    """
    for key in (*_JSON_KEY.finditer(text), *_KEY.finditer(text)):
        value = text[key.end() :]
        # A nested object: {"category": {"name": "fruit"}}.
        while (nested := _NESTED.match(value)) is not None:
            value = value[nested.end() :]
        yield value


def _other_elements(value: str, name: str) -> bool:
    """Whether a value is a list with elements other than one name."""
    if not value.lstrip().startswith("["):
        return False
    elements = value.partition("]")[0].replace(name, "").split(",")
    return any(element.strip(_AROUND) for element in elements)


def _quoted(value: str) -> str:
    """A value up to the closing quote, brace or line break."""
    value = value.lstrip(" \t\n{([`*")
    if value[:1] in ('"', "'"):
        end = re.search(rf"{value[0]}(?!\w)|[}}\n]", value[1:])
        return value[1 : 1 + end.start()] if end else value[1:]
    end = re.search(r"[,}\]\n\"]|[.;](?:\s|$)", value)
    return value[: end.start()] if end else value


@dataclasses.dataclass(frozen=True)
class AnswerReport:
    """Statistics of N answers.

    Attributes:
        predictions: int [N], indices of categories; -1 for none.
        correct: number of right answers.
        knowledge_errors: number of answers with a wrong category.
        unlisted: number of answers with an unknown category, or several categories.
        unparseable: number of answers without a category (format errors).
        nearest: number of parsed answers that were misspelt.
        well_formed: number of answers that are exactly the requested JSON object.
    """

    predictions: np.ndarray
    correct: int
    knowledge_errors: int
    unlisted: int
    unparseable: int
    nearest: int
    well_formed: int

    def metrics(self) -> dict[str, float]:
        """Each count as a fraction of N; ``accuracy`` is that of correct answers."""
        counts = dataclasses.asdict(self)
        count = len(counts.pop("predictions"))
        counts["accuracy"] = counts.pop("correct")
        return {name: value / count for name, value in counts.items()}


def report_answers(
    written: Sequence[str], labels: np.ndarray, categories: Sequence[str]
) -> AnswerReport:
    """Parses answers and separates format errors from wrong categories.

    Args:
        written: N answers.
        labels: int [N], indices of the right categories.
        categories: K names.

    Raises:
        ValueError: no answers, different numbers of answers and labels, a label out of
            range, or as `CategoryParser`.

    Example:
        >>> answers = ['{"category": "fruit"}', "bird", "no idea", '{"category": "x"}']
        >>> report = report_answers(answers, np.zeros(4, int), ["fruit", "bird"])
        >>> report.correct, report.knowledge_errors, report.unparseable, report.unlisted
        (1, 1, 1, 1)
    """
    labels = np.asarray(labels)
    if not len(written) or labels.shape != (len(written),):
        raise ValueError(
            f"{len(written)} answers and labels of shape {labels.shape}; each answer "
            "needs one label"
        )
    if not 0 <= labels.min() <= labels.max() < len(categories):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()} but there are "
            f"{len(categories)} categories"
        )
    parser = CategoryParser(categories)
    answers = [parser(text) for text in written]
    predictions = np.asarray([answer.category for answer in answers])
    statuses = [answer.status for answer in answers]
    return AnswerReport(
        predictions=predictions,
        correct=int(np.sum(predictions == labels)),
        knowledge_errors=int(np.sum((predictions != labels) & (predictions >= 0))),
        unlisted=statuses.count("unlisted"),
        unparseable=statuses.count("unparseable"),
        nearest=statuses.count("nearest"),
        well_formed=sum(answer.well_formed for answer in answers),
    )
