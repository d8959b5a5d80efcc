"""Groups of tensors of the same kind, to batch operations over a group.

A *unit* is a tensor, or one layer of a scan-stacked one. Arrays of a group are kept as
*chunks* ``[u, *unit shape]``: small leaves are stacked into one chunk (the copy is
cheap, and saves operations and compile time), a large leaf is a chunk of its own with a
leading axis of one, which costs nothing. What is small for every unit (statistics,
factored moments) is stacked over the whole group.

Small leaves of different shapes are seen as vectors or as matrices of rows and columns
and padded by zeros to the shape of the largest in their group: what a program costs to
compile grows with the number of its shapes. Padding stays zero through every step, and
means (`Group.mean`) are over the elements that are there.

Stacked arrays are sliced again at *slots*: the index of each leaf's first unit, held in
the optimizer's state. XLA compiles identical kernels once, and slices at different
constant indices are never identical; with runtime indices compilation is several times
faster.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.features.tensors import TensorInfo
from meta_opt.mesh_axes import automatic_axes, varying_axes, varying_over

_STACK_BELOW = 1 << 15
"""Number of elements of a unit below which leaves are stacked."""
_PADDED = 2.0
"""Largest ratio of the operations that orthogonalise a padded matrix to those that
orthogonalise the matrix alone."""
_PADDING = 1 << 15
"""Largest number of padding elements of all units of one shape."""

Leaves = Sequence | Mapping[int, jax.Array]


@dataclasses.dataclass(frozen=True)
class Group:
    """Leaves of one kind, padded to one shape.

    Attributes:
        chunks: indices of leaves in flattening order, by chunk.
        infos: their descriptions, by chunk; small leaves as `TensorInfo.flat`.
        start: index of the first unit in the order of all N units.
    """

    chunks: tuple[tuple[int, ...], ...]
    infos: tuple[tuple[TensorInfo, ...], ...]
    start: int

    @property
    def first(self) -> TensorInfo:
        """Description of the first leaf, which is the largest; all have its kind."""
        return self.infos[0][0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape to which units are padded."""
        return self.first.shape

    @property
    def large(self) -> bool:
        """Whether the units are too large to be stacked: a chunk is a leaf."""
        return _is_large(self.shape)

    @property
    def leaves(self) -> tuple[int, ...]:
        """Indices of all leaves, in the order of their units."""
        return tuple(i for chunk in self.chunks for i in chunk)

    @property
    def spans(self) -> tuple[slice, ...]:
        """Range of each chunk's units within the group's U units."""
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
        return tuple(range(1 + self.first.split, 1 + len(self.shape)))

    @property
    def all_axes(self) -> tuple[int, ...]:
        """All axes but the first."""
        return self.row_axes + self.column_axes

    def count(self, axes: tuple[int, ...]) -> np.ndarray:
        """Elements along ``axes`` of each unit: float32 [U], or [1] if all are equal.

        Padding is not counted.
        """
        infos = [info for chunk in self.infos for info in chunk]
        numbers = [math.prod(_sizes(info, axes)[1:]) for info in infos]
        each = np.asarray(numbers, np.float32)
        if len(set(numbers)) == 1:
            return each[:1]
        return np.repeat(each, [info.units for info in infos])

    def mean(
        self, x: jax.Array, axes: tuple[int, ...], keepdims: bool = False
    ) -> jax.Array:
        """Mean of ``x`` [u, *shape] along ``axes`` without the padding, which is 0."""
        total = jnp.sum(x, axis=axes, keepdims=keepdims)
        return total / per_unit(self.count(axes), total)

    def select(self, per_unit: jax.Array) -> jax.Array:
        """This group's units of an [N, ...] array: [U, ...]."""
        return per_unit[self.start : self.start + self.units]

    def slice_chunk(
        self, x: jax.Array, chunk: int, slots: Sequence[jax.Array]
    ) -> jax.Array:
        """A chunk's units [u, ...] of ``x`` [U, ...]."""
        if len(self.chunks) == 1:
            return x
        span = self.spans[chunk]
        slot = slots[self.chunks[chunk][0]] - self.start
        part = jax.lax.dynamic_slice_in_dim(x, slot, span.stop - span.start)
        return replicated_if_automatic(part)

    def pack(self, leaves: Leaves) -> list[jax.Array]:
        """Chunks ``[u, *shape]`` of this group's leaves, picked from all leaves."""
        return [
            _stack([leaves[i] for i in chunk], infos, self.all_axes)
            for chunk, infos in zip(self.chunks, self.infos, strict=True)
        ]

    def pack_small(self, leaves: Leaves, axes: tuple[int, ...]) -> jax.Array:
        """All of this group's leaves, which have ``axes`` only, stacked: [U, ...]."""
        infos = [info for chunk in self.infos for info in chunk]
        return _stack([leaves[i] for i in self.leaves], infos, axes)

    def unpack(
        self,
        chunks: Sequence[jax.Array],
        into: list,
        slots: Sequence[jax.Array],
        axes: tuple[int, ...] | None = None,
    ) -> None:
        """Replaces the leaves in ``into`` by the units of ``chunks``.

        Args:
            chunks: [u, ...] each.
            into: all leaves; those of this group have the shapes to give.
            slots: int32 [] a leaf.
            axes: the axes of the group that ``chunks`` have; all by default.
        """
        axes = self.all_axes if axes is None else axes
        for chunk, infos, span, array in zip(
            self.chunks, self.infos, self.spans, chunks, strict=True
        ):
            if len(chunk) > 1:
                array = replicated_if_automatic(array)
            shapes = collections.Counter(info.shape for info in infos)
            offset = 0
            for i, info in zip(chunk, infos, strict=True):
                part = array
                if len(chunk) > 1:
                    begin: list[jax.Array | np.int32]
                    begin = [slots[i] - (self.start + span.start)]
                    if shapes[info.shape] == 1:  # No other slice has this shape.
                        begin = [np.int32(offset)]
                    begin += [np.int32(0)] * len(axes)
                    part = jax.lax.dynamic_slice(
                        array, begin, _sizes(info, axes), allow_negative_indices=False
                    )
                    offset += info.units
                into[i] = part.reshape(into[i].shape)


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
    """The entries of ``slots`` [leaves], in a way that is cheap to compile.

    Read in place, an entry's constant index would be fused into the kernel that slices
    at it, and no two kernels would be identical. Outputs of a branch are not fused.

    Args:
        slots: int32 [leaves].
        true: bool [], true at run time and unknown to the compiler.
    """
    zeros = varying_over([jnp.zeros((), jnp.int32)] * len(slots), varying_axes(slots))
    return jax.lax.cond(true, lambda x: [*jnp.unstack(x)], lambda _: zeros, slots)


def _sizes(info: TensorInfo, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Shape [units, ...] of a leaf with those ``axes`` of its group."""
    return info.units, *(info.shape[axis - 1] for axis in axes)


def _stack(
    leaves: list[jax.Array], infos: Sequence[TensorInfo], axes: tuple[int, ...]
) -> jax.Array:
    """Leaves with ``axes`` of their group as one array [u, ...], padded by zeros."""
    parts = [
        x.reshape(_sizes(info, axes)) for x, info in zip(leaves, infos, strict=True)
    ]
    if len({x.shape[1:] for x in parts}) > 1:
        most = [*map(max, zip(*(x.shape[1:] for x in parts), strict=True))]
        pieces = [piece for x in parts for piece in _padded(x, most)]
        return replicated_if_automatic(jnp.concatenate(pieces).reshape(-1, *most))
    return replicated_if_automatic(concat(parts)) if len(parts) > 1 else parts[0]


def _padded(
    x: jax.Array, shape: Sequence[int]
) -> tuple[jax.Array] | tuple[jax.Array, np.ndarray]:
    """``x`` [u, ...] with zeros up to units of ``shape``, in pieces to concatenate."""
    missing = [(0, n - k, 0) for n, k in zip(shape, x.shape[1:], strict=True)]
    if len(x) == 1 and not any(n for _, n, _ in missing[1:]):
        # A constant, since a padded array is a kernel of its own to compile.
        return x.reshape(-1), np.zeros(math.prod(shape) - x.size, x.dtype)
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *missing])
    return (padded.reshape(-1),)


def concat(chunks: list[jax.Array]) -> jax.Array:
    """Chunks [u, ...] as one array [U, ...]."""
    return chunks[0] if len(chunks) == 1 else jnp.concatenate(chunks)


Numbers = TypeVar("Numbers", jax.Array, np.ndarray)


def per_unit(x: Numbers, like: jax.Array) -> Numbers:
    """``x`` [U] with as many axes as ``like`` [U, ...]."""
    return x.reshape((-1,) + (1,) * (like.ndim - 1))


def group_leaves(
    infos: Sequence[TensorInfo], leaves: Sequence[jax.Array]
) -> tuple[Group, ...]:
    """Groups non-empty leaves and numbers their units.

    Leaves share a group if kind and type agree and either their shapes do too, or they
    are small enough to be padded. Leaves with explicit shardings share one only if
    these agree, and are not padded.
    """
    kinds: dict[tuple, dict[tuple[int, ...], list[int]]] = {}
    seen = list(infos)
    for i, (info, leaf) in enumerate(zip(infos, leaves, strict=True)):
        if not info.units:
            continue
        explicit: tuple = ()
        if is_explicit(leaf):
            # Stacks of layers may be sharded over layers, which prevents concatenation.
            explicit = (str(jax.typeof(leaf).sharding.spec), i if info.layers else -1)
        apart = info.shape if explicit or _is_large(info.shape) else None
        if apart is None:
            seen[i] = info.flat
        kind = (apart, len(seen[i].shape), info.is_matrix, str(leaf.dtype), explicit)
        shapes = kinds.setdefault(kind, collections.defaultdict(list))
        shapes[seen[i].shape].append(i)
    groups = []
    start = 0
    for shapes in kinds.values():
        units = {s: sum(infos[i].units for i in shapes[s]) for s in shapes}
        for together in _padded_together(units):
            members = [i for shape in together for i in shapes[shape]]
            chunks: tuple[tuple[int, ...], ...] = (tuple(members),)
            if _is_large(together[0]):
                chunks = tuple((i,) for i in members)
            described = tuple(tuple(seen[i] for i in chunk) for chunk in chunks)
            group = Group(chunks, described, start)
            groups.append(group)
            start += group.units
    return tuple(groups)


def _padded_together(units: dict[tuple[int, ...], int]) -> list[list[tuple[int, ...]]]:
    """Shapes that are padded to the first, and largest, of their list.

    Args:
        units: numbers of units of each shape, all of one rank.
    """
    found: list[list[tuple[int, ...]]] = []
    for shape in sorted(units, key=lambda shape: (-math.prod(shape), shape)):
        for together in found:
            if _fits(shape, units[shape], together[0]):
                together.append(shape)
                break
        else:
            found.append([shape])
    return found


def _fits(shape: tuple[int, ...], units: int, into: tuple[int, ...]) -> bool:
    # Of a matrix; vectors are not orthogonalised.
    def operations(sides: tuple[int, ...]) -> int:
        return math.prod(sides) * min(sides)

    return (
        all(n <= most for n, most in zip(shape, into, strict=True))
        and (len(shape) < 2 or operations(into) <= _PADDED * operations(shape))
        and units * (math.prod(into) - math.prod(shape)) <= _PADDING
    )


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
        # With an explicit mesh, so that the caller need not set one.
        mesh = jax.typeof(x).sharding.mesh
        spec = jax.sharding.PartitionSpec(*(None,) * x.ndim)
        return jax.sharding.reshard(x, jax.sharding.NamedSharding(mesh, spec))
    if automatic_axes():
        return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec())
    return x


def replicated_if_automatic(x: jax.Array) -> jax.Array:
    """`replicated` on an automatic mesh; ``x`` as it is on an explicit one.

    For small arrays, which the compiler would otherwise shard when they are stacked and
    gather again leaf by leaf.
    """
    return x if is_explicit(x) else replicated(x)


def sharded_like(x: jax.Array, reference: jax.Array) -> jax.Array:
    """``x`` with the explicit sharding of ``reference``, if it has one."""
    if not is_explicit(reference):
        return x
    return jax.sharding.reshard(x, jax.typeof(reference).sharding)
