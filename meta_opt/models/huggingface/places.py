"""Locations of parameters in files, with conversions for reading and writing."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from meta_opt.models.huggingface.files import Files
from meta_opt.models.parameters import mismatch

_NO_PARAMETERS = (".position_ids", "lm_head.weight", ".num_batches_tracked")
"""Suffixes of tensors that are not parameters: buffers and copies of tied embeddings.
"""


class Place(NamedTuple):
    """Location of a parameter in the files.

    Attributes:
        names: names of the tensors, one per layer for a scan-stacked parameter.
        shape: shape of each tensor in the file.
        stacked: whether the parameter has a leading layer axis.
        transposed: whether the tensor is [out, in] for a kernel [in, out].
        to_file: function from one layer of the parameter to the tensor, unless it is a
            transposition or a reshape.
        from_file: inverse of ``to_file``.
        third: index of the third of the tensor's rows, for joint QKV projections.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool = False
    transposed: bool = False
    to_file: Callable[[np.ndarray], np.ndarray] | None = None
    from_file: Callable[[np.ndarray], np.ndarray] | None = None
    third: int | None = None


def plain(name: str, shape: tuple[int, ...], is_kernel: bool) -> Place:
    """The location of a parameter that is one tensor, or one tensor per layer.

    Args:
        name: name of the tensor, with ``{}`` for the index of the layer.
        shape: shape of the parameter.
        is_kernel: whether it is a kernel, which is transposed.

    >>> plain("layers.{}.fc.weight", (2, 3, 4), True)[:2]
    (('layers.0.fc.weight', 'layers.1.fc.weight'), (4, 3))
    """
    stacked = "{}" in name
    names = tuple(name.format(i) for i in range(shape[0])) if stacked else (name,)
    one = shape[1:] if stacked else shape
    return Place(names, one[::-1] if is_kernel else one, stacked, is_kernel)


def reshaped(name: str, shape: tuple[int, ...], in_file: tuple[int, ...]) -> Place:
    """The location of a parameter whose tensor has another shape."""
    return Place(
        (name,),
        in_file,
        to_file=lambda x: x.reshape(in_file),
        from_file=lambda x: x.reshape(shape),
    )


def convolution(name: str, patch_size: int, width: int) -> Place:
    """The location of a patch kernel [3 p p, D], whose tensor is [D, 3, p, p]."""
    p = patch_size
    return Place(
        (name,),
        (width, 3, p, p),
        to_file=lambda x: x.reshape(p, p, 3, width).transpose(3, 2, 0, 1),
        from_file=lambda x: x.transpose(2, 3, 1, 0).reshape(3 * p * p, width),
    )


def check(files: Files, places: Mapping[str, Place]) -> None:
    """Raises ValueError naming tensors that are missing, unknown or misshapen."""
    wanted = {name: list(p.shape) for p in places.values() for name in p.names}
    there = [n for n in sorted(files.names()) if not n.endswith(_NO_PARAMETERS)]
    problems = mismatch({name: list(files.shape(name)) for name in there}, wanted)
    if problems:
        raise ValueError(
            f"{files.folder} is of another architecture than its config.json: "
            f"{problems}"
        )


def reader(
    files: Files, place: Place, shape: tuple[int, ...], dtype: Any
) -> Callable[[Any], np.ndarray]:
    """Returns a function that reads the slice of a parameter at an index."""

    def one(name: str, index: tuple[slice, ...]) -> np.ndarray:
        tensor = files.slice(name)
        if place.from_file is not None:
            return place.from_file(np.asarray(tensor[...]))[index]
        if place.third is not None:
            width = place.shape[0] // 3
            first = slice(place.third * width, (place.third + 1) * width)
            part = np.asarray(tensor[first])
            return (part.T if place.transposed else part)[index]
        if not index:
            return np.asarray(tensor[...]).reshape(())
        if place.transposed:
            return np.asarray(tensor[index[::-1]]).T
        return np.asarray(tensor[index])

    def read(index: tuple[slice, ...]) -> np.ndarray:
        full = tuple(
            slice(*i.indices(n)[:2]) for i, n in zip(index, shape, strict=True)
        )
        if not place.stacked:
            return one(place.names[0], full).astype(dtype)
        layers, rest = place.names[full[0]], full[1:]
        # Filled layer by layer, so that no second copy is in memory.
        part = np.empty([s.stop - s.start for s in full], dtype)
        for i, name in enumerate(layers):
            part[i] = one(name, rest)
        return part

    return read


def tensors(
    params: Mapping[str, nnx.Param], places: Mapping[str, Place]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and tensors of the files, one parameter at a time."""
    joint: dict[str, dict[int, np.ndarray]] = {}
    for path, place in places.items():
        array = np.asarray(params[path][...])
        layers = array if place.stacked else array[None]
        for name, x in zip(place.names, layers, strict=True):
            tensor = x.T if place.transposed else x
            tensor = place.to_file(tensor) if place.to_file else tensor
            if place.third is None:
                # In C order, since safetensors writes the raw buffer.
                yield name, np.array(tensor, order="C")
                continue
            parts = joint.setdefault(name, {})
            parts[place.third] = tensor
            if len(parts) == 3:
                whole = np.concatenate([parts[i] for i in range(3)])
                yield name, np.array(whole, order="C")
