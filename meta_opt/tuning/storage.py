"""Storage of studies: a file on one machine or in a shared folder, or a server."""

import contextlib
import importlib.util
import logging
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meta_opt.error_messages import first_line
from meta_opt.leases import EXPIRY_SECONDS
from meta_opt.text_files import parse_json
from meta_opt.tuning.claims import Claims, FileLocks, FolderLeases, ServerLocks

if TYPE_CHECKING:
    import optuna

_log = logging.getLogger(__name__)

SQLITE, JOURNAL = ".sqlite3", ".journal"
_SERVERS = ("postgresql://", "postgresql+psycopg://")

_BUSY_SECONDS = 60.0
"""How long SQLite waits for another process to have written."""
_UNREADABLE = (
    *(ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    AssertionError,
)
"""What Optuna raises for values in a file that it did not write."""


class Storage:
    """The storage of a study, and the claims of the processes that share it.

    ========================  =====================================================
    ``FILE.sqlite3``, ``.db``  processes of one machine
    ``FILE.journal``           processes on machines that share the folder, NFS too
    ``postgresql://...``       processes that reach the server
    ========================  =====================================================

    Args:
        place: place of the study; the folder of a file is created.
        study: name of the study.
        expiry_seconds: time without a heartbeat after which other processes may take
            over a trial. On one machine this is detected immediately.

    Raises:
        ValueError: the place is not supported, or a driver is not installed.
    """

    def __init__(
        self,
        place: str | Path,
        study: str,
        expiry_seconds: float = EXPIRY_SECONDS,
    ) -> None:
        self._url: Any = None
        self.claims: Claims
        if "://" in str(place):
            self._url = _server_url(str(place))
            self.name = self._url.render_as_string(hide_password=True)
            self.claims = ServerLocks(self._url, study, expiry_seconds)
            return
        self.name = str(place)
        self._path = Path(place).absolute()
        if self._path.suffix == JOURNAL:
            self.claims = FolderLeases(self._path, expiry_seconds)
        elif self._path.suffix in (SQLITE, ".db"):
            self.claims = FileLocks(self._path)
        else:
            raise ValueError(
                f"{place} is not a valid study storage; use a file ending in {SQLITE} "
                f"(one machine) or {JOURNAL} (a shared folder), or "
                "postgresql://USER@HOST/DATABASE"
            )

    def open(self) -> "optuna.storages.BaseStorage":
        """Opens the storage, within `Claims.exclusive`; creates the file if needed."""
        from optuna import storages
        from optuna.storages import journal

        if self._url is not None:
            storage = storages.RDBStorage(
                self._url.render_as_string(hide_password=False),
                # Servers allow few connections, and may have been restarted since.
                engine_kwargs={"pool_size": 1, "pool_pre_ping": True},
            )
            return _closed_at_last(storage)
        if self._path.suffix == JOURNAL:
            path = str(self._path)
            lock = journal.JournalFileOpenLock(path)
            lock.acquire()
            try:
                _mend_end(self._path)
            finally:
                lock.release()
            return storages.JournalStorage(journal.JournalFileBackend(path, lock))
        storage = storages.RDBStorage(
            f"sqlite:///{self._path}",
            engine_kwargs={"connect_args": {"timeout": _BUSY_SECONDS}},
        )
        return _closed_at_last(storage)

    @contextlib.contextmanager
    def damage_named(self) -> Iterator[None]:
        """Converts errors from a damaged study file to ValueError with its name."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, StorageInternalError, *_UNREADABLE) as error:
            outage = _outage(error)
            if outage and (self._url is not None or "locked" in str(outage)):
                raise
            if isinstance(error, ValueError) and self.name in str(error):
                raise  # It is named already.
            raise ValueError(
                f"{self.name} is not a study or is damaged ({first_line(error)}); "
                "move it away to start from scratch"
            ) from error

    @contextlib.contextmanager
    def outage_named(self) -> Iterator[None]:
        """Converts errors from an unreachable server to ConnectionError."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, StorageInternalError) as error:
            outage = _outage(error)
            if self._url is None or outage is None:
                raise
            raise ConnectionError(
                f"{self.name} cannot be used: {first_line(outage)}"
            ) from error


def study_file(stem: Path, shared: bool) -> Path:
    """Returns the file of a study: a journal if several machines may share it.

    >>> study_file(Path("runs/adamw"), shared=True).name
    'adamw.journal'
    """
    return stem.with_name(stem.name + (JOURNAL if shared else SQLITE))


def _server_url(place: str) -> Any:
    import sqlalchemy

    if not place.startswith(_SERVERS):
        scheme = place.partition("://")[0]
        raise ValueError(
            f"{scheme}://... is not a valid study storage; the only supported server "
            "is PostgreSQL: postgresql://USER@HOST/DATABASE"
        )
    if importlib.util.find_spec("psycopg") is None:
        raise ValueError(
            "a study on a PostgreSQL server needs psycopg: "
            "pip install 'meta-opt[postgresql]'"
        )
    try:
        url = sqlalchemy.make_url(place)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        # Not quoted in the message, because it may contain the password.
        raise ValueError(
            "invalid server address; write it as "
            "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, special characters of the "
            "password as %XX"
        ) from None
    return url.set(drivername="postgresql+psycopg")


def _mend_end(path: Path) -> None:
    """Removes an incomplete last line of a journal, left by a kill or a full disk.

    Optuna ignores it when reading, but would append to it.

    Raises:
        ValueError: the last line is complete but not JSON.
    """
    data = path.read_bytes() if path.is_file() else b""
    end = data.rfind(b"\n") + 1
    if end < len(data):
        _log.warning("%s ends in a torn line, which is removed", path)
        os.truncate(path, end)
    if end:
        parse_json(data[:end].splitlines()[-1])


def _outage(error: BaseException) -> BaseException | None:
    """Returns the error of an unreachable database, raised by SQLAlchemy or Optuna."""
    from sqlalchemy.exc import OperationalError

    for found in (error, error.__cause__):
        if isinstance(found, OperationalError):
            return found
    return None


def _closed_at_last(storage: Any) -> Any:
    """Returns the storage, whose connections are closed when it is collected."""
    weakref.finalize(storage, _close, storage.scoped_session, storage.engine)
    return storage


def _close(session: Any, engine: Any) -> None:
    session.remove()  # It may hold a connection of the engine's pool.
    engine.dispose()
