"""The error for missing data, which names the command that prepares it."""

from pathlib import Path

LARGE = ("animated_emoji",)
"""Datasets that ``python -m meta_opt.data.prepare`` excludes by default for their size.

``make data`` prepares them, too.
"""


class MissingDataError(FileNotFoundError):
    """A dataset, or a file that it is built from, is missing."""

    def __init__(self, what: str, path: Path, dataset: str):
        """Composes a message with what is missing, the path and how to prepare it."""
        super().__init__(
            f"{what} is not at {path}. Prepare it with `make data` or `python -m "
            f"meta_opt.data.prepare --only {dataset}`; datasets are looked for in "
            "$META_OPT_DATA_DIR, or ./data if it is not set."
        )
