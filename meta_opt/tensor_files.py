"""Safetensors files; what is wrong is said with the file.

The format has no code in it. Its reader checks that the header is no longer than the
file and that the tensors fill it, so that no size is taken on trust.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from meta_opt.types import write_atomic


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> str:
    """Writes tensors by name, whole or not at all.

    Args:
        path: the file; its folder is created if needed.
        tensors: C-contiguous, of types that NumPy has.

    Returns:
        The SHA-256 of the file, to be listed in the settings beside it.
    """
    # Here, as `import meta_opt` needs none of it.
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
    """The tensors of a file, by name.

    Args:
        path: the file.
        sha256: of the file, as its settings list it; None leaves it unchecked.
        listed_in: the settings, for errors.
        remedy: what to do about a file with another SHA-256, for errors.

    Raises:
        ValueError: a file with another SHA-256, or see `parse_tensors`.
        OSError: a file that is not there or cannot be read.
    """
    data = Path(path).read_bytes()
    if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {found}, {listed_in} says {sha256}; "
            f"{remedy}"
        )
    return parse_tensors(data, path)


def parse_tensors(data: bytes, path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file's bytes, by name.

    Args:
        data: all of it.
        path: of the file, for errors.

    Raises:
        ValueError: a damaged file, or a type of numbers that NumPy does not have, such
            as bfloat16.

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
