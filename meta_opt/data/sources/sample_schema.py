"""The schema of a user's samples, which is the same for all commands.

========== =================================================================
key        value
========== =================================================================
``image``  path of an image, relative to the file that names it
``audio``  path of a sound file
``video``  path of an animated WebP, GIF or PNG
``text``   a text that belongs to it: a caption, a title, a sentence; or a list
           of such texts, of which commands that read one take the first
``prompt`` a question, or what else is asked; needs one of the next three
``label``  a class: a text, an integer, true or false
``score``  a number
``target`` a text that is to be written, a caption or an answer; or a list of
           right ones
``split``  ``train``, ``validation`` or ``test``; without it a hash decides
========== =================================================================

A null, and an empty ``text`` or ``prompt``, count as a missing key.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from meta_opt.data.records import SPLITS
from meta_opt.error_messages import truncate
from meta_opt.types import near_match

MEDIA = ("image", "video", "audio")
"""Keys of media files; the first one of a sample decides its split."""
ASKED = ("label", "score", "target")
"""Keys of targets."""
KEYS = ("image", "audio", "video", "text", "prompt", *ASKED, "split")

_ALIKE = 0.75
"""Similarity of `difflib` from which on a key counts as misspelt."""
_OTHER_NAMES = {
    "caption": "target",
    "answer": "target",
    "question": "prompt",
    "file_name": "image",
    "class": "label",
}
"""Names of a key in other formats and in earlier versions of this one."""


class Media(NamedTuple):
    """Location of an image, audio or video clip: a whole file, or a part of one.

    Attributes:
        file: the path.
        offset: offset of the first byte.
        size: size in bytes; -1 for the whole file.
        member: name of the member if ``file`` is a tar file, else "".
    """

    file: Path
    offset: int = 0
    size: int = -1
    member: str = ""

    @property
    def name(self) -> str:
        """Its name in messages."""
        return str(self.file / self.member) if self.member else str(self.file)

    def exists(self) -> bool:
        """Whether the file exists; false for names that exceed the system's limit.

        >>> Media(Path("a" * 1000)).exists()
        False
        """
        try:
            return self.file.is_file()
        except OSError:
            return False

    def read(self) -> bytes:
        """Reads its bytes; raises OSError if the file cannot be read."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)


@dataclasses.dataclass(frozen=True, slots=True)
class Fields:
    """The values of a sample's keys (see the module); media files are not opened.

    Attributes:
        files: paths by key, one of `MEDIA`.
        text: all texts of the sample.
        prompt: the question; "" for none.
        label: name of the class.
        score: regression target.
        target: all right answers.
        split: split of the sample, if it is given.
        given_label: the label as given, of which ``label`` is the name.
    """

    files: Mapping[str, str]
    text: tuple[str, ...] = ()
    prompt: str = ""
    label: str | None = None
    score: float | None = None
    target: tuple[str, ...] = ()
    split: str | None = None
    given_label: str | int | float | bool | None = None

    @property
    def reads(self) -> str:
        """The text input of a model: the first text, then the prompt."""
        return "\n".join(part for part in (*self.text[:1], self.prompt) if part)


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One of a user's samples.

    Attributes:
        where: file and line, or tar file and sample, for messages.
        key: key that decides its split; samples of the same file share it.
        media: media by key, one of `MEDIA`.
        fields: texts, targets and split.
    """

    where: str
    key: str
    media: Mapping[str, Media]
    fields: Fields

    @property
    def name(self) -> str:
        """The name of its first file, or its location."""
        return next((m.name for m in self.media.values()), self.where)


def parse_fields(value: Any, asked: bool = True) -> tuple[Fields, tuple[str, ...]]:
    """Checks a JSON value against the schema.

    Args:
        value: JSON value of a line, or of a tar file's ``.json`` member.
        asked: whether a prompt needs a target.

    Returns:
        The fields, and the keys that are ignored since they do not resemble a missing
        key.

    Raises:
        ValueError: a value that is not an object or has no inputs, a misspelt key, or a
            value of the wrong type.

    >>> fields, ignored = parse_fields({"text": "well done", "label": 1, "id": 7})
    >>> fields.text, fields.label, ignored
    (('well done',), '1', ('id',))
    """
    if not isinstance(value, Mapping):
        each = "; write an object a line" if isinstance(value, list) else ""
        raise ValueError(f"needs a JSON object, not {_shown(value)}{each}")
    given = {key: x for key, x in value.items() if x is not None}
    ignored = tuple(key for key in given if key not in KEYS)
    for key in ignored:
        _check_unknown(key, given)
    fields = Fields(
        files={key: _path(key, given[key]) for key in MEDIA if key in given},
        text=_texts("text", given.get("text", "")),
        prompt=_text("prompt", given.get("prompt", "")),
        label=_label(given["label"]) if "label" in given else None,
        score=_score(given["score"]) if "score" in given else None,
        target=_texts("target", given.get("target", "")),
        split=_split(given["split"]) if "split" in given else None,
        given_label=given.get("label"),
    )
    if "target" in given and not fields.target:
        raise ValueError("an empty `target`")
    if not (fields.files or fields.text or fields.prompt):
        raise ValueError("needs one of image, audio, video, text, prompt")
    answered = bool(fields.target) or "label" in given or "score" in given
    if asked and fields.prompt and not answered:
        answer = "; here it stands in `text`" if fields.text else ""
        raise ValueError(f"the answer to a `prompt` must be its `target`{answer}")
    return fields, ignored


def _check_unknown(key: str, given: Mapping[str, Any]) -> None:
    """Raises ValueError for an unknown key that resembles a missing one."""
    missing = [known for known in KEYS if known not in given]
    meant = difflib.get_close_matches(key.casefold(), missing, n=1, cutoff=_ALIKE)
    if (other := _OTHER_NAMES.get(key.casefold())) in missing:
        meant = [str(other)]
    if meant:
        raise ValueError(
            f"no key {key!r}; did you mean {meant[0]!r}? (keys: {', '.join(KEYS)})"
        )


def _shown(value: Any) -> str:
    return truncate(repr(value))


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"`{key}` must be a string, not {_shown(value)}")
    return value if value.strip() else ""


def _texts(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) if value.strip() else ()
    if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
        raise ValueError(
            f"`{key}` must be a string or a list of strings, not {_shown(value)}"
        )
    if not all(x.strip() for x in value):
        raise ValueError(f"an empty string in the list `{key}`")
    return tuple(value)


def _path(key: str, value: Any) -> str:
    path = _text(key, value)
    if not path or "://" in path:
        raise ValueError(f"`{key}` must be the path of a file, not {_shown(value)}")
    return path


def _label(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # Tables with empty cells turn 1 into 1.0.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            "`label` must be a class: a string, an integer, true or false, not "
            f"{_shown(value)} (a number that is to be predicted is a `score`)"
        )
    return value.strip()


def _score(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"`score` must be a number, not {_shown(value)}")
    largest = float(np.finfo(np.float32).max)
    # NaN fails this check, too.
    if not -largest <= value <= largest:
        raise ValueError(f"`score`={_shown(value)} is not finite in 32 bits")
    return float(value)


def _split(value: Any) -> str:
    if value not in SPLITS:
        raise ValueError(
            f"no split {_shown(value)}{near_match(str(value), SPLITS)} "
            f"(splits: {', '.join(SPLITS)})"
        )
    return value
