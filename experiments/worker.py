"""Processes that a command starts to work beside it."""

import os
import signal
import threading
import time
from typing import Any


def start_worker(cores: Any = None) -> None:
    """Pins this process to one core, before JAX counts the cores.

    It ends with the process that started it, however that ends; that one alone answers
    to Ctrl-C.

    Args:
        cores: a queue of numbers of cores; None pins to none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if cores is not None:
        os.sched_setaffinity(0, {cores.get()})
    # JAX, which it imports, counts the cores.
    from meta_opt.compilation_cache import use_compilation_cache

    use_compilation_cache()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
