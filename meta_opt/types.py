"""Type aliases, dimension names, and configuration helpers of the whole package.

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

import collections
import contextlib
import dataclasses
import difflib
import math
import os
import tempfile
import types
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
    """Returns ``"; did you mean 'x'?"`` with the closest known word, or ``""``."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_name(setting: str, value: Any, known: typing.Collection[str]) -> None:
    """Raises ValueError for an unknown value, naming the closest known one."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(
            f"{setting}={value!r} must be one of {', '.join(known)}"
            f"{near_match(str(value), known)}"
        )


def check_least(section: str, config: Any, **least: float) -> None:
    """Raises ValueError for a field below its minimum.

    Args:
        section: name of the config in messages; "" for none.
        config: object whose fields are numbers or tuples of numbers.
        **least: minimum of each field.

    >>> import types
    >>> check_least("loop", types.SimpleNamespace(num_steps=-1), num_steps=0)
    Traceback (most recent call last):
    ValueError: loop.num_steps=-1 must be at least 0
    """
    for name, bound in least.items():
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        if not all(one >= bound for one in values):  # False for NaN, too.
            where = f"{section}.{name}" if section else name
            raise ValueError(f"{where}={value} must be at least {bound}")


def check_distinct(setting: str, values: typing.Iterable[Any]) -> None:
    """Raises ValueError for a value that occurs more than once, naming it.

    >>> check_distinct("tests.widths", (32, 64, 32))
    Traceback (most recent call last):
    ValueError: tests.widths has 32 more than once
    """
    counts = collections.Counter(values)
    if twice := [str(value) for value, count in counts.items() if count > 1]:
        raise ValueError(f"{setting} has {', '.join(twice)} more than once")


def check_keys(
    name: str, mapping: Mapping[str, Any], known: typing.Collection[str]
) -> None:
    """Raises ValueError for an unknown key, naming the closest known one."""
    for key in mapping:
        if key not in known:
            raise ValueError(
                f"{name} has no setting {key!r}{near_match(key, known)} "
                f"(settings: {', '.join(known)})"
            )


def check_mapping(name: str, value: Any) -> None:
    """Raises ValueError for a value that is not a mapping of names to settings.

    >>> check_mapping("config.optimizer", "adamw")
    Traceback (most recent call last):
    ValueError: config.optimizer must be settings by name, not 'adamw'
    """
    if not hasattr(value, "items"):  # Config objects are not a Mapping.
        raise ValueError(f"{name} must be settings by name, not {value!r}")


def from_config(cls: type[T], mapping: Any, name: str = "") -> T:
    """Builds the frozen dataclass ``cls`` from a mapping such as a ConfigDict.

    Fields that are dataclasses themselves are built from nested mappings, and lists
    become tuples, so that the result is hashable where its fields are.

    Args:
        cls: a dataclass type.
        mapping: its fields by name; fields left out keep their defaults.
        name: name of the mapping, for error messages; by default that of the dataclass.

    Returns:
        An instance of ``cls``.

    Raises:
        ValueError: if ``mapping`` is not a mapping, a key is not a field (the message
            has the closest one), a field without default is missing, or a value has
            another type than its field.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    name = name or cls.__name__
    check_mapping(name, mapping)
    check_keys(name, mapping, fields)
    values = {k: _typed(hints[k], v, f"{name}.{k}") for k, v in mapping.items()}
    missing = [
        field.name
        for field in fields.values()
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{name} needs a value for {', '.join(missing)}")
    return cls(**values)


_PLAIN = (bool, int, float, str, type(None), tuple)


def _typed(hint: Any, value: Any, name: str) -> Any:
    """Converts a setting's value to its annotated type: lists to tuples, 1 to 1.0.

    Annotations other than plain ones, and values that no config file can have, such as
    arrays, are not checked.
    """
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            return value
        return from_config(hint, value, name)
    if isinstance(value, list):
        value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    if not all(map(_is_plain, options)):
        return value
    if not isinstance(value, (*_PLAIN, Mapping)):
        return value  # Of Python code: an array, a function.
    for option in options:
        if option in (type(None), str, bool) and isinstance(value, option):
            return value
        if isinstance(value, bool):
            continue
        if option is int and isinstance(value, int):
            return value
        if option is float and isinstance(value, int | float):
            try:
                number = float(value)
            except OverflowError:
                raise ValueError(f"{name} is larger than any float") from None
            if math.isnan(number):
                raise ValueError(f"{name} is nan, which is not a number")
            return number
        if typing.get_origin(option) is tuple and isinstance(value, str | tuple):
            inner = typing.get_args(option)
            names = [name]
            if isinstance(value, str):
                value = (value,)
            else:
                names = [f"{name}[{i}]" for i in range(len(value))]
            if inner[1:] == (Ellipsis,):
                inner = (inner[0],) * len(value)
            if len(inner) == len(value):
                return tuple(map(_typed, inner, value, names))
    plain = {type(None): "None", str: "a string", bool: "True or False"}
    wanted = " or ".join(plain.get(o, getattr(o, "__name__", str(o))) for o in options)
    quote = f", in quotes: '\"{value}\"'" if str in options else ""
    raise ValueError(f"{name}={value!r} must be {wanted}{quote}")


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _is_plain(hint: Any) -> bool:
    return hint in _PLAIN or typing.get_origin(hint) is tuple


@contextlib.contextmanager
def write_atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` and moves it there if the body succeeds.

    Readers see either the complete old or the complete new file; an exception keeps the
    old one.
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
