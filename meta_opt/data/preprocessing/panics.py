"""Panics of libraries written in Rust."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def panics_as_errors(library: str) -> Iterator[None]:
    """Converts a panic into a ValueError.

    PyO3's PanicException derives from BaseException, so `except Exception` misses it.

    Args:
        library: name of the library, for the message.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{library} failed: {error}") from None
