"""Stores the outcomes of a study's runs in one file, so that none is repeated."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from meta_opt.provenance import provenance
from meta_opt.run_log import settings_digest
from meta_opt.text_files import read_json, write_json

_ORIGIN = "provenance"


class FinishedRuns:
    """A file of outcomes by name, seed and settings.

    Args:
        path: JSON file; written after each run.
        announce: called with the name of each run before it starts.
    """

    def __init__(self, path: Path, announce: Callable[[str], None]) -> None:
        self._path, self._announce = path, announce
        self._known = read_json(path) if path.is_file() else {}

    def outcome(
        self,
        name: str,
        seed: int,
        settings: Mapping[str, Any],
        run: Callable[[], Mapping[str, Any]],
    ) -> Mapping[str, Any]:
        """Returns the stored outcome of a run; if there is none, runs it and stores it.

        Args:
            name: name of the variant.
            seed: random seed of the run.
            settings: everything else that the outcome depends on.
            run: executes the run and returns the outcome as JSON values.
        """
        key = f"{name}, seed {seed}, {settings_digest(settings)[:8]}"
        if key not in self._known:
            self._announce(f"{name}: seed {seed}")
            self._known[key] = {**run(), _ORIGIN: provenance(settings)}
            write_json(self._path, self._known)
        # The key is absent in files of earlier versions.
        return {k: v for k, v in self._known[key].items() if k != _ORIGIN}
