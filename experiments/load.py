"""Measures long runs, many checkpoints and much data.

    python -m experiments.load --config configs/load.py:smoke
    python -m experiments.load --config configs/load.py:full --only=steps

What is measured is kept in ``config.results`` and not measured again; ``--report``
makes the table of what is there.
"""

import concurrent.futures
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

# For experiments and configs, from whatever folder this is started.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.load_trials import TRIALS
from experiments.stored_results import StoredResult
from experiments.worker import start_on_devices
from meta_opt.types import check_keys, write_atomic

CONFIG = cli.define_config("configs/load.py:full")
ONLY = flags.DEFINE_string("only", "", "Measure those with this in their names.")
REPORT = flags.DEFINE_bool("report", False, "Measure nothing, report what is there.")


def measure_apart(name: str, count: int) -> dict[str, Any]:
    """Measures a trial in a process of its own, on one CPU device."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        1, context, start_on_devices, (1, "")
    ) as pool:
        return pool.submit(TRIALS[name], count).result()


def table(found: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int]) -> str:
    """Markdown of what is measured.

    Args:
        found: by trial.
        counts: of each.
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


def main() -> None:
    """Measures what is not there, reports."""
    config = CONFIG.value.to_dict()
    check_keys("config", config, ("counts", "results"))
    check_keys("config.counts", config["counts"], tuple(TRIALS))
    folder, found = Path(config["results"]), {}
    for name, count in config["counts"].items():
        stored = StoredResult(folder / f"{name}.json", {"trial": name, "count": count})
        if stored.stored() is None and ONLY.value in name and not REPORT.value:
            stored.write(measure_apart(name, count))
        if (record := stored.stored()) is not None:
            found[name] = record
    text = table(found, config["counts"])
    with write_atomic(folder / "load.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    cli.run(main)
