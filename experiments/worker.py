"""Processes that a command starts to work beside it."""

import os
import signal
from typing import Any

from meta_opt.parallel.processes import end_with_parent


def start_worker(cores: Any = None) -> None:
    """Pins this process to one core, before JAX counts the cores.

    It ends with the process that started it, however that ends; that one alone answers
    to Ctrl-C.

    Args:
        cores: a queue of numbers of cores; None pins to none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if cores is not None:
        os.sched_setaffinity(0, {cores.get()})
    # JAX, which it imports, counts the cores.
    from meta_opt.compilation_cache import use_compilation_cache

    use_compilation_cache()


def start_on_devices(devices: int, topology: str) -> None:
    """Sets this process up before JAX looks for devices.

    Args:
        devices: virtual CPU devices; 1 leaves the platform as it is.
        topology: topology of a TPU that is compiled for; "" for none.
    """
    import jax

    start_worker()
    if topology or devices > 1:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    if topology:  # What is compiled for others cannot be read here.
        jax.config.update("jax_compilation_cache_dir", None)
