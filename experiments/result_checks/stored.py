"""What all checks of results share: their settings, and the stored results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Settings = Mapping[str, Any]
"""Of a check, from its entry in ``configs/check_results.py``."""


def stored_file(path: Path) -> Path:
    """Returns a file of stored results.

    Raises:
        FileNotFoundError: it is not there.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no stored result {path}; run this in a checkout that has it"
        )
    return path
