"""Flags of experiments that several processes run together."""

from contextlib import AbstractContextManager

from absl import flags
from absl import logging as absl_logging

# --help of a command lists these flags only if the command uses them.
flags.disclaim_key_flags()

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "host:port of process 0. Not needed under SLURM, Open MPI and on Cloud TPU.",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Total number of processes.")
_PROCESS = flags.DEFINE_integer("process", None, "Index of this process, from 0.")
_TIMEOUT = flags.DEFINE_float(
    "process_timeout",
    100.0,
    "Seconds without a heartbeat after which a process counts as lost; the others end.",
    lower_bound=1.0,
)


def distributed() -> AbstractContextManager[bool]:
    """Joins the processes that the flags or the environment name.

    Returns:
        The context manager `meta_opt.parallel.joined.joined`.
    """
    # Imported late so that --help does not wait for JAX.
    from meta_opt.parallel.joined import joined

    return joined(
        _COORDINATOR.value,
        _PROCESSES.value,
        _PROCESS.value,
        _TIMEOUT.value,
        [absl_logging.get_absl_handler().python_handler],
    )
