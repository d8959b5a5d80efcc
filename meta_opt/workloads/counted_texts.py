"""Training batches whose text tokens are counted on the host."""

from collections.abc import Callable
from typing import Any

import numpy as np

from meta_opt.data.token_counts import TokenCounter
from meta_opt.types import PyTree
from meta_opt.workloads.workload import Batches, MakeBatches


def counted_texts(
    make: MakeBatches, count: Callable[[PyTree], int], tokens: TokenCounter
) -> MakeBatches:
    """Returns iterators of the same batches that also count tokens.

    In runs of several processes, each reads only some rows of a batch. Its count is
    scaled to the whole batch, so that the mean over the processes is the number of
    tokens of all batches.

    Args:
        make: see `MakeBatches`.
        count: returns the number of tokens of a batch of arrays on the host.
        tokens: counter to which the tokens of each batch are added.
    """

    def make_counted(
        batch_size: int, seed: int = 0, rows: np.ndarray | None = None
    ) -> Batches:
        share = 1.0 if rows is None else len(rows) / batch_size
        return _CountedTexts(
            make(batch_size, seed, rows), lambda batch: count(batch) / share, tokens
        )

    return make_counted


class _CountedTexts:
    def __init__(
        self,
        batches: Batches,
        count: Callable[[PyTree], float],
        tokens: TokenCounter,
    ) -> None:
        self._batches, self._count, self._tokens = batches, count, tokens

    def __next__(self) -> PyTree:
        batch = next(self._batches)
        self._tokens.add(read=self._count(batch))
        return batch

    def get_state(self) -> Any:
        return self._batches.get_state()

    def set_state(self, state: Any) -> None:
        self._batches.set_state(state)
