"""Groups of tensors of one shape, so that work is done once a shape, not once a tensor.

A *unit* is a tensor, or one layer of a scan-stacked one. Arrays of a group are kept as
*chunks* ``[u, *unit shape]``: small leaves are stacked into one chunk (the copy is
cheap, and saves operations and compile time), a large leaf is a chunk of its own with a
leading axis of one, which costs nothing. What is small for every unit (statistics,
factored moments) is stacked over the whole group.

What is stacked is cut up again at *slots*: the index of each leaf's first unit, held in
the optimizer's state. XLA compiles kernels that are alike once, and cuts at a constant
index are never alike; with runtime indices compilation is several times faster.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from meta_opt.features.tensors import TensorInfo
from meta_opt.mesh_axes import automatic_axes

_STACK_BELOW = 1 << 15
"""Elements of a unit below which leaves of one shape are stacked."""

Leaves = Sequence | Mapping[int, jax.Array]


@dataclasses.dataclass(frozen=True)
class Group:
    """Leaves of one shape and kind.

    Attributes:
        chunks: indices of leaves in flattening order, by chunk.
        infos: their descriptions, likewise.
        start: index of the first unit in the order of all N units.
    """

    chunks: tuple[tuple[int, ...], ...]
    infos: tuple[tuple[TensorInfo, ...], ...]
    start: int

    @property
    def first(self) -> TensorInfo:
        """Description of the first leaf; shape, split and kind are those of all."""
        return self.infos[0][0]

    @property
    def large(self) -> bool:
        """Whether the units are too large to be stacked: a chunk is a leaf."""
        return _is_large(self.first.shape)

    @property
    def leaves(self) -> tuple[int, ...]:
        """Indices of all leaves, in the order of their units."""
        return tuple(i for chunk in self.chunks for i in chunk)

    @property
    def spans(self) -> tuple[slice, ...]:
        """Where each chunk's units lie within the group's U."""
        spans, begin = [], 0
        for infos in self.infos:
            end = begin + sum(info.units for info in infos)
            spans.append(slice(begin, end))
            begin = end
        return tuple(spans)

    @property
    def units(self) -> int:
        """Number of units U."""
        return self.spans[-1].stop

    @property
    def row_axes(self) -> tuple[int, ...]:
        """Axes of ``[u, *shape]`` that hold the rows."""
        return tuple(range(1, 1 + self.first.split))

    @property
    def column_axes(self) -> tuple[int, ...]:
        """Axes of ``[u, *shape]`` that hold the columns."""
        return tuple(range(1 + self.first.split, 1 + len(self.first.shape)))

    @property
    def all_axes(self) -> tuple[int, ...]:
        """Every axis but the first."""
        return self.row_axes + self.column_axes

    def select(self, per_unit: jax.Array) -> jax.Array:
        """This group's part of an [N, ...] array: [U, ...]."""
        return per_unit[self.start : self.start + self.units]

    def cut(self, x: jax.Array, chunk: int, slots: Sequence[jax.Array]) -> jax.Array:
        """A chunk's units [u, ...] of ``x`` [U, ...]."""
        if len(self.chunks) == 1:
            return x
        span = self.spans[chunk]
        slot = slots[self.chunks[chunk][0]] - self.start
        part = jax.lax.dynamic_slice_in_dim(x, slot, span.stop - span.start)
        return everywhere(part)

    def pack(self, leaves: Leaves) -> list[jax.Array]:
        """Chunks ``[u, *shape]`` of this group's leaves, picked from all leaves."""
        return [
            _stack([leaves[i] for i in chunk], infos)
            for chunk, infos in zip(self.chunks, self.infos, strict=True)
        ]

    def pack_small(self, leaves: Leaves) -> jax.Array:
        """All of this group's leaves stacked to one array [U, ...]."""
        infos = [info for chunk in self.infos for info in chunk]
        return _stack([leaves[i] for i in self.leaves], infos)

    def unpack(
        self, chunks: Sequence[jax.Array], into: list, slots: Sequence[jax.Array]
    ) -> None:
        """Writes the units of ``chunks`` back to their leaves' places in ``into``."""
        for chunk, infos, span, array in zip(
            self.chunks, self.infos, self.spans, chunks, strict=True
        ):
            if len(chunk) > 1:
                array = everywhere(array)
            for i, info in zip(chunk, infos, strict=True):
                part = array
                if len(chunk) > 1:
                    slot = slots[i] - (self.start + span.start)
                    part = jax.lax.dynamic_slice_in_dim(array, slot, info.units)
                into[i] = part if info.layers else part.reshape(part.shape[1:])


def first_units(groups: Sequence[Group], leaves: int) -> list[int]:
    """Index of the first unit of each of ``leaves`` leaves (0 for empty ones)."""
    slots = [0] * leaves
    for group in groups:
        unit = group.start
        for chunk, infos in zip(group.chunks, group.infos, strict=True):
            for i, info in zip(chunk, infos, strict=True):
                slots[i] = unit
                unit += info.units
    return slots


def unstack_slots(slots: jax.Array, true: jax.Array) -> list[jax.Array]:
    """The entries of ``slots`` [leaves], in a way that stays cheap to compile.

    Read in place, an entry's constant index would be fused into the kernel that cuts at
    it, and no two kernels would be alike. The outputs of a branch are not fused.

    Args:
        slots: int32 [leaves].
        true: bool [], true at run time and unknown to the compiler.
    """
    zeros = [jnp.zeros((), jnp.int32)] * len(slots)
    return jax.lax.cond(true, lambda x: [*jnp.unstack(x)], lambda _: zeros, slots)


def _stack(leaves: list[jax.Array], infos: Sequence[TensorInfo]) -> jax.Array:
    parts = [
        x if info.layers else x[None] for x, info in zip(leaves, infos, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    return everywhere(jnp.concatenate(parts))


def group_leaves(
    infos: Sequence[TensorInfo], leaves: Sequence[jax.Array]
) -> tuple[Group, ...]:
    """Puts non-empty leaves into groups and gives units their order.

    Leaves share a group if shape, split, kind and type agree and, where shardings are
    explicit, these too.
    """
    buckets: dict[tuple, list[int]] = collections.defaultdict(list)
    for i, (info, leaf) in enumerate(zip(infos, leaves, strict=True)):
        if not info.units:
            continue
        explicit: tuple = ()
        if is_explicit(leaf):
            # Stacks of layers may be sharded over layers: these do not concatenate.
            explicit = (str(jax.typeof(leaf).sharding.spec), i if info.layers else -1)
        buckets[info.shape, info.is_matrix, str(leaf.dtype), explicit].append(i)
    groups = []
    start = 0
    for members in buckets.values():
        chunks: tuple[tuple[int, ...], ...] = (tuple(members),)
        if _is_large(infos[members[0]].shape):
            chunks = tuple((i,) for i in members)
        described = tuple(tuple(infos[i] for i in chunk) for chunk in chunks)
        group = Group(chunks, described, start)
        groups.append(group)
        start += group.units
    return tuple(groups)


def _is_large(shape: tuple[int, ...]) -> bool:
    return math.prod(shape) >= _STACK_BELOW


def is_explicit(x: jax.Array) -> bool:
    """Whether ``x``'s sharding is part of its type (an explicit-sharding mesh)."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    return mesh is not None and bool(getattr(mesh, "explicit_axes", ()))


def replicated(x: jax.Array) -> jax.Array:
    """``x`` on every device of its mesh, or of the one in use; else ``x`` as it is."""
    if is_explicit(x):
        # With its mesh named, so that no mesh needs to be set around the call.
        mesh = jax.typeof(x).sharding.mesh
        spec = jax.sharding.PartitionSpec(*(None,) * x.ndim)
        return jax.sharding.reshard(x, jax.sharding.NamedSharding(mesh, spec))
    if automatic_axes():
        return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec())
    return x


def everywhere(x: jax.Array) -> jax.Array:
    """A small ``x`` on every device, where it is for the compiler to say.

    Left to itself it divides what is stacked, and gathers it again leaf by leaf.
    """
    return x if is_explicit(x) else replicated(x)


def sharded_like(x: jax.Array, reference: jax.Array) -> jax.Array:
    """``x`` with the explicit sharding of ``reference``, where it has one."""
    if not is_explicit(reference):
        return x
    return jax.sharding.reshard(x, jax.typeof(reference).sharding)
