"""Reading and writing of safetensors files, with errors that name the file.

The format contains no code. Its reader checks that the header fits into the file and
that the tensors fill it, so that no size is trusted.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from meta_opt.types import write_atomic


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> str:
    """Writes tensors by name, atomically.

    Args:
        path: path of the file; its folder is created if needed.
        tensors: C-contiguous arrays of NumPy dtypes.

    Returns:
        The SHA-256 of the file, to be recorded in the settings beside it.
    """
    # Imported here, since `import meta_opt` does not need it.
    import safetensors.numpy

    data = safetensors.numpy.save(dict(tensors))
    with write_atomic(path) as temporary:
        temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_tensors(
    path: str | os.PathLike,
    sha256: object = None,
    listed_in: str = "",
    remedy: str = "fetch it again",
) -> dict[str, np.ndarray]:
    """Reads the tensors of a file by name.

    Args:
        path: the file.
        sha256: expected SHA-256 of the file; None disables the check.
        listed_in: file that lists the SHA-256, for error messages.
        remedy: advice for a file with another SHA-256, for error messages.

    Raises:
        ValueError: the SHA-256 does not match, or see `parse_tensors`.
        OSError: the file is missing or cannot be read.
    """
    data = Path(path).read_bytes()
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {found}, {listed_in} says {sha256}; "
            f"{remedy}"
        )
    return parse_tensors(data, path)


def parse_tensors(data: bytes, path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Parses the tensors of a file's contents by name.

    Args:
        data: all of it.
        path: path of the file, for error messages.

    Raises:
        ValueError: a damaged file, or a dtype that NumPy does not have, such as
            bfloat16.

    >>> import safetensors.numpy
    >>> parse_tensors(safetensors.numpy.save({"a": np.ones(2)}), "a.safetensors")
    {'a': array([1., 1.])}
    """
    import safetensors.numpy
    from safetensors import SafetensorError

    try:
        return safetensors.numpy.load(data)
    except KeyError as error:
        raise ValueError(
            f"{path} has tensors of the type {error}, which NumPy does not have"
        ) from None
    except (SafetensorError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} is damaged or cut short ({error}); fetch it again"
        ) from None
