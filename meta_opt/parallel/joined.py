"""Start-up and end of a command that several processes run together."""

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
    """Joins the other processes, if there are any, for a ``with`` block.

    Lines of the log then begin with the process's index. A process that fails, or is
    stopped by Ctrl-C, ends at once, without JAX's shutdown barrier, which would wait
    for the others to end. Those end too, with a line that names it, and so they do when
    it is killed, or stands still for longer than ``timeout_seconds``.

    Args:
        coordinator: ``host:port`` of process 0; see `start_processes`.
        processes: how many there are; None asks the environment.
        index: of this one.
        timeout_seconds: silence after which a process is gone.
        handlers: of the log; those of a stream write to stderr.

    Yields:
        Whether this is process 0, which prints.

    Raises:
        ValueError: arguments or environment name processes that are not found, or JAX
            finds no device.
    """
    try:
        # JAX ends processes without a word; the watch has to come first.
        start_processes(
            coordinator,
            processes,
            index,
            heartbeat_timeout_seconds=round(3 * timeout_seconds) + 1,
        )
        count = jax.process_count()
    except AssertionError:  # JAX's own, where a platform that is named has no plugin.
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
    except Interrupted:  # All of them stop after the same step.
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
    """Starts what watches the other processes, and what watches this one."""
    progress = Progress()
    follow(progress)
    kept = start_witness(progress, index, count, seconds)
    # Not through the witness: a progress bar asks for a terminal.
    sys.stderr = os.fdopen(kept, "w", buffering=1, errors="backslashreplace")
    for handler in handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    watch = ProcessWatch(index, count, seconds, progress)
    watch.start()
    return watch
