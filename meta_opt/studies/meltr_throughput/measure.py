"""Operations, memory, communication and time of training with combined losses.

Each case has five programs: a step of standard fine-tuning (the primary loss alone), a
step with equal weights, MELTR's base step, and the two programs of MELTR's meta-step
(`meta_opt.finetuning.meta_step`). They are the programs of a training run, with
abstract arrays. Depending on its level, a case is traced to count operations, compiled
to find its memory, or run to time the programs in turns.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from meta_opt.finetuning.planning import device_limit, topology_devices
from meta_opt.parallel.mesh import MeshConfig, check_batch_size, make_mesh
from meta_opt.studies.meltr_throughput.cases import Case
from meta_opt.studies.meltr_throughput.programs import compile_programs
from meta_opt.studies.meltr_throughput.subjects import make_subject
from meta_opt.studies.meltr_throughput.times import Timer, measure_times


def measure(
    case: Case, timer: Timer, announce: Callable[[str], None] = lambda program: None
) -> dict[str, Any]:
    """Measures a case.

    Args:
        case: the case.
        timer: measures times.
        announce: called with each program's name before it is compiled.

    Returns:
        JSON values: ``losses``, names of the losses; ``trained`` and ``frozen``,
        numbers of parameters; ``limit_bytes``, memory of a device, None if unknown;
        ``programs``, fields of
        `meta_opt.studies.meltr_throughput.programs.ProgramCost` by name; for a timed
        case, ``milliseconds`` by program and ``loops``, milliseconds of a step in the
        loop of ``equal`` and of each K.

    Raises:
        ValueError: more devices than available, a batch that cannot be sharded over
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
    programs = compile_programs(case, workload, tx, mesh, announce)
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
        record.update(measure_times(case, concrete, tx, mesh, programs, timer))
    return record
