"""The table of long runs, many checkpoints and large data."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(found: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int]) -> str:
    """Returns a Markdown table of the measurements.

    Args:
        found: results by name of the trial.
        counts: count that each trial was run with, by name.
    """
    rows = [
        *("| what | seconds | memory, MiB | else |", "|---|---|---|---|"),
        *(_row(name, counts[name], record) for name, record in found.items()),
    ]
    return "\n".join(rows) + "\n"


def _row(name: str, count: int, record: Mapping[str, Any]) -> str:
    what = f"| {count:,} {name} | {record['seconds']}"
    if name == "steps":
        size = {k: f"{n / 2**20:.1f} MiB" for k, n in record["bytes"].items()}
        logs = ", ".join(f"{k} {n}" for k, n in size.items())
        files = _change(record["files"])
        return f"{what} | {_change(record['mib'])} | open files {files}; {logs} |"
    if name == "checkpoints":
        kept = ", ".join(map(str, record["kept"]))
        each = _change(record["seconds_each"])
        return (
            f"{what} to open and restore | | {record['entries']} files and folders, of "
            f"steps {kept}; seconds a save {each} |"
        )
    return (
        f"{what} to the first batch, {record['processor_seconds']} of them of the "
        f"processor | {_change(record['mib'])} | {record['batch_seconds']} s for a "
        "later batch of 64 |"
    )


def _change(values: Sequence[float]) -> str:
    return f"{values[0]} -> {values[1]}"
