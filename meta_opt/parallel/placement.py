"""Placement of arrays on a mesh and back, also in multi-process runs."""

import jax
import numpy as np

from meta_opt.types import PyTree


def place(tree: PyTree, shardings: PyTree, donate: bool = False) -> PyTree:
    """Shards arrays over a mesh, as new arrays that are safe to donate.

    With several processes, each provides the shards of its devices from its own copy,
    which must be equal in all processes; there is no communication.

    Args:
        tree: pytree of arrays, in this process's memory or already on the mesh.
        shardings: a sharding, or a pytree of shardings of the same structure.
        donate: whether the arrays are donated; those that already have the right
            sharding are then not copied.

    Returns:
        The arrays, on the devices of all processes.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda x: _place(x, shardings, donate), tree)
    return jax.tree.map(lambda x, s: _place(x, s, donate), tree, shardings)


def _place(
    x: jax.Array | np.ndarray, sharding: jax.sharding.Sharding, donate: bool
) -> jax.Array:
    if donate and isinstance(x, jax.Array) and x.sharding == sharding:
        return x
    if jax.process_count() == 1:
        if donate:
            return jax.device_put(x, sharding, may_alias=True)
        if isinstance(x, jax.Array) and sharding.shard_shape(x.shape) == x.shape:
            # JAX may reuse the array itself as the shard of its device, so copy it.
            x = x.copy()
        return jax.device_put(x, sharding, may_alias=False)
    if isinstance(x, jax.Array):
        if not x.is_fully_addressable:
            return jax.device_put(x, sharding, may_alias=False)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = _place(jax.random.key_data(x), sharding, donate)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    here = np.asarray(x)
    return jax.make_array_from_callback(
        here.shape, sharding, lambda index: np.array(here[index])
    )


def to_host(tree: PyTree) -> PyTree:
    """Gathers full arrays in the host memory of every process, one after the other.

    Each device temporarily holds a full copy of one array. All processes must call
    this.

    Args:
        tree: pytree of arrays of any sharding.

    Returns:
        The pytree of NumPy arrays.

    Example:
        >>> to_host({"x": jax.numpy.arange(2)})
        {'x': array([0, 1], dtype=int32)}
    """
    return jax.tree.map(_to_host, tree)


def _to_host(x: jax.Array | np.ndarray) -> np.ndarray:
    if isinstance(x, jax.Array) and not (
        x.is_fully_addressable or x.is_fully_replicated
    ):
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)
