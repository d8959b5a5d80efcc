"""Particles of meta-training, sharded over all devices of all processes.

A particle is one inner run, or the runs that share a perturbation. Particles are
independent until their results are averaged, so that the mean is the only communication
between devices.
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
    """`jax.vmap` over the leading axis, or an equivalent function."""

    def __call__(self, fun: Callable, in_axes: int | Sequence[Any] = 0) -> Callable:
        """Returns the mapped function; ``in_axes`` are 0 or None."""
        ...


def particle_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Creates a mesh with the single axis ``particles``.

    Args:
        devices: devices of the mesh; by default all devices of all processes.

    Returns:
        The mesh, its axis automatic.
    """
    devices = list(jax.devices() if devices is None else devices)
    return Mesh(np.asarray(devices), (PARTICLES,), axis_types=(AxisType.Auto,))


def particle_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose leading axis is that of the particles."""
    return NamedSharding(mesh, PartitionSpec(PARTICLES))


def check_particles(mesh: Mesh, name: str, count: int) -> None:
    """Checks that particles can be distributed evenly over the devices.

    Args:
        mesh: from `particle_mesh`.
        name: name of the setting, for the message.
        count: value of the setting.

    Raises:
        ValueError: if not; the message has the next suitable number.
    """
    devices = mesh.shape[PARTICLES]
    if count % devices:
        enough = -(-count // devices) * devices
        raise ValueError(
            f"{name}={count} cannot be shared evenly by {devices} devices; take "
            f"{name}={enough}, another number of devices, or parallel='families'"
        )


def vmap_over(mesh: Mesh | None) -> Vmap:
    """Returns a `jax.vmap` over particles, sharded over the devices of ``mesh``.

    Mapped arguments are padded with copies of their last row to a multiple of the
    number of devices; this takes no extra time, since the fullest device determines it.
    Arguments with ``in_axes`` None and closed-over values are replicated.

    Args:
        mesh: from `particle_mesh`; None returns `jax.vmap` itself.

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
            # With `check_vma`, gradients with respect to replicated arguments would be
            # summed over devices, but each particle needs its own.
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
