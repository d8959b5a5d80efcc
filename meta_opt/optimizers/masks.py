"""Masks as in optax: pytrees of bools, prefixes of them, or functions to them."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
import optax

from meta_opt.tree_paths import path_name
from meta_opt.types import PyTree, near_match

Mask: TypeAlias = PyTree | Callable[[PyTree], PyTree]
"""A pytree of bools, which may be a prefix of the parameters, or parameters to one."""


def expand_mask(name: str, mask: Mask, params: PyTree) -> tuple[bool, ...]:
    """The bool of every leaf of ``params``, in flattening order.

    Args:
        name: name of the argument, for error messages.
        mask: a pytree of bools with the structure of ``params`` or a prefix of it, so
            that ``True`` is one, or a function from ``params`` to such a pytree.
        params: the parameters.

    Raises:
        TypeError: a leaf of the mask that is not a bool known at trace time.
        ValueError: a mask that is not a prefix of the parameters.

    Example:
        >>> params = {"head": {"kernel": 1.0, "bias": 2.0}, "body": 3.0}
        >>> expand_mask("mask", {"head": True, "body": False}, params)
        (False, True, True)
    """
    # A pytree may itself be callable, such as an Equinox module; a bool is not.
    marks = jax.tree.leaves(mask)
    if marks and all(map(callable, marks)):
        mask = mask(params)
    for path, mark in jax.tree_util.tree_leaves_with_path(mask):
        if not _is_bool(mark):
            place = path_name(path)
            raise TypeError(
                f"{name} {f'at {place!r} ' if place else ''}is {mark!r} of type "
                f"{type(mark).__name__}; it must be True or False, known when the "
                "step is traced"
            )
    try:
        full = jax.tree.broadcast(mask, params)
    except ValueError:
        raise ValueError(_mismatch(name, mask, params)) from None
    return tuple(bool(mark) for mark in jax.tree.leaves(full))


def select(tree: PyTree, chosen: tuple[bool, ...]) -> PyTree:
    """``tree`` with `optax.MaskedNode` in place of leaves that are not chosen."""
    treedef: Any
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten(
        x if keep else optax.MaskedNode()
        for x, keep in zip(leaves, chosen, strict=True)
    )


def merge_zeros(updates: PyTree, params: PyTree, chosen: tuple[bool, ...]) -> PyTree:
    """``updates`` of the leaves chosen by `select`, and zeros for all others."""
    treedef: Any
    leaves, treedef = jax.tree.flatten(params)
    given = iter(jax.tree.leaves(updates))
    return treedef.unflatten(
        next(given) if keep else jax.numpy.zeros_like(p)
        for p, keep in zip(leaves, chosen, strict=True)
    )


def _is_bool(mark: Any) -> bool:
    if isinstance(mark, bool | np.bool_):
        return True
    concrete = isinstance(mark, jax.Array) and not isinstance(mark, jax.core.Tracer)
    return concrete and mark.shape == () and mark.dtype == np.bool_


def _mismatch(name: str, mask: PyTree, params: PyTree) -> str:
    """Error message for a mask that is not a prefix of the parameters."""
    marks, leaves = (
        [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        for tree in (mask, params)
    )

    def covers(mark: str, leaf: str) -> bool:
        return mark == "" or leaf == mark or leaf.startswith(f"{mark}/")

    advice = "give it the structure of the parameters, or a prefix of it"
    for mark in marks:
        if not any(covers(mark, leaf) for leaf in leaves):
            near = near_match(mark, leaves)
            return f"{name} has {mark!r}, which is not a parameter{near}: {advice}"
    for leaf in leaves:
        if not any(covers(mark, leaf) for mark in marks):
            return f"{name} has nothing for parameter {leaf!r}: {advice}"
    return (
        f"{name} and the parameters are pytrees of different types, "
        f"{type(mask).__name__} and {type(params).__name__}: {advice}"
    )
