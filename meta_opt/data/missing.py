"""The error for data that is not there, which names the command that brings it."""

from pathlib import Path

LARGE = ("animated_emoji",)
"""Datasets that ``make data`` leaves out, since they are large to fetch."""


class MissingDataError(FileNotFoundError):
    """A dataset, or a file that it is built from, is not there."""

    def __init__(self, what: str, path: Path, dataset: str):
        """Says what is missing, where it was looked for and what brings it."""
        command = f"`python -m meta_opt.data.prepare --only {dataset}`"
        super().__init__(
            f"{what} is not at {path}. "
            + (
                f"{command} brings it"
                if dataset in LARGE
                else f"`make data` brings it (or {command})"
            )
            + "; the folder of datasets is $META_OPT_DATA_DIR, else ./data."
        )
