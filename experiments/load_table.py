"""The table of long runs, many checkpoints and large data."""

from collections.abc import Mapping, Sequence
from typing import Any

from meta_opt.markdown import markdown_table


def table(found: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int]) -> str:
    """Returns a Markdown table of the measurements.

    Args:
        found: results by name of the trial.
        counts: count that each trial was run with, by name.
    """
    rows = [_row(name, counts[name], record) for name, record in found.items()]
    head = ("what", "seconds", "memory, MiB", "else")
    return markdown_table(head, rows, numbers=False) + "\n"


def _row(name: str, count: int, record: Mapping[str, Any]) -> tuple[str, ...]:
    what, seconds = f"{count:,} {name}", str(record["seconds"])
    if name == "steps":
        size = {k: f"{n / 2**20:.1f} MiB" for k, n in record["bytes"].items()}
        logs = ", ".join(f"{k} {n}" for k, n in size.items())
        files = _change(record["files"])
        return what, seconds, _change(record["mib"]), f"open files {files}; {logs}"
    if name == "checkpoints":
        kept = ", ".join(map(str, record["kept"]))
        each = _change(record["seconds_each"])
        more = (
            f"{record['entries']} files and folders, of steps {kept}; seconds a save "
            f"{each}"
        )
        return what, f"{seconds} to open and restore", "", more
    reading = (
        f"{seconds} to the first batch, {record['processor_seconds']} of them of the "
        "processor"
    )
    more = f"{record['batch_seconds']} s for a later batch of 64"
    return what, reading, _change(record["mib"]), more


def _change(values: Sequence[float]) -> str:
    return f"{values[0]} -> {values[1]}"
