"""The axes of the device mesh by name, and those that code being traced may use.

A mesh is in use under `jax.set_mesh`, as the training step is compiled.
"""

import math

import jax
from jax.sharding import AxisType, PartitionSpec

AXES = ("data", "fsdp", "tensor")
# Not ("data", "fsdp"): with data, fsdp and tensor all above 1, XLA's partitioner leaves
# out an all-reduce for that order, and gradients are wrong (openxla/xla issue 40034).
BATCH_AXES = ("fsdp", "data")


def automatic_axes() -> dict[str, int]:
    """Sizes of the axes in use that have several devices, laid out by the compiler.

    None of a mesh whose shardings are explicit, nor of one that a surrounding
    `jax.shard_map` has divided by hand.

    >>> automatic_axes()
    {}
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {
        name: mesh.shape[name]
        for name, kind in kinds
        if kind == AxisType.Auto and mesh.shape[name] > 1
    }


def shard_batch(x: jax.Array) -> jax.Array:
    """Constrains ``x`` [B, ...] to be sharded over the batch axes of the mesh in use.

    Applied to activations, so that the compiler gathers parameters (a layer at a time)
    instead of laying activations out like the parameters. Without a mesh, or where the
    axes do not divide B, ``x`` is returned unchanged.
    """
    known = automatic_axes()
    axes = tuple(name for name in BATCH_AXES if name in known)
    if not axes or x.shape[0] % math.prod(known[name] for name in axes):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))
