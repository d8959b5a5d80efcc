"""What every command shares: flags, log level, processes, errors and interruption."""

import contextlib
import logging
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from experiments.late_settings import set_late, split_late
from meta_opt.error_messages import message_of
from meta_opt.types import near_match

_ARGUMENTS = tuple(sys.argv[1:])
_LEFT_OUT = ("workdir", "storage", "shared", "lease_seconds")
"""Flags that say nothing about a result; ``--storage`` may have a password."""
_CONFIG: dict[str, Any] = {"default": None, "partial": False}
"""Of the flag ``--config`` as `define_config` defined it."""
# The commands' own flags are in their --help.
flags.disclaim_key_flags()


def define_config(default: str | None = None, *, partial: bool = False) -> Any:
    """Defines ``--config``; without a default it is required.

    Args:
        default: a config file of this repository, such as ``configs/demo.py``.
        partial: whether the file states only what differs from the dataclasses'
            defaults. The command line may then set what the file does not, and the
            dataclasses check names and types.
    """
    if "config" in flags.FLAGS:  # Of another command in this process.
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


def command_line() -> str:
    """Returns the command that is running, as a reader of a report would give it again.

    What names a folder or a server of the one who ran it, and how the work was shared,
    is left out.
    """
    module = Path(sys.argv[0]).stem
    kept, skip = [], False
    for argument in _ARGUMENTS:
        if skip:
            skip = False
            continue
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and name in _LEFT_OUT:
            skip = "=" not in argument and name != "shared"
            continue
        kept.append(argument)
    return " ".join([f"python -m experiments.{module}", *kept])


def report_facts(settings: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """How a report was made.

    Args:
        settings: settings of the command, JSON values.
        **more: further facts; ``seeds`` are listed.

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
    """SIGTERM where no run catches it, which has more to save."""


def _raise_terminated(signum: int, frame: Any) -> None:
    raise _Terminated


def without_orbax_tracebacks(record: logging.LogRecord) -> bool:
    """Whether a record is to be shown: not what Orbax's threads log of a failed save.

    The error comes up in the main thread, too, which says it in one line.
    """
    return not (record.exc_info and "/orbax/" in record.pathname)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses, as absl does; a mistake ends the command with one line."""
    try:
        positional = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            # A file that is not there raises here, when it is first asked for anything.
            flags.FLAGS["config"].value.to_dict()
        return positional
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        message = f"no flag --{name}{near_match(name, flags.FLAGS)} (--help lists them)"
    except (AttributeError, KeyError) as error:
        # Of ml_collections: no such setting, or no such section above it.
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
        if len(lines) > 1:  # With a traceback into the config file.
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
    """Parses the flags and runs ``main``; what is not its fault ends it with one line.

    That is a user's mistake, a full disk, a folder that cannot be written to, or too
    little memory.

    An interrupted run ends with the signal's exit code and says how to resume.

    Args:
        main: gets the positional arguments, if there may be any.
        log_level: log level of the package.
        processes: whether several processes may run this together: flags or the
            environment then name them, and ``main`` gets whether this is process 0,
            which prints.
        arguments: whether there may be positional arguments.
        prepare: called before the processes of the run find each other.
    """
    start: Callable[[], Any] = contextlib.nullcontext
    if processes:
        # It defines flags.
        from experiments.processes import distributed

        start = distributed

    # Read by ml_collections too.
    sys.argv, late = split_late(sys.argv, _CONFIG["default"], _CONFIG["partial"])

    def body(argv: Sequence[str]) -> None:
        if len(argv) > 1 and not arguments:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        # Orbax logs every file that it writes.
        absl_logging.set_verbosity(absl_logging.WARNING)
        absl_logging.get_absl_handler().addFilter(without_orbax_tracebacks)
        logging.getLogger("meta_opt").setLevel(log_level)
        # Imported late so that --help does not wait for JAX.
        from meta_opt.interruption import Interrupted

        name = Path(sys.argv[0]).stem
        if not processes:
            # Of several processes one may wait for another that has died, where
            # Python handles no signal; there SIGTERM still ends it.
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
