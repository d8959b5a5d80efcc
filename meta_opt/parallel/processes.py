"""Several processes of one run: start-up, and what they must agree on."""

import jax
import numpy as np


def start_processes(coordinator: str, processes: int, index: int) -> None:
    """Joins this process to the others; to be called before any computation.

    Args:
        coordinator: ``host:port`` of process 0.
        processes: how many there are; 1 does nothing.
        index: of this one.

    Raises:
        ValueError: without coordinator, or an index out of range.
    """
    if processes == 1:
        return
    if not coordinator or not 0 <= index < processes:
        raise ValueError(
            f"process {index} of {processes} with coordinator {coordinator!r}: give "
            "host:port of process 0, and each process its index from 0"
        )
    # On the CPU collectives need a library of their own; accelerators ignore this.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, processes, index)


def from_first(value: float) -> float:
    """Process 0's value, in every process; all of them must call this."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return float(multihost_utils.broadcast_one_to_all(np.float64(value)))
