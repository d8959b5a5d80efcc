"""Checks of a configuration's fields, with errors that name the field and its value.

A configuration may come from an untrusted file: sizes and regular expressions are
bounded, so that using them terminates.
"""

import math
import re
from typing import Any

from meta_opt.types import near_match

MAX_SIZE = 2**24
"""Largest width, vocabulary or side in pixels."""
MAX_DEPTH = 1024
"""Largest number of layers of a stack."""
_MAX_REPEATS = 5
"""Largest number of unbounded repetitions in a regular expression; the time of a search
is polynomial of this degree."""


def is_count(value: Any, most: int = MAX_SIZE) -> bool:
    """Whether a value is an integer from 1 to ``most``.

    >>> is_count(3), is_count(0), is_count(2.0), is_count(True)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def check_counts(config: object, *names: str, most: int = MAX_SIZE) -> None:
    """Raises ValueError for a field that is not an integer from 1 to ``most``.

    >>> import types
    >>> check_counts(types.SimpleNamespace(depth=0), "depth", most=9)
    Traceback (most recent call last):
    ValueError: depth=0 must be an integer from 1 to 9
    """
    for name in names:
        if not is_count(value := getattr(config, name), most):
            raise ValueError(f"{name}={value!r} must be an integer from 1 to {most}")


def check_positive(config: object, *names: str) -> None:
    """Raises ValueError for a field that is not a finite number above 0.

    >>> import types
    >>> check_positive(types.SimpleNamespace(epsilon="a"), "epsilon")
    Traceback (most recent call last):
    ValueError: epsilon='a' must be a number above 0
    """
    for name in names:
        value = getattr(config, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and 0 < value < math.inf):
            raise ValueError(f"{name}={value!r} must be a number above 0")


def check_pattern(name: str, pattern: Any) -> None:
    r"""Raises ValueError for an invalid or possibly non-terminating regular expression.

    Repeated ambiguous groups make the time of a search exponential in the length of the
    text, and unbounded repetitions make it polynomial with their number as degree. No
    adapter needs groups that repeat, or many repetitions.

    Args:
        name: name of the setting, for the error message.
        pattern: regular expression of an untrusted file.

    >>> check_pattern("target_modules", r".*\.layers\.\d+\.(q|v)_proj$")
    >>> check_pattern("target_modules", r"(a+)+")
    Traceback (most recent call last):
    ValueError: target_modules='(a+)+' repeats a group, which may take forever; write
    the names of the layers out
    """
    try:
        re.compile(pattern)
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(
            f"{name}={pattern!r} is not a regular expression: {error}"
        ) from None
    # Ignore escaped characters and character classes.
    plain = re.sub(r"\\.", "a", pattern, flags=re.DOTALL)
    plain = re.sub(r"\[\^?\]?[^]]*\]", "a", plain)
    if re.search(r"\)\s*[*+{]", plain):
        raise ValueError(
            f"{name}={pattern!r} repeats a group, which may take forever; write the "
            "names of the layers out"
        )
    if len(re.findall(r"[*+]|,\s*\}", plain)) > _MAX_REPEATS:
        raise ValueError(
            f"{name}={pattern!r} has more than {_MAX_REPEATS} unbounded repetitions, "
            "which may take forever; write the names of the layers out"
        )


def check_divides(config: object, small: str, large: str) -> None:
    """Raises ValueError unless one field divides another.

    Args:
        config: configuration with both fields.
        small: name of the divisor.
        large: name of the multiple.

    >>> import types
    >>> check_divides(types.SimpleNamespace(heads=3, width=16), "heads", "width")
    Traceback (most recent call last):
    ValueError: heads=3 must divide width=16
    """
    if getattr(config, large) % getattr(config, small):
        raise ValueError(
            f"{small}={getattr(config, small)} must divide "
            f"{large}={getattr(config, large)}"
        )


def check_names(config: object, **known_by_field: tuple[str, ...]) -> None:
    """Raises ValueError for a field with an unknown value.

    Args:
        config: configuration with the fields.
        **known_by_field: allowed values of each field.

    >>> import types
    >>> check_names(types.SimpleNamespace(remat="fulll"), remat=("none", "full"))
    Traceback (most recent call last):
    ValueError: remat='fulll' must be one of none, full; did you mean 'full'?
    """
    for name, known in known_by_field.items():
        if (value := getattr(config, name)) not in known:
            raise ValueError(
                f"{name}={value!r} must be one of {', '.join(known)}"
                f"{near_match(str(value), known)}"
            )
