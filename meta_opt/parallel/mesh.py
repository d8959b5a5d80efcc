"""The device mesh of a run: data, fsdp and tensor axes."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from meta_opt.mesh_axes import AXES, BATCH_AXES
from meta_opt.types import PyTree


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes, in devices; at most one may be -1: all that remain.

    Attributes:
        data: data parallelism: replicas of the parameters, over which the batch is
            sharded.
        fsdp: fully sharded data parallelism: shards of parameters and optimizer state,
            over which the batch is also sharded.
        tensor: tensor parallelism: shards of matrix products (heads, hidden units).
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges devices in a mesh with the axes ``data``, ``fsdp`` and ``tensor``.

    A smaller mesh uses the first devices, so that the default of one device works
    anywhere.

    Args:
        config: sizes of the axes.
        devices: default ``jax.devices()``.

    Returns:
        A mesh with automatic axes (GSPMD chooses the shardings within the step).

    Raises:
        ValueError: if a size is neither positive nor -1, more than one is -1, there are
            too few devices or their number is not divisible, or a multi-process run
            would use only a part of them.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [getattr(config, axis) for axis in AXES]
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ValueError(
            f"mesh axes must be positive, and at most one -1 (the rest): {config}"
        )
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if len(devices) % known:
            raise ValueError(
                f"{config}: the fixed axes need a multiple of {known} devices, "
                f"and there are {len(devices)}"
            )
        sizes[sizes.index(-1)] = len(devices) // known
    count = math.prod(sizes)
    if count > len(devices):
        raise ValueError(
            f"{config} needs {count} devices, and there are {len(devices)}"
        )
    if count < len(devices) and jax.process_count() > 1:
        raise ValueError(
            f"{config} takes {count} of {len(devices)} devices, but with "
            f"{jax.process_count()} processes all must be in the mesh; set one to -1"
        )
    if jax.process_count() > 1:
        return jax.make_mesh(
            tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES)
        )
    grid = np.asarray(devices[:count]).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_of(tree: PyTree) -> Mesh | None:
    """Returns the mesh of the arrays of a pytree, if any."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of shards of the batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(mesh: Mesh, batch_size: int, accumulation_steps: int = 1) -> None:
    """Checks that micro-batches can be sharded evenly over the devices.

    Raises:
        ValueError: if ``batch_size`` (B) is not a positive multiple of
            ``accumulation_steps`` times the data and fsdp axes.
    """
    unit = batch_shards(mesh) * accumulation_steps
    if accumulation_steps < 1 or batch_size < 1 or batch_size % unit:
        raise ValueError(
            f"batch_size={batch_size} must be a positive multiple of {unit} = "
            f"accumulation_steps {accumulation_steps} x data {mesh.shape['data']} x "
            f"fsdp {mesh.shape['fsdp']}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: the first axis (B) over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the indices of a batch's rows on the devices of this process.

    Processes whose devices differ in data or fsdp have disjoint rows, which cover the
    whole batch. If a process has several shards, its rows need not be contiguous.

    Args:
        mesh: the mesh.
        batch_size: B, a multiple of the number of shards.

    Returns:
        int [rows], ascending.
    """
    shards = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    parts = {index[0].indices(batch_size)[:2] for index in shards.values() if index}
    return np.concatenate([np.arange(*part) for part in sorted(parts)])


def place_batch(mesh: Mesh, batch: PyTree, batch_size: int, rows: int) -> PyTree:
    """Makes a global array of a batch from the rows of this process.

    Args:
        mesh: the mesh.
        batch: pytree of [rows, ...] in host memory.
        batch_size: B.
        rows: number of `local_rows` of this process.

    Raises:
        ValueError: if the batch has another size.
    """
    for leaf in jax.tree.leaves(batch):
        if leaf.shape[:1] != (rows,):
            raise ValueError(
                f"the data gives batches of shape {leaf.shape}; batch_size="
                f"{batch_size} over {jax.process_count()} processes needs {rows} rows"
            )
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(
            sharding, np.asarray(x), (batch_size, *x.shape[1:])
        ),
        batch,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a fully replicated array."""
    return NamedSharding(mesh, PartitionSpec())
