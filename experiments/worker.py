"""The worker processes that a command starts."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from meta_opt.parallel.processes import end_with_parent

T = TypeVar("T")


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


def run_in_process(function: Callable[..., T], *args: Any, devices: int = 1) -> T:
    """Calls a function in a new process with ``devices`` CPU devices.

    Raises:
        BrokenProcessPool: the process died, for example for lack of memory.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        1, context, start_on_devices, (devices, "")
    ) as pool:
        return pool.submit(function, *args).result()


@contextlib.contextmanager
def terminated_on_error(
    pool: concurrent.futures.ProcessPoolExecutor,
) -> Iterator[None]:
    """Ends the workers of a pool at once if the ``with`` block raises.

    Leaving the pool's own block would wait for the calls that they have begun.
    """
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
