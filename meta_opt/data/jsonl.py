"""JSONL files: a JSON value a line, what is wrong named with its line."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read_jsonl(path: Path, parse: Callable[[Any], T]) -> Iterator[T]:
    r"""What a function makes of each line that is not blank.

    Args:
        path: the file.
        parse: from a line's JSON value; raises ValueError or TypeError where it will
            not do.

    Raises:
        ValueError: a line that is no JSON, or that ``parse`` refuses.
        FileNotFoundError: no such file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "numbers.jsonl"
        >>> _ = file.write_text("1 \n\n 2")
        >>> list(read_jsonl(file, float))
        [1.0, 2.0]
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                parsed = parse(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error})") from None
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            yield parsed
