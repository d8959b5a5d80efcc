"""Names of the mesh axes, and the axes available while tracing.

A mesh is in use under `jax.set_mesh`, for example while a training step is compiled.
"""

import math
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

AXES = ("data", "fsdp", "tensor")
# Not ("data", "fsdp"): with data, fsdp and tensor all above 1, XLA's partitioner leaves
# out an all-reduce for that order, and gradients are wrong (openxla/xla issue 40034).
BATCH_AXES = ("fsdp", "data")


def automatic_axes() -> dict[str, int]:
    """Sizes of the automatic axes (GSPMD) of the mesh in use with several devices.

    Excludes explicit axes, and axes that are manual under a surrounding
    `jax.shard_map`.

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


def varying_axes(tree: Any) -> frozenset[str]:
    """Axes of a surrounding `jax.shard_map` over which a leaf of ``tree`` may vary.

    Empty outside of `jax.shard_map`, and under ``check_vma=False``. ``tree`` is a
    pytree of arrays.

    >>> varying_axes({"kernel": jax.numpy.ones(3)})
    frozenset()
    """

    def axes(x: jax.Array) -> frozenset[str]:
        kind = jax.typeof(x)
        manual = getattr(kind, "manual_axis_type", None)
        if manual is not None:
            return manual.varying
        return getattr(kind, "vma", frozenset())  # Earlier versions of JAX.

    return frozenset().union(*map(axes, jax.tree.leaves(tree)))


def varying_over(tree: Any, axes: frozenset[str]) -> Any:
    """``tree`` with leaves that count as varying over ``axes``; values do not change.

    Under `jax.shard_map` the branches of a condition, and a loop's carry before and
    after a step, must vary over the same axes.

    Args:
        tree: pytree of arrays.
        axes: `varying_axes` of another tree.
    """

    def cast(x: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - varying_axes(x)))
        if not missing:
            return x
        if not hasattr(jax.lax, "pcast"):  # Before JAX 0.8.2.
            return jax.lax.pvary(x, missing)  # type: ignore[attr-defined]
        return jax.lax.pcast(x, missing, to="varying")

    return jax.tree.map(cast, tree) if axes else tree


def shard_batch(x: jax.Array) -> jax.Array:
    """Constrains ``x`` [B, ...] to be sharded over the batch axes of the mesh in use.

    Applied to activations, so that the compiler gathers parameters (a layer at a time)
    instead of sharding activations like the parameters. Without a mesh, or if the axes
    do not divide B, ``x`` is returned unchanged.
    """
    known = automatic_axes()
    axes = tuple(name for name in BATCH_AXES if name in known)
    if not axes or x.shape[0] % math.prod(known[name] for name in axes):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))
