"""Start and end of a command that runs in several processes."""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence

import jax

from meta_opt.error_messages import connection_lost, message_of
from meta_opt.interruption import Interrupted
from meta_opt.parallel.processes import start_processes
from meta_opt.parallel.progress import Progress, follow
from meta_opt.parallel.watch import ProcessWatch
from meta_opt.parallel.witness import start_witness


@contextlib.contextmanager
def joined(
    coordinator: str,
    processes: int | None,
    index: int | None,
    timeout_seconds: float,
    handlers: Sequence[logging.Handler],
) -> Iterator[bool]:
    """Connects to the other processes, if there are any, for a ``with`` block.

    Log lines are prefixed with the process index. A process that fails, or is stopped
    by Ctrl-C, exits immediately, without JAX's shutdown barrier, which would wait for
    the others. If a process fails, is killed, or is suspended for longer than
    ``timeout_seconds``, the others exit, too, with a message that names it.

    Args:
        coordinator: ``host:port`` of process 0; see `start_processes`.
        processes: number of processes; None detects it from the environment.
        index: index of this process.
        timeout_seconds: time without heartbeat after which a process counts as lost.
        handlers: handlers of the log; stream handlers write to stderr.

    Yields:
        Whether this is process 0, which prints the output.

    Raises:
        ValueError: processes of the arguments or the environment are not found, or JAX
            finds no device.
    """
    try:
        # JAX ends processes without a message, so the watch has to be faster.
        start_processes(
            coordinator,
            processes,
            index,
            heartbeat_timeout_seconds=round(3 * timeout_seconds) + 1,
        )
        count = jax.process_count()
    except (
        AssertionError
    ):  # Raised by JAX if the plugin of a requested platform is missing.
        raise ValueError(
            "JAX finds no device for JAX_PLATFORMS="
            f"{os.environ.get('JAX_PLATFORMS', '')!r}: install its plugin, or unset it"
        ) from None
    except (ValueError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    if count == 1:
        yield True
        return
    process = jax.process_index()

    def name_process(record: logging.LogRecord) -> bool:
        record.msg = f"[process {process}] {record.msg}"
        return True

    for handler in handlers:
        handler.addFilter(name_process)
    watch = _watched(process, count, timeout_seconds, handlers)
    try:
        yield process == 0
    except Interrupted:  # All processes stop after the same step.
        watch.leave(failed=False)
        raise
    except (Exception, KeyboardInterrupt) as error:
        if connection_lost(error):
            watch.wait_for_verdict()
        stopped = isinstance(error, KeyboardInterrupt)
        if stopped:
            print("stopped", file=sys.stderr)
        elif (message := message_of(error)) is not None:
            print(message, file=sys.stderr)
        else:
            traceback.print_exc()
        print(f"process {process} failed; the others cannot continue", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        watch.leave(failed=True)
        os._exit(130 if stopped else 1)
    watch.leave(failed=False)


def _watched(
    index: int, count: int, seconds: float, handlers: Sequence[logging.Handler]
) -> ProcessWatch:
    """Starts the watch of the other processes and the witness of this one."""
    progress = Progress()
    follow(progress)
    kept = start_witness(progress, index, count, seconds)
    # Python bypasses the witness, since progress bars need a terminal.
    sys.stderr = os.fdopen(kept, "w", buffering=1, errors="backslashreplace")
    for handler in handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    watch = ProcessWatch(index, count, seconds, progress)
    watch.start()
    return watch
