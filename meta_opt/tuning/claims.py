"""Which process runs which trial of a study: locks on files beside its storage."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


class Claims:
    """The locks of a study, for the processes of one machine that share it.

    A lock ends with the process that holds it, however that ends, so that a trial whose
    process was killed is known at once, without a time to wait for.

    Args:
        storage: the study's file; the locks are in a folder beside it.
    """

    def __init__(self, storage: str | Path) -> None:
        self._folder = Path(f"{storage}.locks")
        self._folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Waits until no other process is in here."""
        with open(self._folder / "study", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """Holds a trial, which no other process may hold."""
        path = self._path(number)
        with open(path, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
            path.unlink(missing_ok=True)

    def held(self, number: int) -> bool:
        """Whether a process that lives, this one too, holds a trial."""
        try:
            with open(self._path(number)) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def _path(self, number: int) -> Path:
        return self._folder / f"trial-{number}"
