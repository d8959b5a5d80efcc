"""Tensors of safetensors files, in memory; what is wrong is said with the file.

The format has no code in it. Its reader checks that the header is no longer than the
file and that the tensors fill it, so that no size is taken on trust.
"""

import os
from pathlib import Path

import numpy as np


def parse_tensors(data: bytes, path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file's bytes, by name.

    Args:
        data: all of it.
        path: of the file, for errors.

    Raises:
        ValueError: no such file, a damaged one, or a type of numbers that NumPy does
            not have, such as bfloat16.

    >>> import safetensors.numpy
    >>> parse_tensors(safetensors.numpy.save({"a": np.ones(2)}), "a.safetensors")
    {'a': array([1., 1.])}
    """
    # Here, as `import meta_opt` needs none of it.
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


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file, by name.

    Raises:
        ValueError: see `parse_tensors`.
        OSError: a file that is not there or cannot be read.
    """
    return parse_tensors(Path(path).read_bytes(), path)
