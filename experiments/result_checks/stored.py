"""Shared parts of all checks: settings and stored results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Settings = Mapping[str, Any]
"""Settings of a check, from its entry in ``configs/check_results.py``."""


def stored_file(path: Path) -> Path:
    """Returns the path of a stored result, after checking that it exists.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no stored result {path}; run this in a checkout that has it"
        )
    return path
