"""A workload that starts from the weights that another run ended with, bit for bit."""

import dataclasses
import hashlib
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh

from meta_opt.models.parameters import mismatch
from meta_opt.parallel.placement import to_host
from meta_opt.types import PyTree, write_atomic
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.image_text import ImageTextConfig
from meta_opt.workloads.workload import Workload


@dataclasses.dataclass(frozen=True)
class ContinuedConfig:
    """Images with texts, and the trained parameters that a run starts from.

    Attributes:
        workload: model and data.
        start: a file of `save_params`, of the same model; "" for the model as it is.
        start_sha256: of that file.
    """

    workload: ImageTextConfig
    start: str = ""
    start_sha256: str = ""

    def build(
        self,
        seed: int = 0,
        mesh: Mesh | None = None,
        export: ExportConfig = ExportConfig(),  # noqa: B008
    ) -> Workload:
        """As `ImageTextConfig.build`, with the parameters of ``start``.

        Raises:
            ValueError: as `ImageTextConfig.build` and `load_params`.
        """
        workload = self.workload.build(seed, mesh, export)
        if not self.start:
            return workload
        params = load_params(self.start, workload.params, self.start_sha256)
        # From another seed it would be another model.
        return dataclasses.replace(workload, params=params, reseeded=None)


def save_params(path: str | os.PathLike, params: PyTree) -> str:
    """Writes arrays in their own types as safetensors, whole or not at all.

    Args:
        path: the file.
        params: nested dict of arrays, laid out over a mesh or not.

    Returns:
        SHA-256 of the file.
    """
    data = safetensors.numpy.save(_by_path(to_host(params)))
    with write_atomic(path) as file:
        file.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def load_params(path: str | os.PathLike, like: PyTree, sha256: str) -> PyTree:
    """Reads what `save_params` wrote.

    Args:
        path: the file.
        like: parameters of the model, whose structure and layout the result has.
        sha256: of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file with other bytes, or of another model.
    """
    data = Path(path).read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise ValueError(
            f"{path} is damaged or of another run: its SHA-256 is {found} and not "
            f"{sha256}; remove the folder of its phase to train it again"
        )
    tensors, wanted = _parse(data), _by_path(like)
    if problems := mismatch(_described(tensors), _described(wanted)):
        raise ValueError(f"{path} is of another model: {problems}")
    placed = [
        jax.device_put(tensors[name], getattr(leaf, "sharding", None))
        for name, leaf in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), placed)


_DTYPES = {"F64": jnp.float64, "F32": jnp.float32, "F16": jnp.float16}
_DTYPES |= {"BF16": jnp.bfloat16}


def _parse(data: bytes) -> dict[str, np.ndarray]:
    """Tensors by name; `safetensors.numpy.load` reads no bfloat16."""
    return {
        name: np.frombuffer(about["data"], jnp.dtype(_DTYPES[about["dtype"]])).reshape(
            about["shape"]
        )
        for name, about in safetensors.deserialize(data)
    }


def _by_path(tree: PyTree) -> dict[str, PyTree]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in flat
    }


def _described(tensors: dict[str, PyTree]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in tensors.items()}
