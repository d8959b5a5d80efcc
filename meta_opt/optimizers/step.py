"""One step of the optimizer: measure, decide, apply.

`measure` reduces gradients and momenta to statistics of each unit, `decide` turns these
into the controls of each unit, and `apply_decision` moves momenta, second moments and
parameters by them. All are pure functions.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from meta_opt.features.progress import (
    ProgressState,
    current_loss,
    progress_features,
    update_progress,
)
from meta_opt.features.statistics import (
    TINY,
    History,
    Statistics,
    cosine,
    grad_rms,
    smooth,
)
from meta_opt.mesh_axes import varying_axes, varying_over
from meta_opt.optimizers.controller import ControllerState, control
from meta_opt.optimizers.decisions import group_decisions
from meta_opt.optimizers.gradient_statistics import gather_statistics, measure_gradients
from meta_opt.optimizers.grouping import sharded_like, unstack_slots
from meta_opt.optimizers.safeguard import SafeguardState, safeguard_step
from meta_opt.optimizers.second_moment import (
    Second,
    SecondMoments,
    pack_second,
    unpack_second,
)
from meta_opt.optimizers.skipping import apply_or_skip
from meta_opt.optimizers.state import OptimizerState, Plan, Settings, make_plan
from meta_opt.optimizers.update_rule import (
    RMS_STEP,
    TOTAL_DECAY,
    Controls,
    GroupArrays,
    apply_rule,
    next_momentum_square,
    scheduled_step,
)
from meta_opt.types import PyTree

_LOG_GRAD_SQ_RATE = 0.05
"""Rate of the average of log mean square gradients."""
_ALIGNMENT_RATE = 0.1
"""Rate of the average cosine of gradient and momentum."""
_LOG_ZERO_GRAD_SQ = -46.0
"""Log mean square below which a gradient counts as zero (RMS 1e-10)."""


class StepInputs(NamedTuple):
    """Scalars of one step; all may be traced.

    Attributes:
        num_steps: length of the run.
        schedule: multiplier of the RMS step; None for warm-up and cosine decay.
        value: the loss of this step, or None.
        feedback: a validation loss, or None.
    """

    num_steps: jax.Array | int
    schedule: jax.Array | None
    value: jax.typing.ArrayLike | None
    feedback: jax.typing.ArrayLike | None


class Leaves(NamedTuple):
    """Lists of all leaves, in flattening order.

    Attributes:
        treedef: structure of the parameters.
        grads: gradients.
        momentum: momenta.
        second: second moments, a list for each field.
        params: parameters.
        slots: int32 [] each, index of the leaf's first unit.
    """

    treedef: Any
    grads: list[jax.Array]
    momentum: list[jax.Array]
    second: SecondMoments
    params: list[jax.Array]
    slots: list[jax.Array]


class Measurement(NamedTuple):
    """Measurements of one step's gradients.

    Attributes:
        arrays: of each group.
        means: mean squares of each group's gradients, see `mean_squares`.
        stats: sums over each unit, [N] each.
        log_grad_sq: float32 [N], log mean square gradient.
    """

    arrays: list[GroupArrays]
    means: list[Second]
    stats: Statistics
    log_grad_sq: jax.Array


class Decision(NamedTuple):
    """The decision for one step, and the state after it.

    Attributes:
        ok: bool [], whether the step is taken.
        controls: of each unit; ``step`` is the RMS step itself.
        grad_scale: float32 [N], factor on the gradients; None for 1.
        step_size: float32 [], factor of schedule and safeguard in all steps.
        decay: float32 [N], step times weight decay.
        averages: float32 [groups, decisions], for logs.
        guard: state of the safeguard.
        history: running statistics, before what this step adds to them.
        progress: losses and feedback so far; None without controller.
        controller: state of the LSTMs; None without controller.
    """

    ok: jax.Array
    controls: Controls
    grad_scale: jax.Array | None
    step_size: jax.Array
    decay: jax.Array
    averages: jax.Array
    guard: SafeguardState
    history: History
    progress: ProgressState | None
    controller: ControllerState | None


# Compiled as a whole even where the caller does not: op by op it is many times slower.
# Under an outer jit this changes nothing. One cache for all optimizers, so that one
# that is created again for every step, as by `optax.inject_hyperparams`, compiles once.
@functools.partial(jax.jit, static_argnames=("settings", "decayed"))
def optimizer_step(
    grads: PyTree,
    state: OptimizerState,
    params: PyTree,
    inputs: StepInputs,
    theta: PyTree | None,
    *,
    settings: Settings,
    decayed: tuple[bool, ...] | None,
) -> tuple[PyTree, OptimizerState]:
    """One step for all parameters.

    Args:
        grads: gradients.
        state: the optimizer's.
        params: parameters, in structure and shapes as the gradients.
        inputs: scalars of this step.
        theta: the controller's weights; None without controller.
        settings: of the optimizer.
        decayed: for each leaf, whether weight decay applies; None for matrices only.

    Returns:
        Updates in the gradients' types, and the new state.
    """
    # Runs of several devices, one on each under `jax.shard_map`, share nothing.
    axes = varying_axes((grads, state, params))
    grads, state, params = varying_over((grads, state, params), axes)
    plan = make_plan(params, settings, decayed)
    leaves = flatten(grads, state, params)
    measured = measure(plan, leaves, state, settings)
    decision = decide(plan, measured, state, inputs, theta, settings)
    updates, state = apply_decision(
        plan, leaves, measured, decision, state, inputs, settings
    )
    return updates, varying_over(state, axes)


def flatten(grads: PyTree, state: OptimizerState, params: PyTree) -> Leaves:
    """The leaves of all trees of the parameters' structure."""
    treedef: Any
    grad_leaves: list[Any]
    grad_leaves, treedef = jax.tree.flatten(grads)
    return Leaves(
        treedef,
        grad_leaves,
        treedef.flatten_up_to(state.momentum),
        SecondMoments(*map(treedef.flatten_up_to, state.second)),
        treedef.flatten_up_to(params),
        unstack_slots(state.slots, state.count >= 0),
    )


def measure(
    plan: Plan, leaves: Leaves, state: OptimizerState, settings: Settings
) -> Measurement:
    """Packs the leaves by group and reduces them to statistics of each unit."""
    arrays = [
        GroupArrays(
            [x.astype(jnp.float32) for x in group.pack(leaves.grads)],
            group.pack(leaves.momentum),
            group.pack(leaves.params),
            pack_second(group, leaves.second, settings.needs_second(group.first)),
        )
        for group in plan.groups
    ]
    measured = [
        measure_gradients(
            group, array, products=settings.learned, pallas=settings.pallas
        )
        for group, array in zip(plan.groups, arrays, strict=True)
    ]
    means = [mean for mean, _ in measured]
    stats = gather_statistics(
        plan.groups,
        arrays,
        means,
        [product for _, product in measured],
        state.momentum_square,
        state.param_square,
        state.count,
        settings.learned,
    )
    log_grad_sq = jnp.log(smooth(stats.grad_square / plan.table.size) + TINY)
    return Measurement(arrays, means, stats, log_grad_sq)


def decide(
    plan: Plan,
    measured: Measurement,
    state: OptimizerState,
    inputs: StepInputs,
    theta: PyTree | None,
    settings: Settings,
) -> Decision:
    """Safeguard, then controller, then the schedule and the bound on weight decay."""
    stats, table = measured.stats, plan.table
    guard = state.guard
    ok = state.count >= 0
    if settings.safeguard:
        rms = grad_rms(stats, table)
        ok, guard = safeguard_step(
            guard, rms, inputs.value, state.count, inputs.num_steps
        )
    history = _observe(state, measured, settings)
    controls, progress, controller = _control(
        plan, stats, history, guard, state, inputs, theta, settings
    )
    averages = group_decisions(controls, table)

    schedule = (
        scheduled_step(state.count, inputs.num_steps)
        if inputs.schedule is None
        else RMS_STEP * inputs.schedule
    )
    step_size = schedule * guard.shrink * guard.vanishing_scale
    step = controls.step * step_size
    allowed = jnp.maximum(TOTAL_DECAY - history.decayed, 0.0)
    decay = jnp.minimum(controls.weight_decay * step, allowed)
    controls = controls._replace(
        step=step, weight_decay=decay / jnp.maximum(step, TINY)
    )

    # Gradients above their average size are compressed towards the average.
    excess = 0.5 * (measured.log_grad_sq - history.log_grad_sq_ema)
    grad_scale = None
    if settings.learned:
        grad_scale = jnp.exp(-controls.compress * jnp.maximum(excess, 0.0))
    return Decision(
        ok,
        controls,
        grad_scale,
        step_size,
        decay,
        averages,
        guard,
        history,
        progress,
        controller,
    )


def _observe(
    state: OptimizerState, measured: Measurement, settings: Settings
) -> History:
    """History with this step's gradients, before the average of their size moves."""
    history, log_grad_sq = state.history, measured.log_grad_sq
    # A tensor without gradient so far (a LoRA A before its B moves) has no average.
    first = state.guard.seen == 0 if settings.safeguard else state.count == 0
    first = first | (history.log_grad_sq_ema < _LOG_ZERO_GRAD_SQ)
    ema = jnp.where(first, log_grad_sq, history.log_grad_sq_ema)
    highest = jnp.maximum(history.log_grad_sq_max, ema)
    alignment = history.alignment_ema
    now = cosine(measured.stats) if settings.learned else jnp.zeros_like(log_grad_sq)
    return history._replace(
        log_grad_sq_ema=ema,
        log_grad_sq_max=jnp.where(first, log_grad_sq, highest),
        alignment_ema=alignment + _ALIGNMENT_RATE * (now - alignment),
    )


def _control(
    plan: Plan,
    stats: Statistics,
    history: History,
    guard: SafeguardState,
    state: OptimizerState,
    inputs: StepInputs,
    theta: PyTree | None,
    settings: Settings,
) -> tuple[Controls, ProgressState | None, ControllerState | None]:
    """The controller's decisions, faded to the hand-designed rule by the safeguard."""
    base = plan.base_controls(settings)
    if state.progress is None or state.controller is None:
        return base, None, None
    progress = update_progress(
        state.progress, state.count, inputs.num_steps, inputs.value, inputs.feedback
    )
    controls, controller = control(
        theta,
        state.controller,
        stats,
        plan.table,
        history,
        progress_features(progress, state.count, inputs.num_steps),
        current_loss(progress),
        base,
        settings.config,
    )
    controls = jax.tree.map(lambda a, b: a + guard.fallback * (b - a), controls, base)
    return controls, progress, controller


def apply_decision(
    plan: Plan,
    leaves: Leaves,
    measured: Measurement,
    decision: Decision,
    state: OptimizerState,
    inputs: StepInputs,
    settings: Settings,
) -> tuple[PyTree, OptimizerState]:
    """Applies a decision, or nothing if the step is skipped."""
    controls, scale, ok = decision.controls, decision.grad_scale, decision.ok
    momentum_square = next_momentum_square(
        controls, 1.0 if scale is None else scale, measured.stats
    )
    moved = apply_rule(
        plan.groups,
        measured.arrays,
        measured.means,
        controls,
        momentum_square / plan.table.size,
        leaves.slots,
        ok=ok,
        scale=scale,
        mixable=settings.config.mixable if settings.learned else frozenset(),
        iterations=settings.config.iterations,
    )
    updates = [jnp.zeros_like(x) for x in leaves.grads]
    momenta = list(leaves.momentum)
    seconds = SecondMoments(*map(list, leaves.second))
    results = apply_or_skip(ok, plan.groups, moved, measured.arrays)
    for group, result in zip(plan.groups, results, strict=True):
        group.unpack(result.updates, updates, leaves.slots)
        group.unpack(result.momentum, momenta, leaves.slots)
        unpack_second(group, result.second, seconds, leaves.slots)
    updates = [
        sharded_like(u.astype(g.dtype), g)
        for u, g in zip(updates, leaves.grads, strict=True)
    ]

    def keep(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)

    unflatten = leaves.treedef.unflatten
    new_state = OptimizerState(
        count=optax.safe_increment(state.count),
        num_steps=jnp.asarray(inputs.num_steps, jnp.int32),
        step_size=jnp.where(ok, decision.step_size, 0.0),
        momentum=unflatten(momenta),
        second=SecondMoments(*map(unflatten, seconds)),
        slots=state.slots,
        history=keep(_next_history(decision, measured), state.history),
        momentum_square=keep(momentum_square, state.momentum_square),
        param_square=measured.stats.param_square,
        guard=decision.guard,
        progress=keep(decision.progress, state.progress),
        controller=keep(decision.controller, state.controller),
        decisions=keep(decision.averages, state.decisions),
    )
    return unflatten(updates), new_state


def _next_history(decision: Decision, measured: Measurement) -> History:
    """History after a step that was taken."""
    history = decision.history
    ema = history.log_grad_sq_ema
    return history._replace(
        log_grad_sq_ema=ema + _LOG_GRAD_SQ_RATE * (measured.log_grad_sq - ema),
        path=history.path + decision.controls.step,
        decayed=history.decayed + decision.decay,
    )
