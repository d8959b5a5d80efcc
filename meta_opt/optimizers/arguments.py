"""Validation of optimizer arguments, with errors that suggest a remedy."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.mesh_axes import varying_axes
from meta_opt.optimizers.update_rule import RMS_STEP
from meta_opt.tree_paths import path_name
from meta_opt.types import PyTree

_MOST_STEPS = 2**31 - 1
"""Largest int32, the type of the step counter."""


def check_num_steps(num_steps: Any) -> None:
    """Raises unless ``num_steps`` is a scalar integer of at least 1, traced or not.

    Raises:
        TypeError: neither an integer nor a scalar array of integer type.
        ValueError: below 1, or larger than an int32.
    """
    is_array = isinstance(num_steps, jax.Array | np.ndarray | np.generic)
    if is_array:
        good = num_steps.ndim == 0 and jnp.issubdtype(num_steps.dtype, jnp.integer)
        given = f"has shape {num_steps.shape} and type {num_steps.dtype}"
    else:
        good = isinstance(num_steps, int) and not isinstance(num_steps, bool)
        given = f"is {num_steps!r} of type {type(num_steps).__name__}"
    if not good:
        raise TypeError(
            f"num_steps {given}; it must be an integer, the number of calls of update "
            "in the whole run: pass an int, or an integer array of shape ()"
        )
    if isinstance(num_steps, jax.core.Tracer):
        return
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1")
    if int(num_steps) > _MOST_STEPS:
        raise ValueError(f"num_steps is {num_steps}; it must be at most {_MOST_STEPS}")


def check_scalar(name: str, value: jax.typing.ArrayLike | None) -> None:
    """Raises unless the keyword ``name`` of ``update`` is a real scalar or None.

    Raises:
        TypeError: a tuple, as a loss with ``has_aux=True`` is, or a complex number.
        ValueError: an array that is not a scalar.
    """
    if value is None:
        return
    if isinstance(value, tuple | list | dict):
        raise TypeError(
            f"{name} is a {type(value).__name__} of {len(value)}; it must be a scalar: "
            "of a loss function with auxiliary outputs (has_aux=True) pass the loss "
            "alone"
        )
    shape = jnp.shape(value)
    if jnp.issubdtype(jnp.result_type(value), jnp.complexfloating):
        raise TypeError(f"{name} is complex; it must be a real scalar")
    if shape != ():
        raise ValueError(
            f"{name} has shape {shape}; it must be a scalar: pass its mean, "
            f"jnp.mean({name})"
        )


def check_varying(name: str, value: jax.typing.ArrayLike | None, tree: PyTree) -> None:
    """Raises ValueError if ``value`` varies over devices where the step does not.

    Args:
        name: a keyword of ``update``.
        value: what was passed as such.
        tree: gradients, state and parameters.
    """
    if value is None or not varying_axes(value):
        return
    axes = sorted(varying_axes(value) - varying_axes(tree))
    if axes:
        named = repr(axes[0]) if len(axes) == 1 else repr(tuple(axes))
        raise ValueError(
            f"{name} varies over the mesh axes {', '.join(axes)}, over which gradients "
            "and parameters do not: pass its mean over the devices, "
            f"jax.lax.pmean({name}, {named})"
        )


def check_schedule(schedule: Any) -> None:
    """Raises TypeError unless ``schedule`` is None, a function or a number."""
    is_array = isinstance(schedule, jax.Array | np.ndarray | np.generic)
    is_number = isinstance(schedule, int | float) and not isinstance(schedule, bool)
    if not (schedule is None or callable(schedule) or is_array or is_number):
        raise TypeError(
            f"schedule is {schedule!r} of type {type(schedule).__name__}; it must be a "
            "function of the step that returns a multiplier, such as "
            "optax.linear_schedule(1.0, 0.0, 1000), or a number"
        )


def check_params(params: PyTree) -> None:
    """Raises TypeError if a parameter is a Python number or another non-array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            remedy = (
                "wrap it in jnp.asarray"
                if isinstance(leaf, int | float | complex)
                else "pass the arrays alone, of an Equinox module "
                "eqx.filter(model, eqx.is_inexact_array)"
            )
            raise TypeError(
                f"parameter {path_name(path)!r} is {leaf!r} of type "
                f"{type(leaf).__name__}; parameters must be arrays: {remedy}"
            )


def check_gradients(grads: PyTree) -> None:
    """Raises TypeError if a gradient is complex."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise TypeError(
                f"the gradient of {path_name(path)!r} has type "
                f"{jnp.result_type(leaf)}; the optimizer updates floating-point "
                "parameters only: take the gradient of a real loss"
            )


def check_match(tree: PyTree, like: PyTree, name: str, other: str) -> None:
    """Raises ValueError for the first path whose structure or shape differs.

    Args:
        tree: the given pytree.
        like: the pytree that it must match.
        name: name of ``tree`` in messages.
        other: name of ``like`` in messages.
    """
    ours, theirs = (
        {
            path_name(path): jnp.shape(x)
            for path, x in jax.tree_util.tree_leaves_with_path(each)
        }
        for each in (tree, like)
    )
    for path in (*ours, *theirs):
        if ours.get(path) != theirs.get(path):
            raise ValueError(
                f"{name} and {other} do not match at {path!r}: {name} have "
                f"{ours.get(path, 'nothing')}, {other} {theirs.get(path, 'nothing')}"
            )
    ours_kind: Any = jax.tree.structure(tree)
    if ours_kind != jax.tree.structure(like):
        raise ValueError(
            f"{name} and {other} are pytrees of different types: "
            f"{jax.tree.structure(tree)} and {jax.tree.structure(like)}"
        )


def check_state(state: Any, kind: type, learned: bool) -> None:
    """Raises TypeError unless ``state`` is a state of this optimizer.

    Args:
        state: the state that was passed to ``update``.
        kind: expected type of the state.
        learned: whether the optimizer has a controller, whose state has LSTM memory.
    """
    found = f"a {type(state).__name__}"
    if isinstance(state, kind):
        if learned == (getattr(state, "controller", None) is not None):
            return
        ours, other = "the learned optimizer", "the hand-designed rule"
        found = f"that of {other if learned else ours}"
    raise TypeError(
        f"state is {found}, not that of this optimizer: pass what tx.init(params) or "
        "the last tx.update returned"
    )


def warn_of_half_precision(params: PyTree) -> bool:
    """Warns if concrete half-precision parameters would lose updates to rounding.

    Returns:
        Whether it warned.
    """
    leaves = [x for x in jax.tree.leaves(params) if _is_concrete_half(x)]
    if not leaves:
        return False
    lost = int(_count_lost(leaves))
    kinds = " and ".join(sorted({str(x.dtype) for x in leaves}))
    warnings.warn(
        f"{sum(x.size for x in leaves)} parameters in {len(leaves)} tensors are "
        f"{kinds}: an update below half a unit in the last place, in bfloat16 up to "
        "2**-8 of the parameter, rounds to nothing when it is applied. At "
        f"{lost} of them even the largest scheduled update, of RMS {RMS_STEP}, does; "
        "at more it will as the schedule decays. Keep the parameters in float32 and "
        "cast them to half precision in the loss function",
        stacklevel=3,
    )
    return True


def _is_concrete_half(x: Any) -> bool:
    concrete = isinstance(x, jax.Array | np.ndarray | np.generic)
    if not concrete or isinstance(x, jax.core.Tracer):
        return False
    return jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits <= 16


@jax.jit
def _count_lost(leaves: list[jax.Array]) -> jax.Array:
    """Number of elements whose rounding error exceeds `RMS_STEP`."""

    def count(x: jax.Array) -> jax.Array:
        half_unit = 0.5 * float(jnp.finfo(x.dtype).eps)
        # Summed in float32, since the count for a large model may overflow an int32.
        size = jnp.abs(x.astype(jnp.float32))
        return jnp.sum(size * half_unit > RMS_STEP, dtype=jnp.float32)

    return sum((count(x) for x in leaves), jnp.float32(0.0))
