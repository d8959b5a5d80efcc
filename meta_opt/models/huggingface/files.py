"""The files of a model folder: JSON, and tensors in safetensors files."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt import text_files
from meta_opt.error_messages import first_few
from meta_opt.text_files import write_json
from meta_opt.types import write_atomic

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_LONGEST = 255
"""Largest number of bytes of a file name."""


class Files:
    """The tensors of a folder by name, memory-mapped.

    Args:
        folder: folder with ``model.safetensors``, or an index of several files.
        spelling: function that maps a tensor's name in the files to its canonical name.

    Raises:
        ValueError: files that are missing, damaged, or without tensors of the index.
    """

    def __init__(self, folder: Path, spelling: Callable[[str], str] = str) -> None:
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        self._open: dict[str, Any] = {}
        self._where: dict[str, tuple[str, str]] = {}
        index = folder / _INDEX
        if index.is_file():
            listed = _weight_map(index)
            files = sorted(set(listed.values()))
        else:
            listed, files = {}, [_SINGLE]
        absent = [name for name in files if not (folder / name).is_file()]
        if absent:
            lost = sorted(k for k, f in listed.items() if f in absent)
            raise ValueError(
                f"{folder} lacks {', '.join(absent)}"
                + (f", where {first_few(lost)} should be" if lost else "")
            )
        there = set()
        for name in files:
            try:
                opened = safe_open(folder / name, framework="np")
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{folder / name} is damaged or cut short ({error}); fetch it again"
                ) from None
            self._open[name] = opened
            there |= set(opened.keys())
            self._where.update((spelling(k), (name, k)) for k in opened.keys())
        if gone := sorted(set(listed) - there):
            raise ValueError(
                f"{folder}: tensors that {index.name} lists are missing: "
                f"{first_few(gone)}"
            )

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._where)

    def slice(self, name: str) -> Any:
        """A lazy tensor, of which indexing reads a part."""
        file, key = self._where[name]
        return self._open[file].get_slice(key)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self.slice(name).get_shape())


def _weight_map(index: Path) -> dict[str, str]:
    """File names by tensor; rejects paths outside of the folder."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{index} is damaged: it has no object weight_map")
    for tensor, name in listed.items():
        is_plain = isinstance(name, str) and name not in ("", "..") and "\0" not in name
        if not is_plain or Path(name).name != name or len(name.encode()) > _LONGEST:
            raise ValueError(
                f"{index}: {tensor} is in {name!r}, which is not a file of this folder"
            )
    return listed


def write_tensors(
    folder: Path, tensors: Iterable[tuple[str, np.ndarray]], max_shard_bytes: int
) -> None:
    """Writes tensors to files of at most ``max_shard_bytes``, or of one tensor."""
    from safetensors.numpy import save_file

    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors:
        if size + tensor.nbytes > max_shard_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    names = [
        _SINGLE
        if len(shards) == 1
        else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        for i in range(1, len(shards) + 1)
    ]
    for name, shard in zip(names, shards, strict=True):
        with write_atomic(folder / name) as temporary:
            save_file(shard, temporary, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {
                "total_size": sum(t.nbytes for s in shards for t in s.values())
            },
            "weight_map": {k: n for n, s in zip(names, shards, strict=True) for k in s},
        }
        write_json(folder / _INDEX, index)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ValueError: a missing or damaged file.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}: not a model's folder")
    return text_files.read_json(path)
