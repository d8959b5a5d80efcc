"""Batches that can only be resumed with the same data."""

import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from meta_opt.types import PyTree

_BATCHES, _DATA = "batches", "data"
_PART_BYTES = 2**24


class SameData:
    """Batches whose state has a checksum of the data, which is verified on resuming.

    Order and position do not identify the data: if the data had changed, a resumed
    run would silently differ from an uninterrupted one.

    Args:
        batches: an iterator with ``get_state`` and ``set_state``.
        digest: function that computes the checksum of the data; called once, on the
            first access to the state.
    """

    def __init__(self, batches: Any, digest: Callable[[], int]) -> None:
        self._batches = batches
        self._digest = functools.cache(digest)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """Returns a JSON value."""
        return {_BATCHES: self._batches.get_state(), _DATA: self._digest()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state. States from before 2027 have no checksum.

        Raises:
            ValueError: the state belongs to other data.
        """
        if _DATA not in state:
            self._batches.set_state(state)
            return
        check_same_data(state[_DATA], self._digest())
        self._batches.set_state(state[_BATCHES])


def check_same_data(before: int, now: int) -> None:
    """Compares checksums of the data at the start of a run and on resuming.

    Raises:
        ValueError: the checksums differ.
    """
    if before != now:
        raise ValueError(
            "the training data are not those that the run began with (their checksum "
            f"was {before:08x} and is {now:08x}): restore them, or use another "
            "--workdir"
        )


def arrays_digest(arrays: PyTree) -> int:
    """A checksum (CRC-32) of arrays' bytes, shapes and types.

    >>> x = np.arange(4)
    >>> arrays_digest({"x": x}) == arrays_digest({"x": x.copy()})
    True
    >>> arrays_digest({"x": x}) == arrays_digest({"x": x[::-1]})
    False
    """
    found = 0
    for array in map(np.asarray, jax.tree.leaves(arrays)):
        found = zlib.crc32(repr((array.dtype, array.shape)).encode(), found)
        rows = np.atleast_1d(array)
        # Hash in chunks, so that memory-mapped arrays are not loaded as a whole.
        count = max(1, _PART_BYTES // max(1, rows[:1].nbytes))
        for start in range(0, len(rows), count):
            part = rows[start : start + count]
            # The bytes of an object array would be memory addresses.
            is_object = part.dtype == object
            data = repr(part.tolist()).encode() if is_object else part.tobytes()
            found = zlib.crc32(data, found)
    return found
