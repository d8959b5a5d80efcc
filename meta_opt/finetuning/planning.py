"""Memory plans of training steps per device, from ahead-of-time compilation.

The step is compiled with abstract arrays, for the local devices or for a described TPU
topology (the libtpu wheel compiles without a TPU).
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from meta_opt.error_messages import first_line
from meta_opt.finetuning.jaxprs import inner_jaxprs
from meta_opt.finetuning.objective import single_loss
from meta_opt.finetuning.state import TrainState
from meta_opt.finetuning.step import make_train_step
from meta_opt.optimizers.sharding import state_shardings
from meta_opt.parallel.mesh import batch_sharding, batch_shards, replicated
from meta_opt.parallel.sharding import Rule, parameter_shardings
from meta_opt.types import PyTree
from meta_opt.workloads.workload import LossFn

HBM_BYTES = {
    "TPU v2": 8 * 2**30,
    "TPU v3": 16 * 2**30,
    "TPU v4": 32 * 2**30,
    "TPU v5 lite": 16 * 2**30,
    "TPU v5": 95 * 2**30,
    "TPU v6 lite": 32 * 2**30,
}
"""Memory of a device by its kind."""

_SIZE = r"([\d.]+)([KMGT]?)"
# The TPU compiler's error has the peak or its temporary part, and the available memory.
_PEAK = re.compile(rf"Used {_SIZE} of {_SIZE} hbm", re.IGNORECASE)
_TEMPORARY = re.compile(
    rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)", re.IGNORECASE
)
_COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
    r"(-start)?\("
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Memory in bytes and operations of one step, on each device.

    Attributes:
        batch_size: batch size over all devices.
        accumulation_steps: number of micro-batches.
        parameters: bytes of trained parameters.
        frozen: bytes of frozen parameters.
        gradients: bytes of the gradients.
        optimizer: bytes of the optimizer's state.
        temporary: bytes of everything else at the peak: activations, updates, buffers.
            None if the step was not compiled.
        total: peak bytes; a lower bound if the step was not compiled.
        limit: memory of the device in bytes; None if unknown.
        flops: floating-point operations of the step's matrix products divided by the
            number of devices; recomputation is counted.
        collectives: number of collective operations in the compiled step; those in a
            loop count once. None if the step was not compiled or cannot be parsed.
        compile_seconds: compilation time in seconds; 0 if the step was not compiled.
    """

    batch_size: int
    accumulation_steps: int
    parameters: int
    frozen: int
    gradients: int
    optimizer: int
    temporary: int | None
    total: int
    limit: int | None
    flops: float
    collectives: int | None
    compile_seconds: float

    @property
    def fits(self) -> bool | None:
        """Whether the peak is within the limit; None if unknown."""
        if self.limit is None:
            return None
        if self.total > self.limit:
            return False
        return True if self.temporary is not None else None


def topology_devices(topology: str) -> Sequence[Any]:
    """Returns the devices of ``v5e:2x2``, ``v4:2x2x2``, ...; ``""`` for local ones.

    Raises:
        ValueError: the topology is unknown, or libtpu is not installed.
    """
    if not topology:
        return jax.devices()
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # The plugin may raise any exception.
        raise ValueError(
            f"no topology {topology!r} (such as v5e:2x2, v4:2x2x2, v6e:4x4): "
            f"{first_line(error)}; compiling for TPU needs `pip install libtpu`"
        ) from None
    return found.devices


def plan_step(
    params: PyTree,
    frozen: PyTree,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    batch: PyTree,
    mesh: Mesh,
    rules: Sequence[Rule],
    accumulation_steps: int = 1,
) -> StepPlan:
    """Compiles a step and returns its memory and operations on each device.

    If parameters, state and gradients alone exceed the device's memory, the step is not
    compiled.

    Args:
        params: abstract arrays of the trained part.
        frozen: abstract arrays of the frozen part.
        loss_fn: training loss, see `LossFn`.
        tx: the optimizer.
        batch: abstract arrays [B, ...].
        mesh: mesh of real or described devices.
        rules: sharding rules of ``params`` and ``frozen``.
        accumulation_steps: number of micro-batches.

    Raises:
        ValueError: a rule matches nothing, or the batch cannot be sharded.
    """
    state, shardings = abstract_state(params, frozen, tx, mesh, rules)
    step = make_train_step(single_loss(loss_fn), tx, accumulation_steps)
    divided = batch_sharding(mesh)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=divided), batch
    )
    size = jax.tree.leaves(batch)[0].shape[0]
    jitted = jax.jit(
        step, donate_argnums=0, out_shardings=(shardings, replicated(mesh))
    )
    with jax.set_mesh(mesh):
        traced = jitted.trace(state, batch)
    known: dict[str, Any] = {
        "batch_size": size,
        "accumulation_steps": accumulation_steps,
        "parameters": device_bytes(state.params),
        "frozen": device_bytes(state.frozen),
        "gradients": device_bytes(state.params),
        "optimizer": device_bytes(state.opt_state),
        "limit": device_limit(mesh.devices.flat[0]),
        "flops": count_flops(traced.jaxpr.jaxpr) / mesh.size,
    }
    parts = ("parameters", "frozen", "gradients", "optimizer")
    least = sum(known[name] for name in parts)
    if known["limit"] is not None and least > known["limit"]:
        return StepPlan(
            **known, temporary=None, total=least, collectives=None, compile_seconds=0.0
        )
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = traced.lower()
    # The arguments of the compiled step are everything but the gradients.
    held = least - known["gradients"]
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        total, known["limit"] = refused(str(error), held)
        collectives = None
    else:
        total = peak_bytes(compiled)
        try:
            collectives = count_collectives(compiled.as_text() or "")
        except (
            jax.errors.JaxRuntimeError
        ):  # The text of a newer compiler may not be parsable.
            collectives = None
    return StepPlan(
        **known,
        temporary=max(total - least, 0),
        total=total,
        collectives=collectives,
        compile_seconds=time.perf_counter() - began,
    )


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns the peak bytes per device of a compiled program with its arguments."""
    memory: Any = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def refused(message: str, held: int) -> tuple[int, int]:
    """Returns peak and available bytes of a step that is too large to compile.

    Args:
        message: the compiler's error.
        held: bytes of the step's arguments.

    Raises:
        RuntimeError: the error has another cause.

    >>> refused("Used 17.5G of 15.75G hbm. Exceeded", held=0)[0] / 2**30
    17.5
    """
    for pattern, more in ((_PEAK, 0), (_TEMPORARY, held)):
        if found := pattern.search(message):
            used, limit = (
                int(float(number) * _UNITS[unit.upper()])
                for number, unit in (found.group(1, 2), found.group(3, 4))
            )
            return used + more, limit
    raise RuntimeError(f"the step was not compiled: {message}")


def count_collectives(hlo: str) -> int:
    """Counts the collectives in the text of a compiled program.

    The TPU compiler writes an asynchronous one in several places with the same channel
    id.

    >>> count_collectives("%x = f32[4] all-reduce-start(%y), channel_id=3, ...")
    1
    """
    channels = set()
    for number, line in enumerate(hlo.splitlines()):
        if _COLLECTIVE.search(line):
            channel = re.search(r"channel_id=(\d+)", line)
            channels.add(channel[1] if channel else f"line {number}")
    return len(channels)


def abstract_state(
    params: PyTree,
    frozen: PyTree,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    rules: Sequence[Rule],
) -> tuple[TrainState, PyTree]:
    """Returns the abstract state of step 0, and its shardings."""

    def placed(tree: PyTree, shardings: PyTree) -> PyTree:
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            tree,
            shardings,
        )

    of_params, of_frozen = parameter_shardings(rules, mesh, params, frozen)
    params, frozen = placed(params, of_params), placed(frozen, of_frozen)
    whole = replicated(mesh)
    scalar: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    key: Any = jax.eval_shape(lambda: jax.random.key(0))
    state = TrainState(
        step=scalar,
        params=params,
        frozen=frozen,
        opt_state=placed(jax.eval_shape(tx.init, params), state_shardings(tx, params)),
        rng=jax.ShapeDtypeStruct((), key.dtype, sharding=whole),  # type: ignore
        nonfinite=scalar,
        scale=jax.ShapeDtypeStruct((), jnp.float32, sharding=whole),  # type: ignore
    )
    return state, jax.tree.map(lambda x: x.sharding, state)


def largest_batch(
    plan: Callable[[int], StepPlan],
    known: StepPlan,
    mesh: Mesh,
    most: int = 1024,
    grain: int = 8,
) -> StepPlan | None:
    """Finds the plan with the largest batch that fits.

    Compiling a plan takes long, so the peak is extrapolated linearly from the last two
    plans, and the next batch size is where it meets the limit.

    Args:
        plan: function from a batch size to its plan.
        known: plan to start from.
        mesh: mesh whose data and fsdp axes shard the batch.
        most: maximum number of examples per shard to try, a multiple of ``grain``.
        grain: factor that batch sizes per shard are multiples of.

    Returns:
        The plan; None if no batch fits.
    """
    unit = grain * batch_shards(mesh)
    plans = [known]
    best = known if known.fits else None
    fits = known.batch_size // unit if known.fits else 0
    too_much = most // grain + 1 if known.fits else -(-known.batch_size // unit)
    while too_much - fits > 1:
        guess = min(max(_next(plans) // unit, fits + 1), too_much - 1)
        plans.append(plan(guess * unit))
        if plans[-1].fits:
            best, fits = plans[-1], guess
        else:
            too_much = guess
    return best


def _next(plans: Sequence[StepPlan]) -> int:
    """Extrapolates the last two plans linearly to the batch size at the limit.

    With one plan all temporary bytes are assumed to be proportional to the batch, which
    underestimates the size.
    """
    last = plans[-1]
    if len(plans) == 1:
        per_example = (last.temporary or 0) / last.batch_size
    else:
        more = last.batch_size - plans[-2].batch_size
        per_example = (last.total - plans[-2].total) / more
    if last.limit is None or per_example <= 0:
        return 2 * last.batch_size if last.fits else last.batch_size // 2
    return int(last.batch_size + (last.limit - last.total) / per_example)


def product_flops(function: Callable[..., Any], *args: Any) -> float:
    """Counts the floating-point operations of all matrix products of a function.

    A multiply-add counts as two. Loops with a trip count that is known at trace time
    (scans) are multiplied by it; other loops count once.

    Args:
        function: function of (abstract) arrays.
        *args: arguments of the function.

    >>> x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    >>> product_flops(lambda a: jax.lax.fori_loop(0, 3, lambda i, y: y @ a, a), x)
    384.0
    """
    return count_flops(jax.make_jaxpr(function)(*args).jaxpr)


def count_flops(jaxpr: Any) -> float:
    """Counts `product_flops` of a jaxpr."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in contracted)
            total += 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
            continue
        inside = [count_flops(inner) for inner in inner_jaxprs(params)]
        if name == "cond":
            total += max(inside, default=0.0)
        else:
            total += params.get("length", 1) * sum(inside)
    return total


def device_bytes(tree: PyTree) -> int:
    """Returns the bytes on each device of (abstract) arrays with shardings."""

    def leaf(x: Any) -> int:
        shape = x.sharding.shard_shape(x.shape)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return 0
        return math.prod(shape) * x.dtype.itemsize

    return sum(leaf(x) for x in jax.tree.leaves(tree))


def device_limit(device: Any) -> int | None:
    """Returns the memory of a device in bytes; None if unknown."""
    kind = getattr(device, "device_kind", "")
    if kind in HBM_BYTES:
        return HBM_BYTES[kind]
    stats = getattr(device, "memory_stats", lambda: None)
    found = stats() if callable(stats) and device in jax.local_devices() else None
    return found.get("bytes_limit") if found else None
