"""Setup of the worker processes that a command starts."""

import os
import signal
from typing import Any

from meta_opt.parallel.processes import end_with_parent


def start_worker(cores: Any = None) -> None:
    """Pins this process to one core, before JAX counts the cores.

    The process ends whenever its parent ends, and ignores Ctrl-C, which the parent
    handles.

    Args:
        cores: queue of core indices; None does not pin.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if cores is not None:
        os.sched_setaffinity(0, {cores.get()})
    # Imported only after pinning, because it imports JAX, which counts the cores.
    from meta_opt.compilation_cache import use_compilation_cache

    use_compilation_cache()


def start_on_devices(devices: int, topology: str) -> None:
    """Configures this process before JAX initialises its devices.

    Args:
        devices: number of virtual CPU devices; 1 keeps the default platform.
        topology: TPU topology to compile for; "" for none.
    """
    import jax

    start_worker()
    if topology or devices > 1:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    if topology:  # Programs for a topology cannot be loaded back from the cache.
        jax.config.update("jax_compilation_cache_dir", None)
