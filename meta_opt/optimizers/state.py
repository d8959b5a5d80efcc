"""The optimizer's state, its settings, and the plan for tracing a step."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_opt.features.progress import ProgressState, init_progress
from meta_opt.features.statistics import History, UnitTable, unit_table
from meta_opt.features.tensors import TensorInfo, describe
from meta_opt.mesh_axes import varying_axes, varying_over
from meta_opt.optimizers.controller import (
    ControllerConfig,
    ControllerState,
    init_controller,
)
from meta_opt.optimizers.decisions import group_decisions
from meta_opt.optimizers.gradient_statistics import initial_structure
from meta_opt.optimizers.grouping import Group, first_units, group_leaves, replicated
from meta_opt.optimizers.safeguard import SafeguardState, init_safeguard
from meta_opt.optimizers.second_moment import SecondMoments, init_second
from meta_opt.optimizers.update_rule import Controls, hand_designed_controls
from meta_opt.types import PyTree


class OptimizerState(NamedTuple):
    """State of the learned optimizer and of the hand-designed rule.

    Of all fields only ``momentum`` is a tree of the parameters' structure and shapes,
    and the only one that `optax.tree_map_params` maps.

    Attributes:
        count: int32 [], calls so far.
        num_steps: int32 [], length of the run that the last call had.
        step_size: float32 [], factor of the schedule and the safeguard in every
            tensor's last step; 0 before the first call and where a step was skipped.
        momentum: bfloat16, structure and sharding of the parameters.
        second: second moments of the leaves for which a direction needs them.
        slots: int32 [leaves], index of each leaf's first unit, see `grouping`;
            constant.
        history: running statistics of each unit, [N] each.
        momentum_square: float32 [N], sum of squares of each unit's momentum.
        param_square: float32 [N], sum of squares of each unit's parameters, renewed
            every few steps.
        guard: state of the safeguard.
        progress: losses and feedback so far; None without controller.
        controller: state of the LSTMs; None without controller.
        decisions: float32 [groups, decisions], the last ones, see `group_decisions`.
    """

    count: jax.Array  # type: ignore[assignment]
    num_steps: jax.Array
    step_size: jax.Array
    momentum: PyTree
    second: SecondMoments
    slots: jax.Array
    history: History
    momentum_square: jax.Array
    param_square: jax.Array
    guard: SafeguardState
    progress: ProgressState | None
    controller: ControllerState | None
    decisions: jax.Array


@dataclasses.dataclass(frozen=True)
class Settings:
    """Static settings of the optimizer; hashable for `jax.jit`.

    Attributes:
        config: the controller's shape and directions.
        learned: whether there is a controller.
        stacked: regular expression of paths with a leading layer axis.
        groups: (regular expression, modality group) pairs.
        safeguard: whether broken steps are skipped.
        pallas: whether large matrices are measured by `fused_sums`.
    """

    config: ControllerConfig
    learned: bool
    stacked: str | None = None
    groups: tuple[tuple[str, str], ...] = ()
    safeguard: bool = True
    pallas: bool = False

    def needs_second(self, info: TensorInfo) -> bool:
        """Whether a direction that this tensor may take reads its second moment."""
        mixes_adam = self.learned and "adam" in self.config.directions
        return mixes_adam or not info.is_matrix or not self.config.orthogonal


class Plan(NamedTuple):
    """Descriptions of the parameters at trace time.

    Attributes:
        infos: descriptions of the leaves.
        groups: the leaves by kind.
        table: constants of the N units.
        decays: float32 [N], 1 where weight decay applies.
    """

    infos: tuple[TensorInfo, ...]
    groups: tuple[Group, ...]
    table: UnitTable
    decays: np.ndarray

    def base_controls(self, settings: Settings) -> Controls:
        """Controls of the hand-designed rule for these parameters."""
        return hand_designed_controls(
            self.table, settings.config.orthogonal, self.decays
        )


def make_plan(
    params: PyTree, settings: Settings, decayed: Sequence[bool] | None
) -> Plan:
    """Describes and groups the parameters.

    Args:
        params: arrays, or abstract ones.
        settings: of the optimizer.
        decayed: for each leaf, whether weight decay applies; None for matrices only.
    """
    infos = describe(params, settings.stacked, settings.groups)
    groups = group_leaves(infos, jax.tree.leaves(params))
    table = unit_table([i for group in groups for c in group.infos for i in c])
    decays = table.matrix
    if decayed is not None:
        leaves = [i for group in groups for i in group.leaves]
        decays = np.repeat(
            np.asarray([decayed[i] for i in leaves], np.float32),
            [infos[i].units for i in leaves],
        )
    return Plan(infos, groups, table, decays)


def init_state(
    params: PyTree,
    settings: Settings,
    decayed: tuple[bool, ...] | None,
    num_steps: int | jax.Array,
) -> OptimizerState:
    """The state before the first step.

    Under `jax.shard_map` it varies over the axes over which the parameters vary.

    Args:
        params: those that are trained.
        settings: of the optimizer.
        decayed: as of `make_plan`.
        num_steps: length of the run.
    """
    plan = make_plan(params, settings, decayed)
    units = len(plan.table.size)
    structure, decisions = _of_initial_params(
        params, settings=settings, decayed=decayed
    )
    # Arrays of their own: a donated state may not hold one buffer twice.
    zeros = (jnp.zeros(units, jnp.float32) for _ in History._fields)
    state = OptimizerState(
        count=jnp.zeros((), jnp.int32),
        # A copy, so that the caller's array is not donated with the state.
        num_steps=jnp.array(num_steps, jnp.int32),
        step_size=jnp.zeros((), jnp.float32),
        momentum=jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.bfloat16), params),
        second=init_second(
            params, plan.infos, [*map(settings.needs_second, plan.infos)]
        ),
        slots=jnp.asarray(first_units(plan.groups, len(plan.infos)), jnp.int32),
        history=History(*zeros)._replace(structure=structure),
        momentum_square=jnp.zeros(units, jnp.float32),
        param_square=jnp.zeros(units, jnp.float32),
        guard=init_safeguard(),
        progress=init_progress() if settings.learned else None,
        controller=(
            init_controller(settings.config, units) if settings.learned else None
        ),
        decisions=decisions,
    )
    return varying_over(state, varying_axes(params))


# Compiled as one program, since otherwise each operation would be compiled separately.
@functools.partial(jax.jit, static_argnames=("settings", "decayed"))
def _of_initial_params(
    params: PyTree, *, settings: Settings, decayed: tuple[bool, ...] | None
) -> tuple[jax.Array, jax.Array]:
    """The structure of the initial parameters [N], and the rule's first decisions."""
    plan = make_plan(params, settings, decayed)
    leaves = jax.tree.leaves(params)
    parts = [
        initial_structure(group, group.pack(leaves))
        if group.first.is_matrix
        else jnp.zeros(group.units, jnp.float32)
        for group in plan.groups
    ]
    structure = jnp.concatenate([jnp.zeros(0, jnp.float32), *map(replicated, parts)])
    return structure, group_decisions(plan.base_controls(settings), plan.table)


def is_placeholder(params: PyTree) -> bool:
    """Whether ``params`` is what `optax.tree_map_params` calls ``init`` with.

    The placeholder stands for a tree of any structure.
    """
    return isinstance(params, _placeholder_type())


@functools.cache
def _placeholder_type() -> type:
    # Private in optax, but passed to any function of parameters.
    given: list[PyTree] = []
    optax.tree_map_params(given.append, lambda x: x, None)
    return type(given[0])


def placeholder_state(state: OptimizerState) -> OptimizerState:
    """A placeholder's state, whose structure is a prefix of every state's.

    Second moments have the parameters' structure but not their shapes, so that nothing
    meant for parameters may be mapped over them: here they are single leaves.
    """
    single = [jnp.zeros(1, jnp.float32) for _ in SecondMoments._fields]
    return state._replace(second=SecondMoments(*single))
