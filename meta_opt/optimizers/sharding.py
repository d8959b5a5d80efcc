"""Shardings of an optimizer's state, from those of its parameters."""

from typing import Any

import jax
import optax
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    use_abstract_mesh,
)

from meta_opt.types import PyTree


def state_shardings(tx: optax.GradientTransformation, params: PyTree) -> PyTree:
    """The sharding that each leaf of ``tx.init(params)`` should have.

    On an automatic mesh, ``jax.jit(tx.init)`` returns plain zeros replicated; with
    ``jax.jit(tx.init, out_shardings=state_shardings(tx, params))`` every leaf follows
    its parameter. Works for any optax transformation: ``init`` is evaluated abstractly
    on an explicit-sharding twin of the mesh, where shardings are part of types.

    Args:
        tx: the transformation.
        params: arrays or `jax.ShapeDtypeStruct` leaves with a `NamedSharding`, all on
            one mesh.

    Returns:
        Pytree of `NamedSharding` with the structure of the state.

    Raises:
        ValueError: a parameter without `NamedSharding`, or several meshes.
    """
    shardings: list[Any] = [
        getattr(x, "sharding", None) for x in jax.tree.leaves(params)
    ]
    if not shardings or not all(isinstance(s, NamedSharding) for s in shardings):
        raise ValueError(
            "state_shardings needs parameters with a NamedSharding; place them with "
            "jax.device_put(params, NamedSharding(mesh, spec)) first"
        )
    mesh = shardings[0].mesh
    if any(s.mesh != mesh for s in shardings):
        raise ValueError("parameters lie on different meshes; put them on one")
    explicit = Mesh(
        mesh.devices,
        mesh.axis_names,
        axis_types=(AxisType.Explicit,) * mesh.devices.ndim,
    )

    def abstract(x: Any) -> jax.ShapeDtypeStruct:
        spec = x.sharding.spec
        full = PartitionSpec(*spec, *(None,) * (len(x.shape) - len(spec)))
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(explicit, full)
        )

    # From JAX 0.12 on, `zeros_like` follows its argument only where the mesh is set.
    with use_abstract_mesh(explicit.abstract_mesh):
        state = jax.eval_shape(tx.init, jax.tree.map(abstract, params))

    def concrete(x: jax.ShapeDtypeStruct) -> NamedSharding:
        spec = x.sharding.spec if isinstance(x.sharding, NamedSharding) else ()
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(concrete, state)
