"""The table of faults, from the results of its cells."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.fault_trials.cells import FaultCell
from meta_opt.markdown import markdown_table
from meta_opt.text_files import write_json, write_text

_STAGES = ("starting", "running", "writing", "ending")


def write_faults(folder: str | Path, cells: Sequence[FaultCell], command: str) -> str:
    """Writes ``faults.json`` and ``faults.md``.

    Args:
        folder: folder of the report.
        cells: all cells; only measured ones are reported.
        command: command line that makes the report.

    Returns:
        The Markdown of the tables.
    """
    found = [x for cell in cells if (x := cell.stored()) is not None]
    kills = _of_kills(found)
    processes = [x for x in found if x["name"].startswith("processes/")]
    others = [x for x in found if x["name"].partition("/")[0] in ("damage", "faults")]
    counted = ("kills", *_STAGES, "runs", "differing")
    parts = [
        f"{len(found)} of {len(cells)} cells measured, by `{command}`.",
        markdown_table(
            ("kind of run", "kills", *_STAGES, "finished runs", "differ"),
            [(kind, *(str(row[x]) for x in counted)) for kind, row in kills.items()],
            numbers=False,
        ),
        markdown_table(
            ("fault", "outcome", "what is said", "differs"),
            map(_fault_row, others),
            numbers=False,
        ),
        markdown_table(
            (
                *("of four processes", "the others end after", "what they say", "then"),
                *("metrics differ by", "differ"),
            ),
            map(_processes_row, processes),
            numbers=False,
        ),
    ]
    text = "\n\n".join(parts) + "\n"
    folder = Path(folder)
    write_json(folder / "faults.json", {"kills": kills, "cells": found}, indent=1)
    write_text(folder / "faults.md", text)
    return text


def _of_kills(found: Sequence[Mapping[str, Any]]) -> dict[str, collections.Counter]:
    """Returns counts by kind: kills, kills in each stage, runs and differences."""
    sums: dict[str, collections.Counter] = {}
    for record in found:
        part, kind, *_ = record["name"].split("/")
        if part != "kills":
            continue
        row = sums.setdefault(kind, collections.Counter())
        row["kills"] += len(record["kills"])
        row.update(kill["stage"] for kill in record["kills"])
        row["runs"] += record["runs"]
        row["differing"] += len(record["differing"])
    return sums


def _fault_row(record: Mapping[str, Any]) -> tuple[str, ...]:
    name = record["name"].rpartition("/")[2].replace("_", " ")
    if "tried" in record:
        went = ", ".join(f"{n} times {x}" for x, n in record["restored"].items())
        outcome = f"{record['tried']} damages of {record['files']} files: {went}"
        return name, outcome, "", str(len(record["wrong"]))
    said = record["said"].replace("|", "\\|") or "nothing"
    resumed = record.get("resumed")
    then = f"; then {resumed}" if resumed else ""
    then = f", with tracebacks{then}" if record.get("traceback") else then
    outcome = f"{record['outcome']}, exit code {record['code']}{then}"
    return name, outcome, said, str(len(record["differing"]))


def _processes_row(record: Mapping[str, Any]) -> tuple[str, ...]:
    what = f"process {record['process']} gets {record['signal']} at step"
    codes = ", ".join(map(str, record["codes"]))
    said = "; ".join(record["said"])
    if record["woken"]:
        said += f" -- the stopped one, woken: {record['woken']}"
    tracebacks = ", with tracebacks" * record["traceback"]
    return (
        f"{what} {record['step']}",
        f"{record['seconds']} s, exit codes {codes}{tracebacks}",
        said,
        f"{record['then']} processes go on from step {record['resumed']}",
        f"{record['difference']:.1e}",
        str(len(record["differing"])),
    )
