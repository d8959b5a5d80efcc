"""Particles of meta-training over a mesh axis that spans all devices of all processes.

A particle is one inner run, or the runs that share a perturbation. Particles know
nothing of each other until their results are averaged, so each device runs its own to
the end and all that crosses devices is the mean.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from meta_opt.types import PyTree

PARTICLES = "particles"
"""Name of the mesh axis."""


class Vmap(Protocol):
    """`jax.vmap` over the leading axis, or something that maps as it does."""

    def __call__(self, fun: Callable, in_axes: int | Sequence[Any] = 0) -> Callable:
        """Returns the mapped function; ``in_axes`` are 0 or None."""
        ...


def particle_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, ``particles``.

    Args:
        devices: default all of all processes.

    Returns:
        The mesh, its axis automatic.
    """
    devices = list(jax.devices() if devices is None else devices)
    return Mesh(np.asarray(devices), (PARTICLES,), axis_types=(AxisType.Auto,))


def particle_sharding(mesh: Mesh) -> NamedSharding:
    """Layout of an array whose leading axis is that of the particles."""
    return NamedSharding(mesh, PartitionSpec(PARTICLES))


def check_particles(mesh: Mesh, name: str, count: int) -> None:
    """Checks that every device gets the same number of particles.

    Args:
        mesh: from `particle_mesh`.
        name: of the setting, for the message.
        count: its value.

    Raises:
        ValueError: if not; names the next number that does.
    """
    devices = mesh.shape[PARTICLES]
    if count % devices:
        enough = -(-count // devices) * devices
        raise ValueError(
            f"{name}={count} cannot be shared evenly by {devices} devices; take "
            f"{name}={enough}, another number of devices, or parallel='families'"
        )


def vmap_over(mesh: Mesh | None) -> Vmap:
    """A `jax.vmap` over particles that are divided over the devices of ``mesh``.

    What is mapped is filled up with copies of its last row where the devices do not
    divide it; this costs no time, since the fullest device decides. Arguments with
    ``in_axes`` None and what the function closes over are on every device.

    Args:
        mesh: from `particle_mesh`; None gives `jax.vmap` itself.

    Returns:
        ``vmap(function, in_axes)``; every entry of ``in_axes`` is 0 or None.

    Example:
        >>> vmap = vmap_over(particle_mesh(jax.devices()[:1]))
        >>> vmap(lambda x, y: x * y, (0, None))(jnp.arange(3), 2).tolist()
        [0, 2, 4]
    """
    if mesh is None:
        return jax.vmap
    devices = mesh.shape[PARTICLES]

    def vmap(fun: Callable, in_axes: int | Sequence[Any] = 0) -> Callable:
        def mapped(*args: PyTree) -> PyTree:
            axes = (in_axes,) * len(args) if isinstance(in_axes, int) else in_axes
            divided = [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]
            count = len(jax.tree.leaves(divided)[0])
            spare = -count % devices

            def fill(x: jax.Array) -> jax.Array:
                return jnp.concatenate([x, *[x[-1:]] * spare]) if spare else x

            filled = [
                jax.tree.map(fill, arg) if axis == 0 else arg
                for arg, axis in zip(args, axes, strict=True)
            ]
            # Without `check_vma`: with it, the derivative by a replicated argument is
            # summed over devices, and here each particle has its own.
            run = jax.shard_map(
                jax.vmap(fun, tuple(axes)),
                mesh=mesh,
                in_specs=tuple(
                    PartitionSpec() if axis is None else PartitionSpec(PARTICLES)
                    for axis in axes
                ),
                out_specs=PartitionSpec(PARTICLES),
                check_vma=False,
            )
            return jax.tree.map(lambda x: x[:count] if spare else x, run(*filled))

        return mapped

    return vmap
