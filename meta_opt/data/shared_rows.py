"""Arrays whose rows are shared by several samples without copying."""

from typing import Any

import jax
import numpy as np

from meta_opt.types import PyTree


class SharedRows:
    """Rows of an array, gathered on access.

    The frames of a clip with twenty captions are stored once. For `jax.tree` the object
    is a leaf; indexing with slices or index arrays returns NumPy arrays.

    Args:
        array: [M, ...].
        rows: int [N], index of the row of each sample.

    >>> x = SharedRows(np.array([[1, 2], [3, 4]]), np.array([1, 1, 0]))
    >>> len(x), x.shape, x[1:].tolist()
    (3, (3, 2), [[3, 4], [1, 2]])
    """

    def __init__(self, array: np.ndarray, rows: np.ndarray) -> None:
        self._array, self._rows = array, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._array[self._rows[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape over all samples, [N, ...]."""
        return (len(self), *self._array.shape[1:])

    @property
    def ndim(self) -> int:
        """The rank of the array."""
        return self._array.ndim

    @property
    def dtype(self) -> np.dtype:
        """The data type of the array."""
        return self._array.dtype


def share_rows(arrays: PyTree, rows: np.ndarray) -> PyTree:
    """Views arrays [M, ...] as [N, ...], one row per sample, without copying.

    Args:
        arrays: pytree of [M, ...].
        rows: int [N], index of the row of each sample.
    """

    def share(array: np.ndarray) -> Any:
        if np.array_equal(rows, np.arange(len(array))):
            return array
        return SharedRows(array, rows)

    return jax.tree.map(share, arrays)
