"""Names of pytree leaves: key paths joined by slashes."""

from typing import Any

import jax

from meta_opt.error_messages import first_few
from meta_opt.types import PyTree

_OF_VARIABLES = ("value", "raw_value")
"""Attributes by which the leaf of a Flax variable is found."""


def join_path(path: tuple) -> str:
    """Joins a JAX key path to a string.

    >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"a": [1.0]})
    >>> join_path(path)
    'a/0'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def path_name(path: tuple) -> str:
    """The name of a parameter: without the ``value`` of a Flax variable around it.

    A key of that name stays, as of the values' kernel in a dictionary.

    >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"attention": {"value": 1.0}})
    >>> path_name(path)
    'attention/value'
    """
    last = path[-1] if len(path) > 1 else None
    boxed = isinstance(last, jax.tree_util.GetAttrKey) and last.name in _OF_VARIABLES
    return join_path(path[:-1] if boxed else path)


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a pytree by `join_path`, in its order.

    Raises:
        ValueError: two leaves with the same name.

    >>> leaves_by_path({"a": [1.0, 2.0], "b": 3.0})
    {'a/0': 1.0, 'a/1': 2.0, 'b': 3.0}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {join_path(path): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        names = [join_path(path) for path, _ in leaves]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"several leaves have the path {first_few(twice)}")
    return named
