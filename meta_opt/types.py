"""Aliases, the glossary of dimension names, and conventions of every floor.

Glossary of dimension letters, used in every docstring:

======  =====================================================
letter  meaning
======  =====================================================
B       batch
T       time (frames, optimizer steps); of losses ``[T]``, their number
S       sequence (text tokens)
H       heads; as ``[N, H]`` of an LSTM state, its hidden width
D       width of a representation
P       patches
K       classes
N       tensors under control of the optimizer (layers counted)
L       layers of a scan-stacked parameter (its leading axis)
======  =====================================================
"""

import contextlib
import dataclasses
import difflib
import os
import tempfile
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

PyTree: TypeAlias = Any
"""Any JAX pytree of arrays."""

Batch: TypeAlias = dict[str, np.ndarray]
"""``image`` uint8 [B, h, w, 3], ``text`` int32 [B, S] (0 pads), ``label`` int32 [B]."""

T = TypeVar("T")


def near_match(word: str, known: typing.Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` with the nearest known word, or ``""``."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_name(setting: str, value: str, known: typing.Collection[str]) -> None:
    """Raises ValueError for a value that is not known, naming the nearest one."""
    if value not in known:
        raise ValueError(
            f"{setting}={value!r} is none of {', '.join(known)}"
            f"{near_match(value, known)}"
        )


def check_keys(
    name: str, mapping: Mapping[str, Any], known: typing.Collection[str]
) -> None:
    """Raises ValueError for a key that is not known, naming the nearest one."""
    for key in mapping:
        if key not in known:
            raise ValueError(
                f"{name} has no setting {key!r}{near_match(key, known)} "
                f"(settings: {', '.join(known)})"
            )


def from_config(cls: type[T], mapping: Mapping[str, Any]) -> T:
    """Builds the frozen dataclass ``cls`` from a mapping such as a ConfigDict.

    Fields that are dataclasses themselves are built from nested mappings, and lists
    become tuples, so that the result is hashable where its fields are.

    Args:
        cls: a dataclass type.
        mapping: its fields by name; fields left out keep their defaults.

    Returns:
        An instance of ``cls``.

    Raises:
        ValueError: if a key is not a field (named, with the nearest one), or a field
            without default is missing.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    check_keys(cls.__name__, mapping, fields)
    for key, value in mapping.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            value = from_config(typing.cast(type, hint), value)
        elif isinstance(value, list | tuple):
            value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
        values[key] = value
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{cls.__name__} needs a value for {', '.join(missing)}")
    return cls(**values)


@contextlib.contextmanager
def write_atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` and moves it there if the body succeeds.

    A reader sees the old file or the new one, whole; an exception leaves the old one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
