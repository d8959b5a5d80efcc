"""The programs of a case, with their operations, memory and communication."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import Mesh, NamedSharding

from meta_opt.finetuning.hlo_totals import program_totals
from meta_opt.finetuning.meta_step import make_meta_step
from meta_opt.finetuning.objective import Objective, make_objective
from meta_opt.finetuning.planning import (
    abstract_state,
    count_flops,
    device_bytes,
    peak_bytes,
)
from meta_opt.finetuning.step import make_train_step
from meta_opt.parallel.mesh import batch_sharding, replicated
from meta_opt.studies.meltr_throughput.cases import Case
from meta_opt.types import PyTree
from meta_opt.workloads.workload import Workload

STEPS = ("primary", "equal", "meltr")
"""Training steps: the primary loss alone, the mean of all losses, and MELTR's
combination."""
META = ("meta_primary", "meta_finish")
"""Programs of a meta-step. If it uses a single batch, there is only the second one."""
PARTS = {"equal weights": ("equal",), "MELTR": ("meltr",), "meta-step": META}
"""Programs of a step with equal weights, of MELTR's step, and of its meta-step."""


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """Costs of one call of a program; without compilation only ``flops`` is known.

    Attributes:
        flops: floating-point operations of matrix products over all devices, including
            recomputation.
        dot_flops: the same for one device in the compiled program; 0 if the compiler
            emits no ``dot`` instructions, as for TPUs.
        peak_bytes: peak memory of a device, with the whole state of the run.
        temporary_bytes: part of the peak that is neither arguments nor results.
        collectives: number of collective operations.
        collective_bytes: bytes that the collectives return to each device.
    """

    flops: float
    dot_flops: float | None = None
    peak_bytes: int | None = None
    temporary_bytes: int | None = None
    collectives: int | None = None
    collective_bytes: int | None = None


class Programs(NamedTuple):
    """Compiled programs with their costs and objectives.

    Attributes:
        compiled: compiled programs by name.
        costs: costs by name of the program.
        objectives: training objectives by name of the step.
    """

    compiled: dict[str, Any]
    costs: dict[str, ProgramCost]
    objectives: dict[str, Objective]


def compile_programs(
    case: Case,
    workload: Workload,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    announce: Callable[[str], None],
) -> Programs:
    """Traces the five programs, and compiles them unless the case is only traced.

    Args:
        case: the case.
        workload: workload with abstract arrays.
        tx: the optimizer.
        mesh: mesh that the work is sharded over.
        announce: called with each program's name before it is compiled.
    """
    compiler = _Compiler(case, mesh, announce)
    whole, divided = replicated(mesh), batch_sharding(mesh)
    state, shardings = abstract_state(
        workload.params, workload.frozen, tx, mesh, workload.rules
    )
    batch, meta_batch = (
        _abstract(next(workload.train_batches(size)), divided)
        for size in (case.batch_size, case.meta_batch_size)
    )
    for name in STEPS:
        config = case.meta_loss(name)
        objective = make_objective(workload, config)
        compiler.programs.objectives[name] = objective
        initial = jax.eval_shape(objective.init, jax.random.key(0))
        of_step = dataclasses.replace(state, objective=_abstract(initial, whole))
        layout = dataclasses.replace(
            shardings, objective=jax.tree.map(lambda x: whole, initial)
        )
        compiler.add(
            *(name, make_train_step(objective, tx), of_step, batch),
            donate_argnums=0,
            out_shardings=(layout, whole),
        )
    # The objective is that of the last step, MELTR.
    meta = make_meta_step(workload, objective, config, tx)
    of_primary: tuple[Any, ...] = ()
    if meta.primary is not None:
        layout = (shardings.params, whole)
        found = compiler.add(
            *("meta_primary", meta.primary, of_step, meta_batch), out_shardings=layout
        )
        of_primary = tuple(map(_abstract, found, layout))
    args = (of_step, *of_primary, meta_batch)
    compiler.add("meta_finish", meta.finish, *args, out_shardings=whole)
    return compiler.programs


class _Compiler:
    """Traces and compiles the programs of a case."""

    def __init__(self, case: Case, mesh: Mesh, announce: Callable[[str], None]) -> None:
        self.programs = Programs({}, {}, {})
        self._case, self._mesh, self._announce = case, mesh, announce
        # Programs that are not run need less optimised machine code.
        quick = case.level == "compiled" and not case.topology
        self._options = {"xla_backend_optimization_level": 0} if quick else {}

    def add(
        self, name: str, function: Callable[..., Any], *args: Any, **options: Any
    ) -> Any:
        """Traces a program, and compiles it if needed; returns its abstract results."""
        self._announce(name)
        with jax.set_mesh(self._mesh):
            traced = jax.jit(function, **options).trace(*args)
            self.programs.costs[name] = ProgramCost(_flops(traced))
            if self._case.level != "traced":
                compiled = traced.lower().compile(compiler_options=self._options)
                self.programs.compiled[name] = compiled
                self.programs.costs[name] = _cost(traced, compiled, args)
        return traced.out_info


def _abstract(tree: PyTree, sharding: Any) -> PyTree:
    """Returns abstract arrays with one sharding for all leaves, or one per leaf."""
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda x: sharding, tree)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, sharding
    )


def _flops(traced: Any) -> float:
    jaxpr = traced.jaxpr.jaxpr
    # Traces of `jax.linearize` and `jax.vjp` have dead code, which is not compiled.
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return count_flops(used)


def _cost(traced: Any, compiled: Any, args: Sequence[Any]) -> ProgramCost:
    memory: Any = compiled.memory_analysis()
    # Arguments that a program does not use still occupy memory.
    unread = device_bytes(args) - memory.argument_size_in_bytes
    totals = program_totals(compiled.as_text())
    return ProgramCost(
        flops=_flops(traced),
        dot_flops=totals.dot_flops,
        peak_bytes=peak_bytes(compiled) + max(unread, 0),
        temporary_bytes=memory.temp_size_in_bytes,
        collectives=totals.collectives,
        collective_bytes=totals.collective_bytes,
    )
