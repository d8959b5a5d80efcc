"""Names of pytree leaves: key paths joined by slashes."""

import re
from typing import Any

import jax

from meta_opt.types import PyTree


def join_path(path: tuple) -> str:
    """Joins a JAX key path to a string.

    >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"a": [1.0]})
    >>> join_path(path)
    'a/0'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def path_name(path: tuple) -> str:
    """The name of a parameter: without the ``value`` that Flax NNX appends."""
    return re.sub(r"/(raw_)?value$", "", join_path(path))


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
        raise ValueError(f"several leaves have the path {', '.join(twice[:5])}")
    return named
