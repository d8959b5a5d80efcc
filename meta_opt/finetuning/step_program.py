"""Compilation of a run's step, with as many micro-batches as memory requires."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.objective import Objective
from meta_opt.finetuning.planning import device_limit, peak_bytes, refused
from meta_opt.finetuning.recovery import Action
from meta_opt.finetuning.state import TrainState
from meta_opt.finetuning.step import make_train_step
from meta_opt.parallel.mesh import batch_shards, replicated
from meta_opt.types import PyTree

CompileStep: TypeAlias = Callable[..., tuple[Callable[..., Any], Sequence[Action]]]
"""`compile_step`, or a function with the same signature."""


class CachedStep:
    """Calls `compile_step` once; later calls return the same program.

    Used for runs whose steps only differ in values of their state
    (`meta_opt.tuning.injected`).

    Attributes:
        compiled: compiled program; None before the first call.
    """

    def __init__(self) -> None:
        self.compiled: Any = None
        self._actions: Sequence[Action] = ()

    def __call__(self, *arguments: Any) -> tuple[Callable[..., Any], Sequence[Action]]:
        """Returns the result of `compile_step`, compiling at the first call."""
        if self.compiled is None:
            self.compiled, self._actions = compile_step(*arguments)
        return self.compiled, self._actions


def compile_step(
    config: LoopConfig,
    objective: Objective,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: PyTree,
    mesh: Mesh,
) -> tuple[Callable[..., Any], Sequence[Action]]:
    """Compiles the step ahead of time, which keeps compilation out of step times.

    With automatic recovery, the number of micro-batches is doubled until the step fits
    into memory.

    Args:
        config: settings of the loop.
        objective: objective of the run, see `meta_opt.finetuning.objective`.
        tx: the optimizer.
        state: training state, sharded over the mesh; each call donates it.
        batch: one of the run's batches.
        mesh: mesh over which the optimizer shards its work.

    Returns:
        ``(state, batch) -> (state, metrics)``, with a third argument if
        ``config.feedback``; and the actions that were taken to save memory.

    Raises:
        ValueError: the batch cannot be split into as many parts as memory requires.
    """
    shardings = jax.tree.map(lambda x: x.sharding, state)
    feedback = (np.float32(np.nan),) if config.feedback else ()
    parts, actions = config.accumulation_steps, list[Action]()
    while True:
        jitted = jax.jit(
            make_train_step(objective, tx, parts),
            donate_argnums=0,
            out_shardings=(shardings, replicated(mesh)),
        )
        with jax.set_mesh(mesh):
            lowered = jitted.lower(state, batch, *feedback)
        if not config.recovery.enabled:
            return lowered.compile(), actions
        limit = config.recovery.memory_limit or device_limit(mesh.devices.flat[0])
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed, limit = refused(str(error), held=0)
        else:
            needed = peak_bytes(compiled)
            if limit is None or needed <= limit:
                return compiled, actions
        about = f"{needed / 2**20:.4g} MiB of a device's {limit / 2**20:.4g}"
        shards = batch_shards(mesh)
        if config.batch_size % (2 * parts * shards):
            raise ValueError(
                f"a step in {parts} micro-batches needs {about}, and a batch of "
                f"{config.batch_size} over {shards} shards cannot be cut further: "
                "lower batch_size, or use more devices"
            )
        parts *= 2
        reason = f"a step needs {about}: it is cut in {parts} micro-batches"
        actions.append(Action("micro-batch", reason))
