"""Shardings of parameters by rules on their paths.

The design (ordered regex rules, a log line if one cannot be applied) follows
big_vision's ``sharding.py``.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from meta_opt.error_messages import first_few
from meta_opt.tree_paths import join_path
from meta_opt.types import PyTree

_log = logging.getLogger(__name__)

AxisNames = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Rule:
    """Sharding of the parameters that match ``pattern``.

    Attributes:
        pattern: regex that is searched in the '/'-joined path of the parameter.
        spec: mesh axes (or None) for the *last* axes of the parameter, so that the same
            rule applies to a layer and a scan-stack of layers. Other axes are not
            sharded.
        largest: mesh axis that shards the largest remaining divisible axis.
        min_size: smallest number of elements for ``largest`` (for smaller parameters
            communication would cost more than memory).
    """

    pattern: str
    spec: tuple[AxisNames, ...] = ()
    largest: str | None = None
    min_size: int = 0


FSDP_RULES = (Rule(r".*", largest="fsdp"),)
"""Shards every parameter over fsdp, along its largest divisible axis."""

_SMALL = 2**14
_BIASES = Rule(r"(attention/(query|key|value)|mlp/up)/bias", ("tensor",))
# Matches a kernel with NNX's suffix, but not the scale of an int8 kernel.
VISION_TEXT_RULES = (
    Rule(r"attention/(query|key|value)/kernel(/|$)", (None, "tensor"), "fsdp", _SMALL),
    Rule(r"attention/out/kernel(/|$)", ("tensor", None), "fsdp", _SMALL),
    Rule(r"mlp/(up|gate)/kernel(/|$)", (None, "tensor"), "fsdp", _SMALL),
    Rule(r"mlp/down/kernel(/|$)", ("tensor", None), "fsdp", _SMALL),
    _BIASES,
    # Communication would cost more than memory.
    Rule(r"(bias|scale)(/|$)"),
    Rule(r".*", largest="fsdp", min_size=_SMALL),
)
"""`meta_opt.models.vision_text`: heads and hidden units over tensor, all over fsdp."""

GENERATIVE_RULES = (
    Rule(r"decoder/tokens/embedding", (("tensor", "fsdp"), None)),
    # The decoder may have a single key-value head.
    Rule(r"decoder/.*attention/(key|value)/kernel(/|$)", (), "fsdp", _SMALL),
    *VISION_TEXT_RULES,
)
"""`meta_opt.models.generative`: the same, and the vocabulary over tensor and fsdp."""

CONV_GENERATIVE_RULES = tuple(rule for rule in GENERATIVE_RULES if rule != _BIASES)
"""The same, of a convolutional tower: the decoder's layers have no biases."""


def parameter_shardings(
    rules: Sequence[Rule], mesh: Mesh, *trees: PyTree
) -> tuple[PyTree, ...]:
    """Chooses a ``NamedSharding`` for every parameter by the first rule that matches.

    Parameters without a matching rule are replicated. If a rule cannot be applied to an
    axis, since its size is not divisible by the mesh axes, the axis is not sharded,
    which is logged.

    Args:
        rules: rules, of which the first match applies.
        mesh: the mesh.
        *trees: pytrees of arrays or ``jax.ShapeDtypeStruct``; several if the parameters
            are split, for example into trainable and frozen ones.

    Returns:
        A pytree of shardings for each of ``trees``, of the same structure.

    Raises:
        ValueError: if the pattern of a rule matches no parameter of any tree, or a
            rule names an axis that the mesh does not have.
    """
    for rule in rules:
        for axis in (*_names(rule.spec), *_names((rule.largest,))):
            if axis not in mesh.shape:
                raise ValueError(
                    f"sharding rule {rule.pattern!r} names the mesh axis {axis!r}; "
                    f"the mesh has {', '.join(mesh.shape)}"
                )
    matched = [False] * len(rules)
    paths: list[str] = []

    def choose(path: Any, leaf: Any) -> NamedSharding:
        name = join_path(path)
        paths.append(name)
        hits = [i for i, rule in enumerate(rules) if re.search(rule.pattern, name)]
        for i in hits:
            matched[i] = True
        spec = _apply(rules[hits[0]], mesh, name, leaf.shape) if hits else ()
        return NamedSharding(mesh, PartitionSpec(*spec))

    chosen = tuple(jax.tree_util.tree_map_with_path(choose, tree) for tree in trees)
    unused = [rule.pattern for rule, hit in zip(rules, matched, strict=True) if not hit]
    if unused:
        raise ValueError(
            f"sharding rules {unused} match none of the {len(paths)} parameters "
            f"({first_few(paths)})"
        )
    return chosen


def _names(spec: Sequence[AxisNames]) -> list[str]:
    """Returns the names of the mesh axes of a spec as a flat list."""
    names: list[str] = []
    for entry in spec:
        if entry is not None:
            names.extend((entry,) if isinstance(entry, str) else entry)
    return names


def _apply(
    rule: Rule, mesh: Mesh, name: str, shape: tuple[int, ...]
) -> tuple[AxisNames, ...]:
    """Returns the spec of a parameter, without axes that do not divide it."""
    spec: list[AxisNames] = [None] * len(shape)
    if len(rule.spec) > len(shape):
        _log.warning(
            "sharding: rule %r has %d axes and %s has shape %s; replicated",
            rule.pattern,
            len(rule.spec),
            name,
            shape,
        )
    else:
        offset = len(shape) - len(rule.spec)
        for axis, entry in enumerate(rule.spec, start=offset):
            parts = math.prod(mesh.shape[n] for n in _names((entry,)))
            if shape[axis] % parts:
                _log.warning(
                    "sharding: axis %d of %s %s is not divisible by %s=%d; replicated",
                    axis,
                    name,
                    shape,
                    entry,
                    parts,
                )
            elif parts > 1:
                spec[axis] = entry
    if rule.largest is None or mesh.shape[rule.largest] == 1:
        return tuple(spec)
    if math.prod(shape) < rule.min_size or rule.largest in _names(spec):
        return tuple(spec)
    parts = mesh.shape[rule.largest]
    free = [
        axis
        for axis, size in enumerate(shape)
        if spec[axis] is None and size and size % parts == 0
    ]
    if free:
        spec[max(free, key=lambda axis: (shape[axis], axis))] = rule.largest
    elif shape:
        _log.warning(
            "sharding: no free axis of %s %s is divisible by %s=%d; replicated",
            name,
            shape,
            rule.largest,
            parts,
        )
    return tuple(spec)
