"""Command-line handling: flags, log level, processes, errors and interruption."""

import contextlib
import logging
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from experiments.late_settings import set_late, split_late
from meta_opt.error_messages import message_of
from meta_opt.types import near_match

_ARGUMENTS = tuple(sys.argv[1:])
_LEFT_OUT = ("workdir", "storage", "lease_seconds", "only")
_LEFT_OUT_SWITCHES = ("shared", "report_only")
"""Flags that do not affect results, and so are left out of reports. ``--storage`` may
contain a password."""
_CONFIG: dict[str, Any] = {"default": None, "partial": False}
"""Arguments of the last call of `define_config`."""
# --help of a command then lists only the flags that its own module defines.
flags.disclaim_key_flags()


def define_config(default: str | None = None, *, partial: bool = False) -> Any:
    """Defines ``--config``; without a default it is required.

    Args:
        default: a config file of this repository, such as ``configs/demo.py``.
        partial: whether the file contains only settings that differ from the
            dataclasses' defaults. The command line may then add settings that the file
            lacks, and the dataclasses check names and types.
    """
    if "config" in flags.FLAGS:  # Defined by another command in this process.
        return flags.FLAGS["config"]
    root = Path(__file__).resolve().parents[1]
    _CONFIG.update(default=default and str(root / default), partial=partial)
    holder = config_flags.DEFINE_config_file(
        "config",
        _CONFIG["default"],
        "file.py:variant",
        lock_config=not partial,
        accept_new_attributes=partial,
    )
    if default is None:
        flags.mark_flag_as_required("config")
    return holder


def define_workdir(default: str | None, text: str) -> Any:
    """Defines ``--workdir``; without a default it is required."""
    if "workdir" in flags.FLAGS:
        return flags.FLAGS["workdir"]
    holder = flags.DEFINE_string("workdir", default, text)
    if default is None:
        flags.mark_flag_as_required("workdir")
    return holder


def define_only(things: str = "cells") -> Callable[[Iterable[str]], set[str]]:
    """Defines ``--only``; returns `names_containing` for its values.

    Args:
        things: what has the names, for the help text.
    """
    if "only" not in flags.FLAGS:
        flags.DEFINE_multi_string(
            "only",
            [],
            f"Measure only {things} whose name contains this. May be repeated.",
        )
    return lambda names: names_containing(names, flags.FLAGS["only"].value)


def names_containing(names: Iterable[str], parts: Sequence[str]) -> set[str]:
    """Returns the names that contain one of ``parts``; all names without parts.

    Raises:
        ValueError: no name contains one of the parts.

    >>> sorted(names_containing(["table1, adam", "table1, lion", "faults"], ["table1"]))
    ['table1, adam', 'table1, lion']
    """
    every = list(names)
    for part in parts:
        if not any(part in name for name in every):
            near = near_match(part, every)
            raise ValueError(f"--only={part}: none of {len(every)} names has it{near}")
    return {name for name in every if any(part in name for part in parts or [""])}


def define_report_only() -> Any:
    """Defines ``--report_only``."""
    if "report_only" in flags.FLAGS:
        return flags.FLAGS["report_only"]
    return flags.DEFINE_bool("report_only", False, "Only report stored results.")


def command_line() -> str:
    """Returns the running command as a reader of its report would repeat it.

    Flags for local folders, servers, work sharing and parts of the work are left out.
    """
    module = Path(sys.argv[0]).stem
    kept, skip = [], False
    for argument in _ARGUMENTS:
        if skip:
            skip = False
            continue
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and name in (*_LEFT_OUT, *_LEFT_OUT_SWITCHES):
            skip = "=" not in argument and name in _LEFT_OUT
            continue
        kept.append(argument)
    return " ".join([f"python -m experiments.{module}", *kept])


def report_facts(settings: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Returns the facts of a report: how its results were made.

    Args:
        settings: settings of the command, JSON values.
        **more: further facts; ``seeds`` are joined to a string.

    Returns:
        The command, ``more``, the configuration's digest and the revision.
    """
    from meta_opt.provenance import provenance

    if "seeds" in more:
        more["seeds"] = ", ".join(map(str, more["seeds"]))
    found = provenance(settings)
    return {
        "command": command_line(),
        **more,
        "config": found["digest"],
        "revision": found["environment"]["git"],
    }


class _Terminated(BaseException):
    """Raised on SIGTERM, unless a run handles the signal in order to save first."""


def _raise_terminated(signum: int, frame: Any) -> None:
    raise _Terminated


def without_orbax_tracebacks(record: logging.LogRecord) -> bool:
    """Log filter that hides the tracebacks of Orbax's threads after a failed save.

    The main thread raises the error too, and reports it in one line.
    """
    return not (record.exc_info and "/orbax/" in record.pathname)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags as absl does; on an error, exits with a message of one line."""
    try:
        positional = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            # The config file is read on first use: a missing file raises here.
            flags.FLAGS["config"].value.to_dict()
        return positional
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        message = f"no flag --{name}{near_match(name, flags.FLAGS)} (--help lists them)"
    except (AttributeError, KeyError) as error:
        # Raised by ml_collections for an unknown setting or section.
        key, *near = str(error.args[0]).splitlines()
        key = key.strip("'\"")
        given = (a.partition("=")[0] for a in argv if a.startswith("--config."))
        flag = next((f for f in given if key in f.split(".")), "--config")
        message = ". ".join([f"{flag}: no setting {key!r}", *near])
    except OSError as error:
        message = f"--config: {str(error).strip().splitlines()[-1].strip()}"
    except (flags.Error, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = lines[0].partition(": Error whilst parsing")[0]
        if section := re.match(r"flag (--\S+?)=.* as a ConfigDict", message):
            message = f"{section[1]} is a section; set one of its settings, "
            message += f"{section[1]}.NAME=VALUE"
        if len(lines) > 1:  # The last line is the error in the config file.
            message += f": {lines[-1].removeprefix('ValueError: ')}"
    sys.exit(f"{Path(sys.argv[0]).stem}: {message}")


def run(
    main: Callable[..., None],
    *,
    log_level: int = logging.WARNING,
    processes: bool = False,
    arguments: bool = False,
    prepare: Callable[[], None] | None = None,
) -> None:
    """Parses the flags and runs ``main``.

    Errors that are not bugs exit with a message of one line: a user's mistake, a full
    disk, a folder that is not writable, or too little memory. An interrupted run exits
    with the signal's exit code and a message about how to resume.

    Args:
        main: the command. It receives the positional arguments, if ``arguments`` is
            set, and first whether this is process 0, if ``processes`` is set.
        log_level: log level of the package.
        processes: whether several processes may run the command together. Flags or the
            environment name them; process 0 should print.
        arguments: whether positional arguments are allowed.
        prepare: called before the processes connect.
    """
    start: Callable[[], Any] = contextlib.nullcontext
    if processes:
        # Imported only here because it defines flags.
        from experiments.processes import distributed

        start = distributed

    # ml_collections reads sys.argv too.
    sys.argv, late = split_late(sys.argv, _CONFIG["default"], _CONFIG["partial"])

    def body(argv: Sequence[str]) -> None:
        if len(argv) > 1 and not arguments:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        # Orbax logs every file that it writes, at level INFO.
        absl_logging.set_verbosity(absl_logging.WARNING)
        absl_logging.get_absl_handler().addFilter(without_orbax_tracebacks)
        logging.getLogger("meta_opt").setLevel(log_level)
        # Imported late so that --help does not wait for JAX.
        from meta_opt.interruption import Interrupted

        name = Path(sys.argv[0]).stem
        if not processes:
            # Not with several processes: one may wait in a collective for a process
            # that has died, where no Python handler runs but the default action of
            # SIGTERM still ends it.
            signal.signal(signal.SIGTERM, _raise_terminated)
        try:
            if late:
                set_late(flags.FLAGS["config"].value, late)
            if prepare is not None:
                prepare()
            with start() as first:
                main(*((first,) if processes else ()), *argv[1:])
        except Interrupted as interrupted:
            message = f"stopped by {interrupted}; the same command resumes it"
            print(message, file=sys.stderr)
            sys.exit(interrupted.exit_code)
        except KeyboardInterrupt:
            print("stopped; the same command resumes it", file=sys.stderr)
            sys.exit(130)
        except _Terminated:
            print("stopped by SIGTERM; the same command resumes it", file=sys.stderr)
            sys.exit(128 + signal.SIGTERM)
        except Exception as error:
            message = message_of(error)
            if message is None:
                raise
            sys.exit(f"{name}: {message}")

    app.run(body, flags_parser=_parse_flags)
