"""Processes that a command starts to work beside it."""

import os
import signal
from typing import Any

from experiments import cli
from meta_opt.parallel.processes import end_with_parent


def start_worker(cores: Any, workdir: str) -> None:
    """Pins this process to one core, before JAX counts the cores.

    It ends with the process that started it, however that ends; that one alone answers
    to Ctrl-C.

    Args:
        cores: a queue of numbers of cores; None pins to none.
        workdir: of the command, where compiled programs are kept.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if cores is not None:
        os.sched_setaffinity(0, {cores.get()})
    cli.keep_compiled(workdir, seconds=0.1)
