"""Parameters of a module by path, and mismatches with given tensors."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from meta_opt.error_messages import first_few

STORED = (nnx.Param, nnx.BatchStat)
"""Kinds of variables that define a model: parameters and running statistics."""


def by_path(model: nnx.Module, kind: Any = nnx.Param) -> dict[str, Any]:
    """The variables of a kind, or of any of several, by '/'-joined path."""
    flat = nnx.to_flat_state(nnx.state(model, kind))
    return {"/".join(map(str, path)): param for path, param in flat}


def parameter_count(model: nnx.Module) -> int:
    """Number of parameters (scalars) in ``model``."""
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def exportable(model: nnx.Module) -> dict[str, Any]:
    """Parameters and running statistics by path, of a model without adapters.

    Raises:
        ValueError: the model has adapters or int8 kernels.
    """
    params = by_path(model, STORED)
    if adapters := [name for name in params if "/lora_" in name]:
        raise ValueError(
            f"merge the LoRA adapters before saving: {first_few(adapters)}"
        )
    if scaled := [name for name in params if name.endswith("/kernel_scale")]:
        raise ValueError(
            "call meta_opt.models.int8.restore_base before saving; these are in int8: "
            f"{first_few(name.removesuffix('_scale') for name in scaled)}"
        )
    return params


def mismatch(found: Mapping[str, object], wanted: Mapping[str, object]) -> str:
    """Describes how given tensors differ from expected ones, for an error message.

    Args:
        found: shapes of the given tensors by name.
        wanted: expected shapes by name.

    Returns:
        "it lacks ...; it has unknown ...; it has other shapes: ..."; "" if all is well.

    >>> mismatch({"a": (1,), "b": (2,)}, {"b": (3,), "c": (4,)})
    'it lacks c; it has unknown a; it has other shapes: b (2,) instead of (3,)'
    """
    other = [
        f"{name} {found[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    kinds = (
        ("lacks", [name for name in wanted if name not in found]),
        ("has unknown", [name for name in found if name not in wanted]),
        ("has other shapes:", other),
    )
    return "; ".join(f"it {what} {first_few(which)}" for what, which in kinds if which)
