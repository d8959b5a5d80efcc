"""Multi-process runs: start-up, and agreement on values."""

import hashlib
import importlib.util
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from meta_opt.parallel.mesh import replicated
from meta_opt.types import PyTree

_SLURM_TASKS, _SLURM_NODES = "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"
_MPI_TASKS, _MPI_HERE = "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"


def start_processes(
    coordinator: str = "",
    processes: int | None = None,
    index: int | None = None,
    heartbeat_timeout_seconds: int = 100,
) -> None:
    """Connects this process to the others of its run; call before any computation.

    Without arguments the other processes are detected from the environment by JAX:
    tasks of a SLURM step, ranks of Open MPI, hosts of a Cloud TPU. A single process
    needs no connection.

    Args:
        coordinator: ``host:port`` of process 0.
        processes: number of processes; 1 does nothing, None detects it.
        index: index of this process.
        heartbeat_timeout_seconds: time without heartbeat after which JAX ends all
            processes without a message; `meta_opt.parallel.watch` should be faster.

    Raises:
        ValueError: if only some of the arguments are given, the index is out of range,
            or a launcher has started several processes and JAX does not find them.
        RuntimeError: if the others do not connect within five minutes.

    Example:
        >>> start_processes("", 1, 0)
        >>> jax.process_count()
        1
    """
    if processes == 1:
        return
    if (coordinator, processes, index) == ("", None, None):
        _join_as_launched(heartbeat_timeout_seconds)
        return
    if not coordinator or index is None or index not in range(processes or 0):
        raise ValueError(
            f"process {index} of {processes} with coordinator {coordinator!r}: give "
            "host:port of process 0, the number of processes, and each process its "
            "index from 0"
        )
    _join(
        coordinator_address=coordinator,
        num_processes=processes,
        process_id=index,
        heartbeat_timeout_seconds=heartbeat_timeout_seconds,
    )


def launched_together(environment: Mapping[str, str]) -> bool:
    """Whether SLURM or Open MPI has started this process together with others.

    Args:
        environment: environment variables by name.

    Example:
        >>> launched_together({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2"})
        True
        >>> launched_together({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"})
        False
    """
    # The tasks of the step, not of the job: a command in a job's shell, or in its batch
    # script without srun, is a single process and would wait forever for others.
    tasks = (environment.get(name, "1") for name in (_SLURM_TASKS, _MPI_TASKS))
    return any(int(count) > 1 for count in tasks)


def _join_as_launched(heartbeat_timeout_seconds: int) -> None:
    together = launched_together(os.environ)
    # Only JAX can find out whether a TPU has further hosts, from the cloud's metadata.
    if not together and not _perhaps_tpu():
        return
    try:
        _join(
            local_device_ids=[] if _alone_on_node(os.environ) else None,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        )
    except ValueError as error:
        # JAX raises this if there is no cluster.
        if "coordinator_address" not in str(error):
            raise
        if together:
            raise ValueError(
                "a launcher has started several processes, and JAX does not find the "
                "others; name them with --coordinator, --processes and --process"
            ) from error


def _perhaps_tpu() -> bool:
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    allowed = not platforms or "tpu" in platforms
    return allowed and importlib.util.find_spec("libtpu") is not None


def _alone_on_node(environment: Mapping[str, str]) -> bool:
    """Whether this is the only process of its node, which then owns all GPUs."""
    if _MPI_TASKS in environment:
        return environment.get(_MPI_HERE) == "1"
    tasks = environment.get(_SLURM_TASKS)
    return tasks is not None and tasks == environment.get(_SLURM_NODES)


def _join(**kwargs: object) -> None:
    # CPU collectives need a library; accelerators ignore this setting.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(**kwargs)  # type: ignore[arg-type]
    # JAX now intercepts SIGTERM as a preemption notice. Restore the default, so that it
    # ends the process unless the training loop catches it.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def json_from_first(value: Any) -> Any:
    """Broadcasts a JSON value from process 0; all processes must call this.

    Args:
        value: JSON value; only that of process 0 is used.

    >>> json_from_first({"steps": 3})  # One process need not ask.
    {'steps': 3}
    """
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode() if jax.process_index() == 0 else b""
    # Padded to few different lengths, since each is compiled. JSON may end in spaces.
    length = max(64, 1 << (largest(len(text)) - 1).bit_length())
    sent = np.frombuffer(text.ljust(length), np.uint8)
    received = multihost_utils.broadcast_one_to_all(sent)
    return json.loads(np.asarray(received, np.uint8).tobytes())


def arrays_from_first(tree: PyTree) -> PyTree:
    """Broadcasts arrays from process 0; all processes must call this.

    Args:
        tree: pytree of NumPy or JAX arrays that are not sharded over processes, of the
            same shapes and dtypes in all processes.

    >>> arrays_from_first({"x": np.arange(2)})  # One process need not ask.
    {'x': array([0, 1])}
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def check_alike(value: Any, what: str) -> None:
    """Checks that all processes have the same value; all processes must call this.

    Args:
        value: a JSON value.
        what: description of the value, for the error message.

    Raises:
        ValueError: in every process, if the values differ.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(value, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if any_process(json_from_first(digest) != digest):
        raise ValueError(
            f"the {jax.process_count()} processes have different {what}: give all of "
            "them the same"
        )


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all processes must call this."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def barrier() -> None:
    """Waits until every process has called this."""
    any_process(False)


def largest(number: int) -> int:
    """The maximum of a number over all processes; all processes must call this.

    >>> largest(3)  # One process need not ask.
    3
    """
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int64(number)).max())


def mean(number: float) -> float:
    """The mean of a number over all processes; all processes must call this.

    >>> mean(3.5)  # One process need not ask.
    3.5
    """
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    # As bytes, since JAX would round 64-bit numbers to 32 bits.
    mine = np.frombuffer(np.float64(number).tobytes(), np.uint8)
    every = np.asarray(multihost_utils.process_allgather(mine), np.uint8)
    return float(np.frombuffer(every.tobytes(), np.float64).mean())


class LaggedMax:
    """The maximum of a number over all processes, with a delay of one call.

    A call starts the all-reduce of its number and returns the result of the previous
    call, so that devices are busy while the host waits. Since every process gets the
    same result from the same call, they can act on it together.

    Args:
        mesh: mesh of all devices of all processes.

    Example:
        >>> from meta_opt.parallel.mesh import MeshConfig, make_mesh
        >>> LaggedMax(make_mesh(MeshConfig()))(3)  # One process need not wait.
        3
    """

    def __init__(self, mesh: Mesh) -> None:
        self._each_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._max = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._pending: jax.Array | None = None

    def __call__(self, number: int) -> int:
        """Contributes a number >= 0; all processes must call this equally often."""
        if jax.process_count() == 1:
            return number
        mine = np.full(jax.local_device_count(), number, np.int32)
        numbers = jax.make_array_from_process_local_data(self._each_device, mine)
        before, self._pending = self._pending, self._max(numbers)
        return 0 if before is None else int(before)


def check_shared(folder: str | Path) -> None:
    """Checks that all processes see the same folder; all processes must call this.

    Args:
        folder: created if needed.

    Raises:
        ValueError: in every process, if one of them sees another folder.
    """
    if jax.process_count() == 1:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    token = json_from_first(os.urandom(8).hex())
    file = folder / f".shared-{token}"
    if jax.process_index() == 0:
        file.touch()
    barrier()  # Wait until the file exists.
    unseen = any_process(not file.exists())
    file.unlink(missing_ok=True)
    if unseen:
        raise ValueError(
            f"the {jax.process_count()} processes do not see the same {folder}: use a "
            "--workdir on a disk that all hosts share"
        )


def end_with_parent() -> None:
    """Ends this process when its parent process ends, even if that is killed.

    Otherwise workers of a pool would outlive a killed command and keep using memory and
    cores.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
