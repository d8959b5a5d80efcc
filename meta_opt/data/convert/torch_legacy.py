"""Reads the ``.pth`` files that PyTorch wrote before 1.6, without PyTorch.

They are pickles followed by the bytes of storages. Of pickles only what a dictionary of
tensors needs is admitted: nothing in the file can name code to run.
"""

import collections
import math
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_TYPES = {
    "HalfStorage": np.float16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
}


class _Storage(NamedTuple):
    kind: str
    key: str
    size: int


class _Tensor(NamedTuple):
    """Where a tensor lies in its storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Any:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    """Admits ordered dictionaries of tensors, and nothing that would be called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _TYPES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} is not admitted")

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _, size, view = pid
        if tag != "storage" or kind not in _TYPES or view is not None:
            raise pickle.UnpicklingError(f"a storage that is not known: {pid}")
        return _Storage(kind, key, size)


def read_torch_legacy(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a state dictionary, by name.

    Args:
        path: of the file.

    Raises:
        ValueError: another format, a file that is cut short, or one that holds anything
            but tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if [_load(file), _load(file)] != [_MAGIC, _PROTOCOL]:
                raise ValueError("it has another magic number")
            if not _load(file).get("little_endian", False):
                raise ValueError("its numbers are big-endian")
            tensors, keys = _load(file), _load(file)
            needed = {t.storage.key: t.storage for t in tensors.values()}
            storages = {key: _bytes(file, needed[key]) for key in keys}
        return {n: _array(t, storages[t.storage.key]) for n, t in tensors.items()}
    # A damaged pickle raises nearly anything.
    except Exception as error:
        raise ValueError(
            f"{path} is not a dictionary of tensors as PyTorch once wrote it, or is "
            f"damaged ({type(error).__name__}: {error})"
        ) from None


def _load(file: BinaryIO) -> Any:
    return _Unpickler(file).load()


def _bytes(file: BinaryIO, storage: _Storage) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little")
    if count != storage.size:
        raise ValueError(f"storage {storage.key} has {count} of {storage.size} numbers")
    kind = np.dtype(_TYPES[storage.kind])
    left = os.fstat(file.fileno()).st_size - file.tell()
    if count * kind.itemsize > left:
        raise ValueError(f"storage {storage.key} is cut short")
    data = file.read(count * kind.itemsize)
    return np.frombuffer(data, kind, count)


def _array(tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    shape, strides = tensor.shape, tensor.strides
    if len(shape) != len(strides) or tensor.offset < 0 or min(strides, default=0) < 0:
        raise ValueError(f"a tensor of shape {shape} and strides {strides}")
    last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if math.prod(shape) > storage.size:
        raise ValueError(f"a tensor of shape {shape} repeats its storage")
    if math.prod(shape) and last >= storage.size:
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage")
    view = np.lib.stride_tricks.as_strided(
        storage[tensor.offset :], shape, [s * storage.itemsize for s in strides]
    )
    return view.copy()
