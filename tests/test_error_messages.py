"""What a command says of errors that are not its own."""

import errno
import logging
import os

import pytest

from experiments import cli
from meta_opt.error_messages import message_of


@pytest.mark.parametrize(
    "error, said",
    [
        (ValueError("no such task"), "no such task"),
        (FileNotFoundError("there is no file x"), "there is no file x"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "No space left on device: free some space; rerun the same command to "
            "resume",
        ),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), "runs/a/.lock"),
            "Read-only file system (runs/a/.lock): make it writable, or use another "
            "--workdir; rerun the same command to resume",
        ),
        (MemoryError(), "out of memory; lower the batch size, or give the command "),
    ],
)
def test_one_line_says_what_is_wrong_and_what_to_do(error, said):
    message = message_of(error)
    assert message.startswith(said) and "\n" not in message


def test_a_defect_keeps_its_traceback():
    assert message_of(TypeError("x")) is None
    assert message_of(ZeroDivisionError()) is None


def test_a_command_ends_with_that_line(monkeypatch):
    def main():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x")

    # absl would parse this process's arguments.
    monkeypatch.setattr(cli.app, "run", lambda body, flags_parser: body(["x"]))
    with pytest.raises(SystemExit, match=r": No space left on device \(runs/x\)"):
        cli.run(main)


def test_tracebacks_of_orbax_are_not_shown():
    """Its threads log what a failed save raises, which the command says in one line."""
    place = "/site-packages/orbax/checkpoint/futures/future.py"
    error = (ValueError, ValueError("x"), None)

    def record(path, info):
        return logging.LogRecord("absl", logging.ERROR, path, 1, "failed", (), info)

    assert not cli.without_orbax_tracebacks(record(place, error))
    assert cli.without_orbax_tracebacks(record(place, None))
    assert cli.without_orbax_tracebacks(record("meta_opt/checkpoints.py", error))
