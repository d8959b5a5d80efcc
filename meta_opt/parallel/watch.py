"""Mutual monitoring of the processes of a run, so that none waits for a lost one.

Each process writes heartbeats to the key-value store of JAX's coordination service,
which runs in process 0, and reads those of the others. If a process has no heartbeat
for too long (it was killed or suspended, or its machine failed), all others name it and
exit: collectives with it would fail with a socket error, or hang.

Missing heartbeats are counted in a process's own rounds rather than by the clock, so
that a process that was suspended itself does not consider the others lost.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from meta_opt.parallel.progress import RESTART, Progress

_KEYS = "meta_opt/watch/"
_DONE, _FAILED, _LOST = "done", "failed", "lost"
_LONGEST_INTERVAL = 1.0
_ROUNDS = 20
"""Smallest number of heartbeats within the timeout."""
_GRACE_ROUNDS = 3


class Store(Protocol):
    """The used interface of the client of JAX's coordination service."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None:
        """Writes a value."""

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        """Reads all values under a prefix, by full key."""


class ProcessWatch:
    """Detects that another process of the run is lost, reports it, and ends this one.

    Args:
        index: of this process.
        count: number of processes.
        timeout_seconds: time without heartbeat after which a process counts as lost.
        progress: progress of this process, for the report of what is lost.
        store: key-value store of all processes.
        end: function that is called with the line to print.
    """

    def __init__(
        self,
        index: int,
        count: int,
        timeout_seconds: float,
        progress: Progress,
        store: Store | None = None,
        end: Callable[[str], Any] | None = None,
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self._index, self._count, self._progress = index, count, progress
        self._store = _jax_store() if store is None else store
        self._end = self._print_and_exit if end is None else end
        self._interval = min(_LONGEST_INTERVAL, timeout_seconds / _ROUNDS)
        self._patience = timeout_seconds / self._interval
        self._rounds = 0
        self._answered = 0
        self._heard = {i: 0 for i in range(count) if i != index}
        self._seen: dict[str, str] = {}
        self._stood_still = False
        self._failed_at = 0
        self._stop = threading.Event()

    def start(self) -> None:
        """Starts sending and monitoring heartbeats, in daemon threads."""
        self._progress.live()
        for target in (self._beat, self._judge):
            threading.Thread(target=target, daemon=True, name="watch").start()

    def stop(self) -> None:
        """Stops sending and monitoring heartbeats, without telling the others."""
        self._stop.set()

    def leave(self, failed: bool) -> None:
        """Tells the others that this process ends, and stops watching them."""
        self.stop()
        self._tell(_FAILED if failed else _DONE)
        if failed:
            self._progress.explain()
            self._wait_for_others()

    def wait_for_verdict(self) -> None:
        """Waits until another process is found to be lost, which ends this one."""
        self._stop.wait(1.5 * self.timeout_seconds + 5 * self._interval)

    def _beat(self) -> None:
        host = f"pid {os.getpid()} on {socket.gethostname()}"
        beat = 0
        while not self._stop.is_set():
            beat += 1
            try:
                key = f"{_KEYS}beat/{self._index}"
                self._store.key_value_set(key, f"{beat} {host}", True)
                found = dict(self._store.key_value_dir_get(_KEYS))
            except (RuntimeError, ValueError):
                found = None  # The other thread counts the rounds without an answer.
            if found is not None:
                self._answered, self._stood_still = self._rounds, False
                for i in self._heard:
                    key = f"{_KEYS}beat/{i}"
                    if found.get(key) != self._seen.get(key):
                        self._heard[i] = self._rounds
                self._seen = found
            self._stop.wait(self._interval)

    def _judge(self) -> None:
        looked = time.monotonic()
        while not self._stop.wait(self._interval):
            now = time.monotonic()
            self._stood_still |= now - looked >= self.timeout_seconds
            looked = now
            self._rounds += 1
            self._progress.live()
            if (what := self._verdict()) is not None:
                self._end(f"{what}; {self._progress.lost()}; {RESTART}")
                return

    def _verdict(self) -> str | None:
        """Describes what happened to another process; None if all are alive."""
        ends = {i: self._seen.get(f"{_KEYS}end/{i}", "") for i in self._heard}
        for i, how in ends.items():
            if how == _FAILED:
                self._failed_at = self._failed_at or self._rounds
                # If all processes fail, each reports its own error.
                if self._rounds - self._failed_at >= _GRACE_ROUNDS:
                    return f"{self._name([i])} failed: what it printed says why"
        told = next((how for how in ends.values() if how.startswith(_LOST)), "")
        gone = [int(i) for i in told.split()[1:]]
        if not gone:
            gone = [
                i
                for i, heard in self._heard.items()
                if self._rounds - heard >= self._patience and ends[i] != _DONE
            ]
        if self._index and self._rounds - self._answered >= self._patience:
            gone = [0]
        if not gone:
            return None
        if self._stood_still or self._index in gone:
            return (
                f"{self._name([self._index])} was suspended for over "
                f"{self.timeout_seconds:g} s (--process_timeout), and the others have "
                "ended without it"
            )
        self._tell(f"{_LOST} {' '.join(map(str, gone))}")
        return (
            f"{self._name(gone)}: no heartbeat for {self.timeout_seconds:g} s "
            "(--process_timeout)"
        )

    def _name(self, processes: Sequence[int]) -> str:
        """Describes processes: indices, and pid and host if known."""
        names = []
        for i in processes:
            said = self._seen.get(f"{_KEYS}beat/{i}", "").partition(" ")[2]
            names.append(f"process {i} of {self._count}{said and f' ({said})'}")
        return " and ".join(names)

    def _tell(self, what: str) -> None:
        key = f"{_KEYS}end/{self._index}"
        # In a thread, so that an unresponsive store does not block.
        telling = threading.Thread(target=self._try_to_tell, args=(key, what))
        telling.daemon = True
        telling.start()
        telling.join(self._interval)

    def _try_to_tell(self, key: str, what: str) -> None:
        try:
            self._store.key_value_set(key, what, True)
        except (RuntimeError, ValueError):
            return  # The others will detect it by the missing heartbeats.

    def _wait_for_others(self) -> None:
        """Process 0, which hosts the store, exits after the others have read it."""
        if self._index == 0:
            time.sleep((_GRACE_ROUNDS + 2) * self._interval)

    def _print_and_exit(self, line: str) -> None:
        self._progress.explain()
        print(line, file=sys.stderr, flush=True)
        self._wait_for_others()
        os._exit(1)


def _jax_store() -> Store:
    # Not public API, but also used by Orbax; there is no other access to this store.
    from jax._src import distributed

    store = distributed.global_state.client
    assert store is not None
    return store
