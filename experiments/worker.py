"""Processes that a command starts to work beside it."""

import os
import signal
import threading
import time
from typing import Any

from experiments import cli


def start_worker(cores: Any, workdir: str) -> None:
    """Pins this process to one core, before JAX counts the cores.

    It ends with the process that started it, however that ends; that one alone answers
    to Ctrl-C.

    Args:
        cores: a queue of numbers of cores; None pins to none.
        workdir: of the command, where compiled programs are kept.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if cores is not None:
        os.sched_setaffinity(0, {cores.get()})
    cli.keep_compiled(workdir, seconds=0.1)


def start_on_devices(devices: int, topology: str, workdir: str) -> None:
    """Sets this process up before JAX looks for devices.

    Args:
        devices: virtual CPU devices; 1 leaves the platform as it is.
        topology: of a TPU that is compiled for; "" for none.
        workdir: of the command, where compiled programs are kept.
    """
    import jax

    start_worker(None, workdir)
    if topology or devices > 1:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    if topology:  # What is compiled for others cannot be read here.
        jax.config.update("jax_compilation_cache_dir", None)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
