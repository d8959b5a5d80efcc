"""The optimizer as an `optax.GradientTransformationExtraArgs`.

`controlled` joins the parts: statistics -> safeguard -> controller -> update rule. The
learned optimizer and the hand-designed rule are the same transformation with and
without a controller.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from meta_opt.features.progress import (
    ProgressState,
    current_loss,
    init_progress,
    progress_features,
    update_progress,
)
from meta_opt.features.statistics import (
    TINY,
    History,
    UnitTable,
    cosine,
    grad_rms,
    smooth,
    unit_table,
)
from meta_opt.features.tensors import TensorInfo, describe, path_name
from meta_opt.optimizers.arguments import (
    check_num_steps,
    check_params,
    check_scalar,
    check_state,
    warn_of_half_precision,
)
from meta_opt.optimizers.controller import (
    ControllerConfig,
    ControllerState,
    control,
    init_controller,
)
from meta_opt.optimizers.decisions import group_decisions
from meta_opt.optimizers.grouping import (
    Group,
    first_units,
    group_leaves,
    replicated,
    sharded_like,
    unstack_slots,
)
from meta_opt.optimizers.measuring import (
    gather_statistics,
    initial_structure,
    measure_gradients,
)
from meta_opt.optimizers.safeguard import GuardState, guard_step, init_guard
from meta_opt.optimizers.second_moment import (
    SecondMoments,
    init_second,
    pack_second,
    unpack_second,
)
from meta_opt.optimizers.skipping import unless_skipped
from meta_opt.optimizers.update_rule import (
    TOTAL_DECAY,
    GroupArrays,
    apply_rule,
    hand_designed_controls,
    next_momentum_square,
    scheduled_step,
)
from meta_opt.types import PyTree

_GRADIENT_RATE = 0.05
"""Rate of the average of log mean square gradients."""
_ALIGNMENT_RATE = 0.1
"""Rate of the average cosine of gradient and momentum."""
_NOTHING = -46.0
"""Log mean square below which a gradient counts as none (RMS 1e-10)."""


class OptimizerState(NamedTuple):
    """State of `controlled`.

    Attributes:
        count: int32 [], calls so far.
        momentum: bfloat16, structure and sharding of the parameters.
        second: second moments of the leaves for which a direction needs them.
        slots: int32 [leaves], index of each leaf's first unit, see `grouping`;
            constant.
        history: what is remembered of each unit, [N] each.
        momentum_square: float32 [N], sum of squares of each unit's momentum.
        param_square: float32 [N], sum of squares of each unit's parameters, renewed
            every few steps.
        guard: the safeguard's memory.
        progress: losses and feedback seen; None without controller.
        controller: the LSTMs' memory; None without controller.
        decisions: float32 [groups, decisions], the last ones, see `group_decisions`.
    """

    count: jax.Array  # type: ignore[assignment]
    momentum: PyTree
    second: SecondMoments
    slots: jax.Array
    history: History
    momentum_square: jax.Array
    param_square: jax.Array
    guard: GuardState
    progress: ProgressState | None
    controller: ControllerState | None
    decisions: jax.Array


class _Plan(NamedTuple):
    """What is known of the parameters at trace time."""

    infos: tuple[TensorInfo, ...]
    groups: tuple[Group, ...]
    table: UnitTable


def controlled(
    num_steps: int | jax.Array,
    *,
    theta: PyTree | None,
    config: ControllerConfig,
    stacked: str | None = None,
    groups: Sequence[tuple[str, str]] | None = None,
    safeguard: bool = True,
    pallas: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The update rule under a controller, or under its fixed defaults.

    Args:
        num_steps: length of the run; the schedule ends there.
        theta: the controller's weights; None runs the hand-designed rule.
        config: the controller's shape and directions.
        stacked: regular expression over ``/``-joined paths of leaves with a leading
            layer axis (see `meta_opt.features.tensors.describe`).
        groups: (regular expression, modality group) pairs, for logs.
        safeguard: skip broken steps and fall back on rising loss.
        pallas: measure large matrices by `meta_opt.optimizers.fused_sums`.

    Returns:
        A transformation whose ``update`` takes the optional keywords ``value`` (loss of
        this step) and ``feedback`` (validation loss, given now and then; NaN: not now).

    Raises:
        ValueError: ``num_steps`` below 1, a pattern without match, ``update`` without
            params or with gradients of another structure, ``value`` or ``feedback``
            that is not a scalar, ``pallas`` on a mesh of several devices.
        TypeError: ``num_steps`` that is not an integer, parameters that are not
            floating-point arrays, a state of another optimizer.

    Warns:
        UserWarning: ``init`` with half-precision parameters.
    """
    check_num_steps(num_steps)
    learned = theta is not None
    warned = False

    def plan(params: PyTree) -> _Plan:
        infos = describe(params, stacked, groups)
        found = group_leaves(infos, jax.tree.leaves(params))
        table = unit_table([i for group in found for c in group.infos for i in c])
        return _Plan(infos, found, table)

    def needs_second(info: TensorInfo) -> bool:
        mixes_adam = learned and "adam" in config.directions
        return mixes_adam or not info.is_matrix or not config.orthogonal

    def init(params: PyTree) -> OptimizerState:
        nonlocal warned
        check_params(params)
        known = plan(params)
        warned = warned or warn_of_half_precision(params)
        units = len(known.table.size)
        return OptimizerState(
            count=jnp.zeros((), jnp.int32),
            momentum=jax.tree.map(
                lambda p: jnp.zeros_like(p, dtype=jnp.bfloat16), params
            ),
            second=init_second(params, known.infos, [*map(needs_second, known.infos)]),
            slots=jnp.asarray(first_units(known.groups, len(known.infos)), jnp.int32),
            history=_begin(known, jax.tree.leaves(params)),
            momentum_square=jnp.zeros(units, jnp.float32),
            param_square=jnp.zeros(units, jnp.float32),
            guard=init_guard(),
            progress=init_progress() if learned else None,
            controller=init_controller(config, units) if learned else None,
            decisions=group_decisions(
                hand_designed_controls(known.table, config.orthogonal), known.table
            ),
        )

    def update(
        updates: PyTree,
        state: OptimizerState,
        params: PyTree | None = None,
        *,
        value: jax.typing.ArrayLike | None = None,
        feedback: jax.typing.ArrayLike | None = None,
        **extra_args: object,
    ) -> tuple[PyTree, OptimizerState]:
        del extra_args
        if params is None:
            raise ValueError(
                "update needs the parameters: call tx.update(grads, state, params)"
            )
        check_state(state, OptimizerState, learned)
        check_params(params)
        check_scalar("value", value)
        check_scalar("feedback", feedback)
        _check_match(updates, params, "gradients", "parameters")
        _check_match(params, state.momentum, "parameters", "the optimizer's state")
        return step(updates, state, params, value, feedback)

    # Compiled as a whole even where the caller does not: op by op it is many times
    # slower. Under an outer jit this changes nothing.
    @jax.jit
    def step(
        updates: PyTree,
        state: OptimizerState,
        params: PyTree,
        value: jax.typing.ArrayLike | None,
        feedback: jax.typing.ArrayLike | None,
    ) -> tuple[PyTree, OptimizerState]:
        grad_leaves: list[Any]
        treedef: Any
        grad_leaves, treedef = jax.tree.flatten(updates)
        momentum_leaves = treedef.flatten_up_to(state.momentum)
        second_leaves = SecondMoments(*map(treedef.flatten_up_to, state.second))
        slots = unstack_slots(state.slots, state.count >= 0)
        param_leaves = treedef.flatten_up_to(params)
        known = plan(params)

        arrays = [
            GroupArrays(
                [x.astype(jnp.float32) for x in group.pack(grad_leaves)],
                group.pack(momentum_leaves),
                group.pack(param_leaves),
                pack_second(group, second_leaves, needs_second(group.first)),
            )
            for group in known.groups
        ]
        measured = [
            measure_gradients(group, array, products=learned, pallas=pallas)
            for group, array in zip(known.groups, arrays, strict=True)
        ]
        means = [mean for mean, _ in measured]
        stats = gather_statistics(
            known.groups,
            arrays,
            means,
            [product for _, product in measured],
            state.momentum_square,
            state.param_square,
            state.count,
            learned,
        )

        rms = grad_rms(stats, known.table)
        guard = state.guard
        ok = state.count >= 0
        if safeguard:
            ok, guard = guard_step(guard, rms, value, state.count, num_steps)

        log_square = jnp.log(smooth(stats.grad_square / known.table.size) + TINY)
        history = _seen(
            state.history,
            log_square,
            cosine(stats) if learned else jnp.zeros_like(log_square),
            state.guard.seen == 0 if safeguard else state.count == 0,
        )
        base = hand_designed_controls(known.table, config.orthogonal)
        progress, memory = state.progress, state.controller
        controls = base
        if progress is not None and memory is not None:
            progress = update_progress(
                progress, state.count, num_steps, value, feedback
            )
            controls, memory = control(
                theta,
                memory,
                stats,
                known.table,
                history,
                progress_features(progress, state.count, num_steps),
                current_loss(progress),
                base,
                config,
            )
            controls = jax.tree.map(
                lambda a, b: a + guard.fallback * (b - a), controls, base
            )
        decided = group_decisions(controls, known.table)
        size = (
            scheduled_step(state.count, num_steps)
            * guard.shrink
            * guard.vanishing_scale
        )
        step_size = controls.step * size
        allowed = jnp.maximum(TOTAL_DECAY - history.decayed, 0.0)
        decay = jnp.minimum(controls.weight_decay * step_size, allowed)
        controls = controls._replace(
            step=step_size,
            weight_decay=decay / jnp.maximum(step_size, TINY),
        )

        # Gradients above their usual size are compressed towards it.
        excess = jnp.maximum(0.5 * (log_square - history.log_grad_sq_ema), 0.0)
        scale = jnp.exp(-controls.compress * excess) if learned else None
        momentum_square = next_momentum_square(
            controls, 1.0 if scale is None else scale, stats
        )

        taken = apply_rule(
            known.groups,
            arrays,
            means,
            controls,
            momentum_square / known.table.size,
            slots,
            ok=ok,
            scale=scale,
            mixable=config.mixable if learned else frozenset(),
            iterations=config.iterations,
        )
        outputs = unless_skipped(ok, known.groups, taken, arrays)
        new_updates = [jnp.zeros_like(x) for x in grad_leaves]
        new_momenta = list(momentum_leaves)
        new_seconds = SecondMoments(*map(list, second_leaves))
        for group, output in zip(known.groups, outputs, strict=True):
            group.unpack(output.updates, new_updates, slots)
            group.unpack(output.momentum, new_momenta, slots)
            unpack_second(group, output.second, new_seconds, slots)
        new_updates = [
            sharded_like(u.astype(g.dtype), g)
            for u, g in zip(new_updates, grad_leaves, strict=True)
        ]

        def keep(new: PyTree, old: PyTree) -> PyTree:
            return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)

        past = history.log_grad_sq_ema
        history = history._replace(
            log_grad_sq_ema=past + _GRADIENT_RATE * (log_square - past),
            path=history.path + step_size,
            decayed=history.decayed + decay,
        )
        new_state = OptimizerState(
            count=optax.safe_increment(state.count),
            momentum=treedef.unflatten(new_momenta),
            second=SecondMoments(*map(treedef.unflatten, new_seconds)),
            slots=state.slots,
            history=keep(history, state.history),
            momentum_square=keep(momentum_square, state.momentum_square),
            param_square=stats.param_square,
            guard=guard,
            progress=keep(progress, state.progress),
            controller=keep(memory, state.controller),
            decisions=decided,
        )
        return treedef.unflatten(new_updates), new_state

    return optax.GradientTransformationExtraArgs(init, update)


def _no_history(units: int) -> History:
    # Arrays of their own: a donated state may not hold one buffer twice.
    return History(*(jnp.zeros(units, jnp.float32) for _ in History._fields))


def _begin(known: _Plan, params: Sequence[jax.Array]) -> History:
    """History before the first step: the structure of what training begins with."""
    parts = [
        initial_structure(group, group.pack(params))
        if group.first.is_matrix
        else jnp.zeros(group.units, jnp.float32)
        for group in known.groups
    ]
    found = jnp.concatenate([jnp.zeros(0, jnp.float32), *map(replicated, parts)])
    return _no_history(len(known.table.size))._replace(structure=found)


def _seen(
    history: History, log_square: jax.Array, cosines: jax.Array, first: jax.Array
) -> History:
    """History with this step's gradients, before the average of their size moves."""
    # A tensor without gradient so far (a LoRA A before its B moves) has no past.
    first = first | (history.log_grad_sq_ema < _NOTHING)
    past = jnp.where(first, log_square, history.log_grad_sq_ema)
    aligned = history.alignment_ema
    return history._replace(
        log_grad_sq_ema=past,
        log_grad_sq_max=jnp.where(
            first, log_square, jnp.maximum(history.log_grad_sq_max, past)
        ),
        alignment_ema=aligned + _ALIGNMENT_RATE * (cosines - aligned),
    )


def _check_match(tree: PyTree, like: PyTree, name: str, other: str) -> None:
    """Raises ValueError at the first path where structure or shape differs."""
    ours = {path_name(p): jnp.shape(x) for p, x in _paths(tree)}
    theirs = {path_name(p): jnp.shape(x) for p, x in _paths(like)}
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


def _paths(tree: PyTree) -> list:
    return jax.tree_util.tree_leaves_with_path(tree)
