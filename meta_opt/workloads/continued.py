"""A workload that starts from the final weights of another run, bit for bit."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from meta_opt.models.parameters import mismatch
from meta_opt.parallel.placement import to_host
from meta_opt.tensor_files import read_tensors, write_tensors
from meta_opt.tree_paths import leaves_by_path
from meta_opt.types import PyTree
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.image_text import ImageTextConfig
from meta_opt.workloads.workload import Workload


@dataclasses.dataclass(frozen=True)
class ContinuedConfig:
    """A vision-text workload, and the parameters that a run starts from.

    Attributes:
        workload: configuration of model and data.
        start: file that `save_params` wrote for the same model; "" for the model's
            own parameters.
        start_sha256: SHA-256 of that file.
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
        """Builds the workload as `ImageTextConfig.build`, starting from ``start``.

        Raises:
            ValueError: see `ImageTextConfig.build` and `load_params`.
        """
        workload = self.workload.build(seed, mesh, export)
        if not self.start:
            return workload
        params = load_params(self.start, workload.params, self.start_sha256)
        # Not reseeded: another seed would initialise another model.
        return dataclasses.replace(workload, params=params, reseeded=None)


def save_params(path: str | os.PathLike, params: PyTree) -> str:
    """Writes arrays bit for bit as safetensors, atomically.

    bfloat16, which safetensors cannot load into NumPy, is stored as integers with the
    same bits.

    Args:
        path: path of the file.
        params: nested dict of arrays, sharded or not.

    Returns:
        The SHA-256 of the file.
    """
    stored = {name: _bits(x) for name, x in leaves_by_path(to_host(params)).items()}
    return write_tensors(path, stored)


def load_params(path: str | os.PathLike, like: PyTree, sha256: str) -> PyTree:
    """Reads parameters that `save_params` wrote.

    Args:
        path: path of the file.
        like: parameters of the model; the result has the same structure and sharding.
        sha256: expected SHA-256 of the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another hash, or is of another model.
    """
    remedy = "remove the folder of its phase to train it again"
    tensors = read_tensors(path, sha256, "the record of its phase", remedy)
    wanted = leaves_by_path(like)
    stored = {
        name: jax.ShapeDtypeStruct(x.shape, _stored_dtype(x.dtype))
        for name, x in wanted.items()
    }
    if problems := mismatch(_described(tensors), _described(stored)):
        raise ValueError(f"{path} is of another model: {problems}")
    placed = [
        jax.device_put(tensors[name].view(leaf.dtype), getattr(leaf, "sharding", None))
        for name, leaf in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), placed)


def _stored_dtype(dtype: jnp.dtype) -> np.dtype:
    return np.dtype(np.uint16 if dtype == jnp.bfloat16 else dtype)


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(_stored_dtype(x.dtype))


def _described(tensors: dict[str, PyTree]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in tensors.items()}
