"""Reads the variables of a CTranslate2 ``model.bin``, without CTranslate2.

Little-endian: a version, the model's name and revision, then for each variable its
name, rank, shape, type, number of bytes and bytes. Strings are a length and bytes that
end with a zero.
"""

import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_VERSION = 6
_TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def read_ctranslate2(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The variables by name, read-only.

    Args:
        path: of ``model.bin``.

    Raises:
        ValueError: another version of the format, or a file that is cut short.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if (version := _number(file, "I")) != _VERSION:
                raise ValueError(f"version {version}; {_VERSION} can be read")
            _string(file)
            _number(file, "I")
            return dict(_variable(file) for _ in range(_number(file, "I")))
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a model of CTranslate2 or is damaged "
            f"({type(error).__name__}: {error})"
        ) from None


def _variable(file: BinaryIO) -> tuple[str, np.ndarray]:
    name = _string(file)
    shape = tuple(_number(file, "I") for _ in range(_number(file, "B")))
    kind = np.dtype(_TYPES[_number(file, "B")])
    size = _number(file, "I")
    if size != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{name} has {size} bytes for shape {shape}")
    if size > os.fstat(file.fileno()).st_size - file.tell():
        raise ValueError(f"{name} is cut short")
    data = file.read(size)
    return name, np.frombuffer(data, kind, math.prod(shape)).reshape(shape)


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).rstrip(b"\0").decode()


def _number(file: BinaryIO, kind: str) -> Any:
    form = f"<{kind}"
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]
