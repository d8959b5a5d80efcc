"""Finds the columns that a model reads, and the one that it predicts."""

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meta_opt.data.records import SPLITS
from meta_opt.data.samples import MODALITIES
from meta_opt.data.sources.sample_schema import MEDIA, Media
from meta_opt.data.sources.webdataset import MEDIA_ENDINGS
from meta_opt.data.splits import named_split
from meta_opt.predictor.decision import Decision
from meta_opt.predictor.table import Row, Table, is_number
from meta_opt.types import near_match

TARGETS = ("label", "class", "category", "score", "rating", "target", "answer", "y")
"""Column names that indicate the target, in order of precedence."""
_CLASS_NAMES = ("label", "class", "category")
ALTERNATIVES = ("caption", "captions", "answer", "answers", "text", "texts", "target")
"""Column names whose list values are alternative correct texts."""
_MAX_INTEGER_CLASSES = 20
"""Maximum number of distinct integers that are interpreted as classes."""
_MAX_CATEGORY_WORDS = 6
"""Mean number of words above which repeated texts are not categories."""
_MIN_PATH_FRACTION = 0.9
"""Minimum fraction of a column's values that name files of one modality."""
_MIN_IDENTIFIERS = 20
"""Minimum number of values for a column to be recognised as identifiers."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a table by role.

    Attributes:
        kind: the task, one of `meta_opt.data.samples.KINDS`.
        media: the column of files of each modality.
        text: columns that are read as text, in order.
        target: the column to predict; "" for retrieval.
        labels: type of the classes: ``text``, ``integer`` or ``truth``.
        split: the column of ``train``, ``validation`` or ``test``; "" for none.
        center: value subtracted from scores before training.
        scale: value that centered scores are divided by.
    """

    kind: str
    media: Mapping[str, str]
    text: tuple[str, ...] = ()
    target: str = ""
    labels: str = "text"
    split: str = ""
    center: float = 0.0
    scale: float = 1.0

    @property
    def modalities(self) -> tuple[str, ...]:
        """Input modalities, in the order of `meta_opt.data.samples.MODALITIES`."""
        there = {*self.media, *(("text",) if self.text else ())}
        return tuple(m for m in MODALITIES if m in there)


def find_columns(
    table: Table, target: str | None = None
) -> tuple[Columns, list[Decision]]:
    """Finds the columns of inputs and target, and the task.

    Columns of files are recognised by file extensions; the target by its name
    (`TARGETS`), or as the only column with few distinct values. The target's values
    decide whether the task is classification, regression or text generation. Images and
    texts without a target are a retrieval task.

    Args:
        table: training samples.
        target: name of the target's column; None finds it.

    Raises:
        ValueError: no target; a target that is not a column, has values of two types,
            or has a single class; no input; or missing files.

    >>> from meta_opt.predictor.table import read_table
    >>> rows = [{"review": f"it is {x}", "label": x} for x in ("good", "bad") * 8]
    >>> columns, _ = find_columns(read_table(rows))
    >>> columns.kind, columns.text, columns.target
    ('classify', ('review',), 'label')
    """
    names = table.columns()
    values = {n: [r.values[n] for r in table.rows if n in r.values] for n in names}
    decisions: list[Decision] = []
    split = _split_column(table, values)
    media = _media_columns(table, {n: v for n, v in values.items() if n != split})
    files = {name for columns in media.values() for name in columns}
    left = [n for n in names if n != split and n not in files]
    found, why = _target_column(table, target, left, values, bool(media))
    kind, labels = "retrieve", "text"
    if found:
        kind, labels, about = _task_of(table, found, values[found], bool(media))
        decisions.append(Decision("target", found, why))
        decisions.append(Decision("task", kind, about))
    chosen, ignored = _one_per_modality(media, values)
    decisions += ignored
    text, about_texts = _text_columns([n for n in left if n != found], values)
    decisions += about_texts
    columns = Columns(kind, chosen, text, found, labels, split)
    if not columns.modalities:
        raise ValueError(
            f"{table.name}: nothing to read besides the target {found!r}: no text and "
            f"no column of files (columns: {', '.join(names)})"
        )
    if not found:
        if set(columns.modalities) != {"image", "text"}:
            raise ValueError(
                f"{table.name}: no target: name its column, target=... (columns: "
                f"{', '.join(names)}), or give images with texts for retrieval"
            )
        decisions.insert(0, Decision("task", "retrieve", why))
    counts = {m: _count(table.rows, columns, m) for m in columns.modalities}
    about = ", ".join(f"{m} in {n} of {len(table.rows)}" for m, n in counts.items())
    about += " samples"
    decisions.append(Decision("modalities", list(columns.modalities), about))
    return columns, decisions


def _count(rows: Sequence[Row], columns: Columns, modality: str) -> int:
    names = columns.text if modality == "text" else (columns.media[modality],)
    return sum(any(name in row.values for name in names) for row in rows)


def _split_column(table: Table, values: Mapping[str, Sequence[Any]]) -> str:
    """Returns the name of the column of splits; "" for none.

    Raises:
        ValueError: a split column with values that are not names of splits.
    """
    name = next((n for n in values if n.casefold() == "split"), "")
    unknown = {str(x): None for x in values.get(name, ()) if named_split(x) is None}
    if not name or len(unknown) == len({str(x) for x in values[name]}):
        return ""
    if unknown:
        raise ValueError(
            f"{table.name}: the column {name!r} has {', '.join(map(repr, unknown))} "
            f"besides names of splits; use {', '.join(SPLITS)}, or rename the column"
        )
    return name


def _media_columns(
    table: Table, values: Mapping[str, Sequence[Any]]
) -> dict[str, list[str]]:
    """Returns the columns of files by modality.

    Raises:
        ValueError: a column of paths of which none exists.
    """
    found: dict[str, list[str]] = {}
    for name, given in values.items():
        kinds = collections.Counter(_media_kind(name, x) for x in given)
        kind, count = kinds.most_common(1)[0] if kinds else ("", 0)
        if not kind or count < _MIN_PATH_FRACTION * len(given):
            continue
        files = [x for x in given if isinstance(x, str)]
        if address := next((x for x in files if "://" in x), ""):
            raise ValueError(
                f"{table.name}: the column {name!r} has URLs, such as {address}; "
                "nothing is downloaded: give paths of files"
            )
        if files and not any(Media(table.folder / x).exists() for x in files):
            raise ValueError(
                f"{table.name}: none of the {len(files)} files of the column {name!r} "
                f"exists, such as {files[0]}; paths are relative to "
                f"{table.folder.absolute()}"
            )
        found.setdefault(kind, []).append(name)
    return found


def _media_kind(name: str, value: Any) -> str:
    """Returns the modality of the file that a value names; "" if it names none."""
    if isinstance(value, Media):
        return name
    if not isinstance(value, str) or "\n" in value:
        return ""
    path = value.partition("?")[0] if "://" in value else value
    kind = MEDIA_ENDINGS.get(Path(path).suffix.lower(), "")
    # GIF and WebP files are images or videos.
    return "video" if kind == "image" and name == "video" else kind


def _one_per_modality(
    media: Mapping[str, Sequence[str]], values: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, str], list[Decision]]:
    """Returns one column per modality: the one with its name, or with the most files.

    Also returns decisions about the columns that are not read.
    """
    chosen, decisions = {}, []
    for kind, names in media.items():
        best = max(names, key=lambda n: (n == kind, len(values[n]), -names.index(n)))
        chosen[kind] = best
        if others := [n for n in names if n != best]:
            reason = (
                f"a model reads one {kind} per sample; {best!r} has "
                f"{len(values[best])} files, {', '.join(map(repr, others))} left out"
            )
            decisions.append(Decision(f"{kind}_column", best, reason))
    return {m: chosen[m] for m in MEDIA if m in chosen}, decisions


def _target_column(
    table: Table,
    target: str | None,
    left: Sequence[str],
    values: Mapping[str, Sequence[Any]],
    media: bool,
) -> tuple[str, str]:
    """Returns the name of the target's column ("" for none), and the reason."""
    if target is not None:
        if target not in values:
            raise ValueError(
                f"{table.name} has no column {target!r} with values"
                f"{near_match(target, values)} (columns: {', '.join(values)})"
            )
        if target not in left:
            raise ValueError(
                f"{table.name}: the target {target!r} has files or splits; it must "
                "have classes, numbers or texts"
            )
        return target, "as given"
    by_name = {name.casefold(): name for name in reversed(left)}
    for name in TARGETS:
        if name in by_name:
            return by_name[name], f"by name, the first found of {', '.join(TARGETS)}"
    few = [name for name in left if _is_category(values[name])]
    if len(few) == 1:
        return few[0], (
            f"the only column with few distinct values: {len(set(values[few[0]]))} in "
            f"{len(values[few[0]])} samples"
        )
    texts = [n for n in left if any(isinstance(x, str | list) for x in values[n])]
    if media and not few and (texts or not left):
        return "", "images and texts, and no target"
    # Images without texts usually come with a numeric target.
    few = few or [name for name in left if name not in texts]
    several = f" ({', '.join(map(repr, few))} might be it)" if few else ""
    raise ValueError(
        f"{table.name}: no target{several}: name its column, target=... (columns: "
        f"{', '.join(values)})"
    )


def _is_category(values: Sequence[Any]) -> bool:
    """Returns whether the values are few and repeated, like class names."""
    if any(isinstance(x, list | float | Media) for x in values):
        return False
    distinct = len(set(map(str, values)))
    return (
        1 < distinct <= max(2, len(values) // 4)
        and _mean_words(values) <= _MAX_CATEGORY_WORDS
    )


def _mean_words(values: Sequence[Any]) -> float:
    return sum(len(str(x).split()) for x in values) / max(len(values), 1)


def _task_of(
    table: Table, name: str, values: Sequence[Any], media: bool
) -> tuple[str, str, str]:
    """Returns the task for a target, the type of its classes, and the reason."""
    groups: dict[str, list[Any]] = {}
    for value in values:
        groups.setdefault(_type_of(value), []).append(value)
    if groups.keys() == {"integer", "number"}:
        groups = {"number": list(values)}
    if len(groups) > 1:
        first = {
            kind: next(
                (r.where, r.values[name])
                for r in table.rows
                if name in r.values and _type_of(r.values[name]) == kind
            )
            for kind in groups
        }
        listed = ", ".join(
            f"{len(x)} of type {kind}, such as {first[kind][1]!r} ({first[kind][0]})"
            for kind, x in groups.items()
        )
        raise ValueError(
            f"{table.name}: the target {name!r} has values of two kinds: {listed}; "
            "use one of them"
        )
    (kind,) = groups
    # The numbers 1 and 1.0 are the same class.
    distinct = len(set(values if kind == "number" else map(str, values)))
    about = f"{len(values)} values of type {kind}, {distinct} of them distinct"
    if kind == "texts":
        _check_not_labels(table, name, values)
        if not media:
            raise ValueError(
                f"{table.name}: the target {name!r} has lists of texts, and text "
                "generation needs images, audio or video"
            )
        return "caption", "text", f"{about}: a text to generate"
    if distinct == 1:
        raise ValueError(
            f"{table.name}: all {len(values)} samples have the same class or value "
            f"{values[0]!r} in {name!r}; there is nothing to learn"
        )
    named = name.casefold() in _CLASS_NAMES
    if kind == "truth":
        return "classify", "truth", f"{about}: two classes"
    if kind in ("integer", "number"):
        whole = all(isinstance(x, int) or x.is_integer() for x in values)
        few = distinct <= _MAX_INTEGER_CLASSES and 2 * distinct <= len(values)
        if whole and (named or (few and name.casefold() not in ("score", "rating"))):
            return "classify", "integer", f"{about}: classes"
        return "score", "text", f"{about}: a number to predict"
    if named or (
        2 * distinct <= len(values) and _mean_words(values) <= _MAX_CATEGORY_WORDS
    ):
        return "classify", "text", f"{about}: classes"
    _check_not_numbers(table, name, values)
    if media:
        return "caption", "text", f"{about}: a text to generate"
    raise ValueError(
        f"{table.name}: the target {name!r} has {about}: too many for classes, and "
        "text generation needs images, audio or video"
    )


def _check_not_labels(table: Table, name: str, values: Sequence[list]) -> None:
    """Raises ValueError for lists of classes, as opposed to alternative texts."""
    texts = [text for value in values for text in value]
    # Alternative answers may coincide, but a list of classes has no duplicates.
    repeated = any(len(set(map(str, value))) < len(value) for value in values)
    if (
        name.casefold() in ALTERNATIVES
        or repeated
        or _mean_words(texts) > _MAX_CATEGORY_WORDS
    ):
        return
    if not (name.casefold() in _CLASS_NAMES or _is_category(texts)):
        return
    several = next((value for value in values if len(value) > 1), None)
    if several is None:
        raise ValueError(
            f"{table.name}: the target {name!r} has lists of one class, such as "
            f"{values[0]!r}; write the class without a list"
        )
    raise ValueError(
        f"{table.name}: the target {name!r} has lists of classes, such as {several!r}; "
        "a sample has one class: train a model for each class, with true or false as "
        "its target"
    )


def _check_not_numbers(table: Table, name: str, values: Sequence[Any]) -> None:
    """Raises ValueError if some numbers are written as text or in another format."""
    numbers = sum(map(is_number, values))
    # Also those with a decimal comma, as spreadsheets of some languages write them.
    if 2 * sum(is_number(x.replace(",", ".")) for x in values) <= len(values):
        return
    other = [
        row
        for row in table.rows
        if name in row.values and not is_number(row.values[name])
    ]
    if not other:
        raise ValueError(
            f"{table.name}: the values of the target {name!r} are numbers written as "
            f"texts, such as {values[0]!r}; write them without quotes"
        )
    raise ValueError(
        f"{table.name}: {numbers} of {len(values)} values of the target {name!r} are "
        f"numbers, and {other[0].values[name]!r} ({other[0].where}) is not; write it "
        "as a number with a decimal point and without units, or remove it"
    )


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, list):
        return "texts"
    if isinstance(value, int):
        return "integer"
    return "number" if isinstance(value, float) else "text"


def _text_columns(
    names: Sequence[str], values: Mapping[str, Sequence[Any]]
) -> tuple[tuple[str, ...], list[Decision]]:
    """Returns the columns that are read as text; identifiers are left out."""
    kept, decisions = [], []
    for name in names:
        given = values[name]
        if _is_identifier(given):
            reason = (
                f"all {len(given)} values differ, such as "
                f"{str(given[0])[:40]!r}: an identifier"
            )
            decisions.append(Decision("ignored_column", name, reason))
        else:
            kept.append(name)
    if len(kept) > 1:
        reason = f"{len(kept)} columns without files; each is a line of the text"
        decisions.append(Decision("text_columns", kept, reason))
    return tuple(kept), decisions


def _is_identifier(values: Sequence[Any]) -> bool:
    if len(values) < _MIN_IDENTIFIERS or any(
        isinstance(x, float | list | bool) for x in values
    ):
        return False
    if all(isinstance(x, int) for x in values):
        steps = {b - a for a, b in itertools.pairwise(values)}
        return steps == {1}
    alone = all(len(str(x).split()) == 1 for x in values)
    digits = sum(any(c.isdigit() for c in str(x)) for x in values)
    # Single words without digits, such as names of emoji, are texts.
    return alone and len(set(values)) == len(values) and digits > 0.5 * len(values)
