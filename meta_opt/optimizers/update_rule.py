r"""The update rule: a mixture of directions of RMS one, times a step.

For a unit (one tensor, or one layer of a stacked tensor) with gradient g, momentum m
and parameter p,

.. math::
    u = -\eta \big( \textstyle\sum_k w_k\, d_k + \lambda\, p \big),
    \qquad \mathrm{RMS}(d_k) = 1,

where the directions :math:`d_k` are

- ``orthogonal``: Nesterov momentum orthogonalised by Newton-Schulz (matrices only);
- ``adam``: momentum over the root of the (for rank >= 2, factored) second moment;
- ``sign``: sign of Nesterov momentum;
- ``momentum``: momentum itself.

Because every direction has RMS one, bias corrections cancel, and the step is the RMS of
the update in the parameter's own units.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.features.statistics import (
    TINY,
    Statistics,
    UnitTable,
    smooth,
)
from meta_opt.optimizers.grouping import (
    Group,
    is_explicit,
    per_unit,
    replicated,
    sharded_like,
)
from meta_opt.optimizers.orthogonal import orthogonalise
from meta_opt.optimizers.second_moment import Second, accumulate, inverse_roots

DIRECTIONS = ("orthogonal", "adam", "sign", "momentum")

RMS_STEP = 2e-3
WARMUP_FRACTION = 0.05
WEIGHT_DECAY = 0.05
ONE_MINUS_B1 = 0.05
"""One minus the decay rate of the momentum."""
ONE_MINUS_B2 = 0.01
"""One minus the decay rate of the second moment."""
TOTAL_DECAY = 0.25
"""Bound on the sum of step times weight decay over a run."""
_CANCELLED = 2.0**-6
"""Floor of the momentum's mean square, relative to its terms without cancellation."""


class Controls(NamedTuple):
    """Controls of the rule, for each of N units; float32.

    Attributes:
        step: [N], multiplier of the scheduled RMS step.
        weights: [N, K], mixture weights of the directions in `DIRECTIONS`.
        one_minus_b1: [N], one minus the momentum's decay rate.
        one_minus_b2: [N], one minus the second moment's decay rate.
        weight_decay: [N], decoupled decay, multiplied by the step.
        compress: [N] in [0, 1], how far gradients above their average size are shrunk
            to it (0: not at all, 1: clipped).
    """

    step: jax.Array
    weights: jax.Array
    one_minus_b1: jax.Array
    one_minus_b2: jax.Array
    weight_decay: jax.Array
    compress: jax.Array


def hand_designed_controls(
    table: UnitTable, orthogonal: bool = True, decays: np.ndarray | None = None
) -> Controls:
    """Controls of the hand-designed rule.

    Args:
        table: constants of the N units.
        orthogonal: False uses Adam's direction for matrices too.
        decays: float32 [N], 1 where weight decay applies; None for matrices only.

    Returns:
        Orthogonalised momentum and weight decay for matrices, Adam for other tensors.
    """
    matrix = jnp.asarray(table.matrix)
    one = jnp.ones_like(matrix)
    zero = jnp.zeros_like(matrix)
    mixed = matrix if orthogonal else zero
    return Controls(
        step=one,
        weights=jnp.stack([mixed, 1.0 - mixed, zero, zero], axis=1),
        one_minus_b1=ONE_MINUS_B1 * one,
        one_minus_b2=ONE_MINUS_B2 * one,
        weight_decay=WEIGHT_DECAY * (matrix if decays is None else jnp.asarray(decays)),
        compress=zero,
    )


def scheduled_step(count: jax.Array, num_steps: jax.Array | int) -> jax.Array:
    """The RMS step: 5% linear warm-up, then cosine decay to zero at ``num_steps``.

    Args:
        count: int32 [], steps done before this one.
        num_steps: length of the run.

    Returns:
        float32 []; the first step is already above zero, steps past the end are zero.
    """
    count = jnp.asarray(count, jnp.float32)
    total = jnp.asarray(num_steps, jnp.float32)
    warmup = jnp.maximum(jnp.round(WARMUP_FRACTION * total), 1.0)
    rise = jnp.minimum(1.0, (count + 1.0) / warmup)
    fraction = jnp.clip((count - warmup) / jnp.maximum(total - warmup, 1.0), 0.0, 1.0)
    fall = 0.5 * (1.0 + jnp.cos(jnp.pi * fraction))
    fall = jnp.where(count >= total, 0.0, fall)
    return RMS_STEP * rise * fall


class GroupArrays(NamedTuple):
    """Arrays of one group.

    Attributes:
        grads: chunks [u, *shape], float32.
        momentum: chunks, bfloat16.
        params: chunks, in the parameters' type.
        second: for rank >= 2 row [U, *rows] and column [U, *columns]; for less [U,
            *shape]; None where no direction needs it.
    """

    grads: list[jax.Array]
    momentum: list[jax.Array]
    params: list[jax.Array]
    second: Second


class GroupResult(NamedTuple):
    """A group after a step: updates are chunks [u, *shape], float32."""

    updates: list[jax.Array]
    momentum: list[jax.Array]
    second: Second


def _inverse_rms(mean_square: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(smooth(jnp.maximum(mean_square, 0.0)) + TINY)


def next_momentum_square(
    controls: Controls, scale: jax.Array | float, stats: Statistics
) -> jax.Array:
    """Sum of squares of the new momentum [N], without another pass over it."""
    keep = 1.0 - controls.one_minus_b1
    take = controls.one_minus_b1 * scale
    apart = (
        jnp.square(keep) * stats.momentum_square + jnp.square(take) * stats.grad_square
    )
    total = apart + 2.0 * keep * take * stats.grad_momentum
    # Where a gradient cancels the momentum, the sum is left with the rounding error of
    # the bfloat16 momentum; its inverse root would be a huge step.
    return jnp.maximum(total, _CANCELLED * apart)


def apply_rule(
    groups: Sequence[Group],
    arrays: Sequence[GroupArrays],
    means: Sequence[Second],
    controls: Controls,
    momentum_mean_square: jax.Array,
    slots: Sequence[jax.Array],
    *,
    ok: jax.Array,
    scale: jax.Array | None,
    mixable: frozenset[str],
    iterations: tuple[int, int],
) -> list[GroupResult]:
    """One step of the rule for every group.

    Args:
        groups: the groups, in the order of their units.
        arrays: their arrays.
        means: `mean_squares` of each.
        controls: of each unit; ``step`` includes the schedule.
        momentum_mean_square: [N], mean square of the new momentum.
        slots: int32 [] a leaf, index of its first unit.
        ok: bool []; where false, momenta stay as they are (updates and second moments
            are left to `meta_opt.optimizers.skipping`).
        scale: [N] factor on the gradients, or None for 1.
        mixable: directions that may have weight; empty for the hand-designed rule.
        iterations: of the orthogonalisation, see `orthogonalise`; a group of matrices
            without second moment, or with ``orthogonal`` in ``mixable``, uses it.

    Returns:
        For each group its updates, new momenta and new second moment.
    """
    keep = 1.0 - controls.one_minus_b1
    take = controls.one_minus_b1
    if scale is not None:
        take = take * scale
    weight = dict(zip(DIRECTIONS, jnp.moveaxis(controls.weights, 1, 0), strict=True))
    weight["momentum"] *= _inverse_rms(momentum_mean_square)
    table = jnp.stack(
        [keep, take, controls.step, controls.weight_decay, *weight.values()], axis=1
    )

    orthogonalised = [
        group.first.is_matrix and (array.second is None or "orthogonal" in mixable)
        for group, array in zip(groups, arrays, strict=True)
    ]
    seconds: list[Second] = []
    moved: list[list[_Moved]] = []
    for i, (group, array) in enumerate(zip(groups, arrays, strict=True)):
        second = array.second
        factors: tuple[jax.Array, ...] = ()
        if second is not None:
            one_minus_b2 = group.select(controls.one_minus_b2)
            square = None if scale is None else jnp.square(group.select(scale))
            second = accumulate(second, means[i], square, one_minus_b2)
            if "adam" in mixable or not orthogonalised[i]:
                factors = inverse_roots(second, group)
        seconds.append(second)
        parts = group.select(table)
        rank = (1,) * len(group.shape)
        moved.append([])
        for j, (g, m) in enumerate(zip(array.grads, array.momentum, strict=True)):
            part = group.slice_chunk(parts, j, slots)
            columns = (part[:, c] for c in range(part.shape[1]))
            s = _ChunkControls(*(x.reshape(-1, *rank) for x in columns))
            pieces = [group.slice_chunk(f, j, slots) for f in factors]
            moved[i].append(_move(ok, s, g, m, pieces, group))

    orthogonal = _orthogonal_chunks(groups, orthogonalised, moved, iterations)
    outputs = []
    for i, array in enumerate(arrays):
        updates = []
        for j, (s, momentum, nesterov, gain) in enumerate(moved[i]):
            if "momentum" in mixable:
                gain = gain + s.momentum
            direction = s.decay * array.params[j].astype(jnp.float32)
            direction += momentum * gain
            if "sign" in mixable:
                direction += s.sign * jnp.sign(nesterov)
            if i in orthogonal:
                direction += s.orthogonal * orthogonal[i][j]
            updates.append(-s.step * direction)
        momenta = [x.momentum.astype(jnp.bfloat16) for x in moved[i]]
        outputs.append(GroupResult(updates, momenta, seconds[i]))
    return outputs


class _ChunkControls(NamedTuple):
    """Controls of a chunk's units, [u, 1, ...] each."""

    keep: jax.Array
    take: jax.Array
    step: jax.Array
    decay: jax.Array
    orthogonal: jax.Array
    adam: jax.Array
    sign: jax.Array
    momentum: jax.Array


class _Moved(NamedTuple):
    """A chunk after its momentum has moved.

    Attributes:
        controls: of its units.
        momentum: the new one [u, *shape], bfloat16 if it is large, else float32.
        nesterov: Nesterov momentum, float32.
        gain: factor that turns momentum into the weighted Adam direction; 0 without it.
    """

    controls: _ChunkControls
    momentum: jax.Array
    nesterov: jax.Array
    gain: jax.Array | float


def _move(
    ok: jax.Array,
    s: _ChunkControls,
    grad: jax.Array,
    momentum: jax.Array,
    factors: Sequence[jax.Array],
    group: Group,
) -> _Moved:
    """Moves a chunk's momentum, in one pass over gradient and momentum.

    Args:
        ok: bool [], whether to move at all.
        s: controls of its units.
        grad: [u, *shape], float32.
        momentum: [u, *shape], bfloat16.
        factors: `inverse_roots` that the Adam direction multiplies momentum with.
        group: the chunk's.
    """
    old = momentum.astype(jnp.float32)
    new = jnp.where(ok, s.keep * old + s.take * grad, old)
    gain: jax.Array | float = 0.0
    if factors:
        shaped = new
        for factor in factors:
            shaped = shaped * factor
        mean_square = group.mean(jnp.square(shaped), group.all_axes, keepdims=True)
        gain = s.adam * _inverse_rms(mean_square)
        for factor in factors:
            gain = gain * factor
    nesterov = s.keep * new + s.take * grad
    if group.large:
        # Later operations read the new momentum's two bytes; without the barrier a
        # compiler reads the gradient's four and the old momentum's two once more.
        new = jax.lax.optimization_barrier(new.astype(momentum.dtype))
    return _Moved(s, new, nesterov, gain)


def _orthogonal_chunks(
    groups: Sequence[Group],
    wanted: Sequence[bool],
    moved: Sequence[Sequence[_Moved]],
    iterations: tuple[int, int],
) -> dict[int, list[jax.Array]]:
    """Orthogonalised chunks by index of group; one batch for each matrix shape."""
    chosen = [
        (i, x.nesterov) for i, want in enumerate(wanted) if want for x in moved[i]
    ]
    results = orthogonalise(
        [replicated(x) if is_explicit(x) else x for _, x in chosen],
        [groups[i].first.split for i, _ in chosen],
        iterations,
    )
    found: dict[int, list[jax.Array]] = {}
    for (i, chunk), result in zip(chosen, results, strict=True):
        # Of RMS one over the elements without padding.
        share = groups[i].count(groups[i].all_axes) / math.prod(groups[i].shape)
        if share.min() < 1.0:
            result = result * per_unit(np.sqrt(share), result)
        found.setdefault(i, []).append(sharded_like(result, chunk))
    return found
