"""Parts of error messages, and one-line messages for errors that a user can fix."""

import errno
import re
from collections.abc import Iterable

_LOST = re.compile("NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|[Cc]onnection")
"""Substrings of XLA's errors for collectives that lost their peer."""

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EROFS: "make it writable, or use another --workdir",
    errno.EACCES: "make it readable and writable, or use another folder",
    errno.EPERM: "make it writable, or use another folder",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENOMEM: "give the command more memory",
}


def first_few(names: Iterable[str], most: int = 5, separator: str = ", ") -> str:
    """Returns the first few names of a list that may be long.

    >>> first_few("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def truncate(text: str, most: int = 60) -> str:
    """Returns at most ``most`` characters of a text, with an ellipsis if it is longer.

    >>> truncate("a long text", 6)
    'a long...'
    """
    return text if len(text) <= most else f"{text[:most]}..."


def first_line(error: BaseException) -> str:
    r"""Returns the first line of an error's message, or its type if it has none.

    >>> first_line(ValueError("no such task\nTraceback ..."))
    'no such task'
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def message_of(error: BaseException, resumes: bool = True) -> str | None:
    """A one-line message with the problem and its remedy; None for bugs.

    Args:
        error: exception that ended a command.
        resumes: whether rerunning the command resumes from the saved state.

    >>> message_of(ValueError("no such task"))
    'no such task'
    >>> message_of(OSError(errno.ENOSPC, "No space left on device")).split(":")[0]
    'No space left on device'
    >>> message_of(TypeError("x")) is None
    True
    """
    rerun = "; rerun the same command to resume" if resumes else ""
    if isinstance(error, ValueError | FileNotFoundError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}: {_REMEDIES[error.errno]}{rerun}"
    if isinstance(error, OSError):
        # Errors of network or disk, which a traceback does not explain.
        return f"{error}; fix this{rerun}"
    if isinstance(error, MemoryError) or _out_of_memory(error):
        asked = " ".join(str(error).split())[:200]
        return (
            f"out of memory{': ' * bool(asked)}{asked}; lower the batch size, or give "
            f"the command more memory{rerun}"
        )
    return None


def connection_lost(error: BaseException) -> bool:
    """Whether a collective failed, which happens if another process is lost.

    Args:
        error: exception of a multi-process run.

    >>> connection_lost(ValueError("UNKNOWN: Gloo AllGather failed: Read error"))
    True
    >>> connection_lost(ValueError("no such task"))
    False
    """
    text = str(error)
    return "Gloo" in text or (_of_xla(error) and bool(_LOST.search(text)))


def _of_xla(error: BaseException) -> bool:
    return type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")


def _out_of_memory(error: BaseException) -> bool:
    """Whether XLA could not allocate an array or a program."""
    return (
        _of_xla(error) and "RESOURCE_EXHAUSTED" in str(error)
    ) or "bad_alloc" in str(error)
