"""Operations, memory, communication and time of training with combined losses.

Each case has five programs: a step of standard fine-tuning (the primary
loss alone), of equal weights, and of MELTR, and the two programs of MELTR's meta-step
(`meta_opt.finetuning.meta_step`). They are the programs of a run, with abstract arrays.
A case is traced for its operations, compiled for its memory, or run for its times, with
the programs in turns.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
import optax
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import Mesh

from meta_opt.finetuning.hlo_totals import program_totals
from meta_opt.finetuning.meta_step import MetaSteps, make_meta_step
from meta_opt.finetuning.objective import Objective, make_objective
from meta_opt.finetuning.planning import (
    abstract_state,
    count_flops,
    device_bytes,
    device_limit,
    peak_bytes,
    topology_devices,
)
from meta_opt.finetuning.state import TrainState, init_state
from meta_opt.finetuning.step import make_train_step
from meta_opt.meta_loss.hypergradients import HypergradientConfig
from meta_opt.meta_loss.settings import MetaLossConfig, published
from meta_opt.parallel.mesh import (
    MeshConfig,
    batch_sharding,
    check_batch_size,
    local_rows,
    make_mesh,
    replicated,
)
from meta_opt.parallel.placement import place
from meta_opt.studies.meltr_throughput.subjects import make_subject
from meta_opt.types import PyTree, check_name
from meta_opt.workloads.workload import Workload

LEVELS = ("traced", "compiled", "timed")
"""Levels of measurement; each includes those before it."""
STEPS = ("primary", "equal", "meltr")
"""Base steps: the primary loss alone, the mean of all losses, MELTR's combination."""
META = ("meta_primary", "meta_finish")
"""Programs of a meta-step; if one batch serves both there is only the second."""


class Method(NamedTuple):
    """How a meta-step is taken.

    Attributes:
        hypergradient: see `meta_opt.meta_loss.hypergradients`.
        same_batch: whether one batch serves for both of a meta-step's.
        batch_divisor: examples of a training batch over those of a meta-step's.
    """

    hypergradient: HypergradientConfig
    same_batch: bool = False
    batch_divisor: int = 1


_JVP = HypergradientConfig("jvp")
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "jvp_shared": Method(_JVP),
        "jvp": Method(HypergradientConfig("jvp", share_forward=False)),
        "same_batch": Method(_JVP, same_batch=True),
        "half_batch": Method(_JVP, batch_divisor=2),
        "same_half_batch": Method(_JVP, same_batch=True, batch_divisor=2),
        "quarter_batch": Method(_JVP, batch_divisor=4),
        "double_backward": Method(HypergradientConfig("double_backward")),
        "neumann": Method(HypergradientConfig("neumann", terms=3)),
        "finite_differences": Method(HypergradientConfig("finite_differences")),
        "sama": Method(HypergradientConfig("sama")),
    }
)
"""Ways to take a meta-step by name; ``jvp_shared`` is the default of a run."""

Timer: TypeAlias = Callable[[dict[str, Callable[[], Any]], int], Mapping[str, float]]
"""``(functions by name, rounds) -> median milliseconds``, with the functions in turns;
`experiments.benchmarks.timing.medians`."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A measured case.

    Attributes:
        model: one of `meta_opt.studies.meltr_throughput.subjects.MODELS`.
        num_losses: T; the model's first losses.
        batch_size: B, over all devices.
        trainable: ``all`` or ``lora``.
        method: one of `METHODS`.
        devices: number of local devices that the work is sharded over; 1 for a
            topology.
        topology: a TPU topology to compile for with all of its devices, such as
            ``v5e:2x2``; "" for local devices.
        level: one of `LEVELS`. Operations do not need compilation, which takes a
            minute per program.
        rounds: of timing.
        intervals: K of timed loops of steps with meta-steps.
    """

    model: str
    num_losses: int
    batch_size: int = 8
    trainable: str = "all"
    method: str = "jvp_shared"
    devices: int = 1
    topology: str = ""
    level: str = "compiled"
    rounds: int = 10
    intervals: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        make_subject(self.model, self.num_losses, self.trainable)
        check_name("method", self.method, METHODS)
        check_name("level", self.level, LEVELS)
        for name in ("devices", "batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        divisor = METHODS[self.method].batch_divisor
        if self.batch_size % divisor:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of {divisor} for "
                f"method={self.method!r}"
            )
        if self.topology and (self.level == "timed" or self.devices > 1):
            raise ValueError(
                f"topology={self.topology!r} is compiled for and not there: set "
                "level='compiled' and devices=1"
            )
        if self.intervals and (self.level != "timed" or min(self.intervals) < 1):
            raise ValueError(
                f"intervals={self.intervals} must be at least 1, and need level='timed'"
            )

    @property
    def meta_batch_size(self) -> int:
        """Examples of each batch of a meta-step."""
        return self.batch_size // METHODS[self.method].batch_divisor

    def meta_loss(self, combiner: str) -> MetaLossConfig:
        """UniVL's published settings for T losses, with this case's method."""
        method = METHODS[self.method]
        return dataclasses.replace(
            published("univl", self.num_losses),
            combiner=combiner,
            hypergradient=method.hypergradient,
            same_batch=method.same_batch,
            batch_size=self.meta_batch_size,
        )


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """Costs of one call of a program; only operations if it was only traced.

    Attributes:
        flops: floating-point operations of its matrix products over all devices;
            recomputation is counted.
        dot_flops: those of one device in the compiled program; 0 if the compiler writes
            no ``dot``, as for TPUs.
        peak_bytes: peak memory of a device, with all of the run's state.
        temporary_bytes: part of the peak that is neither argument nor result.
        collectives: number of collective operations.
        collective_bytes: bytes that these return to each device.
    """

    flops: float
    dot_flops: float | None = None
    peak_bytes: int | None = None
    temporary_bytes: int | None = None
    collectives: int | None = None
    collective_bytes: int | None = None


class _Programs(NamedTuple):
    """Compiled programs with their costs and objectives.

    Attributes:
        compiled: by name.
        costs: by name.
        objectives: of the base steps.
    """

    compiled: dict[str, Any]
    costs: dict[str, ProgramCost]
    objectives: dict[str, Objective]


def measure(
    case: Case, timer: Timer, announce: Callable[[str], None] = lambda program: None
) -> dict[str, Any]:
    """Measures a case.

    Args:
        case: the case.
        timer: measures times.
        announce: called with each program's name before it is compiled.

    Returns:
        JSON values: ``losses``, names; ``trained`` and ``frozen``, numbers of
        parameters; ``limit_bytes``, memory of a device, None if unknown; ``programs``,
        fields of `ProgramCost` by name; for a timed case ``milliseconds`` by program
        and ``loops``, milliseconds of a step by ``equal`` and by K.

    Raises:
        ValueError: more devices than there are, a batch that cannot be sharded over
            them, or an unknown topology.
    """
    tx = optax.adamw(1e-4)
    devices = topology_devices(case.topology)
    axis = "fsdp" if case.topology else "data"
    count = len(devices) if case.topology else case.devices
    mesh = make_mesh(MeshConfig(**{axis: count}), devices)
    for size in (case.batch_size, case.meta_batch_size):
        check_batch_size(mesh, size)
    subject = make_subject(case.model, case.num_losses, case.trainable)
    workload = subject.workload(concrete=False, examples=case.batch_size)
    programs = _compile(case, workload, tx, mesh, announce)
    record: dict[str, Any] = {
        "losses": list(subject.names),
        "trained": sum(x.size for x in jax.tree.leaves(workload.params)),
        "frozen": sum(x.size for x in jax.tree.leaves(workload.frozen)),
        "device": devices[0].device_kind,
        "limit_bytes": device_limit(devices[0]),
        "programs": {k: dataclasses.asdict(v) for k, v in programs.costs.items()},
    }
    if case.level == "timed":
        announce("timing")
        concrete = subject.workload(concrete=True, examples=4 * case.batch_size)
        record.update(_times(case, concrete, tx, mesh, programs, timer))
    return record


def _compile(
    case: Case,
    workload: Workload,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    announce: Callable[[str], None],
) -> _Programs:
    state, shardings = abstract_state(
        workload.params, workload.frozen, tx, mesh, workload.rules
    )
    whole, divided = replicated(mesh), batch_sharding(mesh)

    def abstract(tree: PyTree, sharding: Any) -> PyTree:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    batch, meta_batch = (
        abstract(next(workload.train_batches(size)), divided)
        for size in (case.batch_size, case.meta_batch_size)
    )
    programs = _Programs({}, {}, {})
    # Programs that are not run are compiled with less optimisation of machine code.
    quick = {}
    if case.level == "compiled" and not case.topology:
        quick = {"xla_backend_optimization_level": 0}

    def add(name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        announce(name)
        with jax.set_mesh(mesh):
            traced = jax.jit(function, **options).trace(*args)
            programs.costs[name] = ProgramCost(_flops(traced))
            if case.level != "traced":
                compiled = traced.lower().compile(compiler_options=quick)
                programs.compiled[name] = compiled
                programs.costs[name] = _cost(traced, compiled, args)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), traced.out_info
        )

    for name in STEPS:
        config = case.meta_loss(name)
        objective = programs.objectives[name] = make_objective(workload, config)
        initial = jax.eval_shape(objective.init, jax.random.key(0))
        of_step = dataclasses.replace(state, objective=abstract(initial, whole))
        layout = dataclasses.replace(
            shardings, objective=jax.tree.map(lambda x: whole, initial)
        )
        add(
            *(name, make_train_step(objective, tx), of_step, batch),
            donate_argnums=0,
            out_shardings=(layout, whole),
        )
    # The last is MELTR.
    meta = make_meta_step(workload, objective, config, tx)
    of_primary: tuple[Any, ...] = ()
    if meta.primary is not None:
        layout = (shardings.params, whole)
        found = add(
            *("meta_primary", meta.primary, of_step, meta_batch), out_shardings=layout
        )
        of_primary = tuple(
            jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                found,
                layout,
            )
        )
    args = (of_step, *of_primary, meta_batch)
    add("meta_finish", meta.finish, *args, out_shardings=whole)
    return programs


def _flops(traced: Any) -> float:
    jaxpr = traced.jaxpr.jaxpr
    # Of `jax.linearize` and `jax.vjp` there is more in the trace than is compiled.
    used, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return count_flops(used)


def _cost(traced: Any, compiled: Any, args: Sequence[Any]) -> ProgramCost:
    memory: Any = compiled.memory_analysis()
    # Arguments that a program does not use are resident all the same.
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


def _times(
    case: Case,
    workload: Workload,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    programs: _Programs,
    timer: Timer,
) -> dict[str, Any]:
    rows = local_rows(mesh, case.batch_size)
    batch, meta_batch = (
        place(
            next(workload.train_batches(size, 0, local_rows(mesh, size))),
            batch_sharding(mesh),
        )
        for size in (case.batch_size, case.meta_batch_size)
    )
    states: dict[str, TrainState] = {
        name: init_state(
            *(workload.params, workload.frozen, tx, mesh, workload.rules),
            init_objective=programs.objectives[name].init,
        )
        for name in STEPS
    }

    def step(name: str, batch: PyTree = batch) -> Any:
        states[name], metrics = programs.compiled[name](states[name], batch)
        return metrics

    runs: dict[str, Callable[[], Any]] = {
        name: functools.partial(step, name) for name in STEPS
    }
    of_primary: tuple[Any, ...] = ()
    if "meta_primary" in programs.compiled:

        def primary() -> Any:
            return programs.compiled["meta_primary"](states["meltr"], meta_batch)

        runs["meta_primary"], of_primary = primary, primary()

    def finish() -> Any:
        args = (states["meltr"], *of_primary, meta_batch)
        return programs.compiled["meta_finish"](*args)

    runs["meta_finish"] = finish
    found: dict[str, Any] = {"milliseconds": dict(timer(runs, case.rounds))}
    if case.intervals:
        loops = {str(k): _loop(case, k, workload, tx, mesh, states) for k in
                 case.intervals}  # fmt: skip
        steps = _common_length(case.intervals)

        def equal() -> Any:
            batches = workload.train_batches(case.batch_size, 0, rows)
            for _ in range(steps):
                last = step("equal", place(next(batches), batch_sharding(mesh)))
            return last

        def meltr(meta_steps: MetaSteps) -> Any:
            batches = workload.train_batches(case.batch_size, 0, rows)
            for number in range(1, steps + 1):
                step("meltr", place(next(batches), batch_sharding(mesh)))
                states["meltr"] = meta_steps.after(number, states["meltr"])
            return states["meltr"]

        timed = {k: functools.partial(meltr, loop) for k, loop in loops.items()}
        whole = timer({"equal": equal, **timed}, max(case.rounds // 2, 1))
        found["loops"] = {k: x / steps for k, x in whole.items()}
    return found


def _common_length(intervals: Sequence[int]) -> int:
    """Number of steps in which every interval ends, so that no meta-step is cut off.

    >>> _common_length((3, 10))
    30
    """
    return int(np.lcm.reduce(np.asarray(intervals)))


def _loop(
    case: Case,
    interval: int,
    workload: Workload,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    states: Mapping[str, TrainState],
) -> MetaSteps:
    """The meta-steps of a run."""
    config = dataclasses.replace(case.meta_loss("meltr"), interval=interval)
    objective = make_objective(workload, config)
    size = case.meta_batch_size
    rows = local_rows(mesh, size)
    assert workload.meta_batches is not None
    found = MetaSteps(
        make_meta_step(workload, objective, config, tx),
        interval,
        functools.partial(workload.meta_batches, size, 0, rows),
        len(rows),
        size,
        mesh,
    )
    found.compile(states["meltr"])
    return found
