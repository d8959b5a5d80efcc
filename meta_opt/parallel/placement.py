"""Arrays onto the devices of a mesh and back, in a run of several processes too."""

import jax
import numpy as np

from meta_opt.types import PyTree


def place(tree: PyTree, shardings: PyTree, donate: bool = False) -> PyTree:
    """Lays arrays out over a mesh, as fresh arrays that are safe to donate.

    With several processes, each provides its devices' shards from its own copy, which
    must be equal on all of them; nothing is sent.

    Args:
        tree: pytree of arrays, in this process's memory or on the mesh already.
        shardings: a sharding, or a pytree of them of the same structure.
        donate: whether the caller gives the arrays up; those that already have the
            right sharding are then not copied.

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
            # JAX keeps the array itself as its own device's copy, asked for or not.
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
    """Brings whole arrays into the memory of every process, one after the other.

    A device holds the largest of them whole for a moment. All processes must call this.

    Args:
        tree: pytree of arrays, however they are laid out.

    Returns:
        The same of numpy arrays.

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
