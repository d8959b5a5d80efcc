"""Flags and start-up of an experiment that several processes run together."""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from absl import flags
from absl import logging as absl_logging

from experiments.messages import connection_lost, message_of

# They are in the --help of the commands that take them.
flags.disclaim_key_flags()

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "host:port of process 0. Not needed under SLURM, Open MPI and on Cloud TPU.",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Of how many processes.")
_PROCESS = flags.DEFINE_integer("process", None, "The index of this one, from 0.")
_TIMEOUT = flags.DEFINE_float(
    "process_timeout",
    100.0,
    "Seconds after which a process without a sign of life is gone, and the others end.",
    lower_bound=1.0,
)


@contextlib.contextmanager
def distributed() -> Iterator[bool]:
    """Joins the other processes, if there are any, for a ``with`` block.

    Lines of the log then begin with the process's index. A process that fails ends at
    once, without JAX's shutdown barrier, which would wait for the others to end. Those
    end too, with a line that names it, and so they do when it is killed, or stopped for
    longer than ``--process_timeout``.

    Yields:
        Whether this is process 0, which prints.

    Raises:
        SystemExit: if flags or environment name processes that are not to be found, or
            JAX finds no device.
    """
    import jax

    from meta_opt.interruption import Interrupted
    from meta_opt.parallel.processes import start_processes

    given = _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
    try:
        # JAX ends processes without a word; the watch has to come first.
        start_processes(*given, heartbeat_timeout_seconds=round(3 * _TIMEOUT.value) + 1)
        count = jax.process_count()
    except AssertionError:  # JAX's own, where a platform that is named has no plugin.
        sys.exit(
            f"start-up: JAX finds no device for JAX_PLATFORMS="
            f"{os.environ.get('JAX_PLATFORMS', '')!r}: install its plugin, or unset it"
        )
    except (ValueError, RuntimeError) as error:
        sys.exit(f"start-up: {error}")
    if count == 1:
        yield True
        return
    index = jax.process_index()

    def name_process(record: logging.LogRecord) -> bool:
        record.msg = f"[process {index}] {record.msg}"
        return True

    absl_logging.get_absl_handler().addFilter(name_process)
    watch = _watched(index, count)
    try:
        yield index == 0
    except Interrupted:  # All of them stop after the same step.
        watch.leave(failed=False)
        raise
    except Exception as error:
        if connection_lost(error):
            watch.wait_for_verdict()
        if (message := message_of(error)) is not None:
            print(message, file=sys.stderr)
        else:
            traceback.print_exc()
        print(f"process {index} failed; the others cannot go on", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        watch.leave(failed=True)
        os._exit(1)
    watch.leave(failed=False)


def _watched(index: int, count: int) -> Any:
    """Starts what watches the other processes, and what watches this one."""
    from meta_opt.parallel.progress import Progress, follow
    from meta_opt.parallel.watch import ProcessWatch
    from meta_opt.parallel.witness import start_witness

    progress, seconds = Progress(), _TIMEOUT.value
    follow(progress)
    kept = start_witness(progress, index, count, seconds)
    # Not through the witness: a progress bar asks for a terminal.
    sys.stderr = os.fdopen(kept, "w", buffering=1, errors="backslashreplace")
    absl_logging.get_absl_handler().python_handler.setStream(sys.stderr)
    watch = ProcessWatch(index, count, seconds, progress)
    watch.start()
    return watch
