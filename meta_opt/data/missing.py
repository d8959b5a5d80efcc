"""The error for data that is not there, which names the command that brings it."""

from pathlib import Path


class MissingDataError(FileNotFoundError):
    """A dataset, or a file that it is built from, is not there."""

    def __init__(self, what: str, path: Path, dataset: str):
        """Says what is missing, where it was looked for and what brings it."""
        super().__init__(
            f"{what} is not at {path}. `make data` brings it (or `python -m "
            f"meta_opt.data.prepare --only {dataset}`); the folder of datasets is "
            "$META_OPT_DATA_DIR, else ./data."
        )
