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
