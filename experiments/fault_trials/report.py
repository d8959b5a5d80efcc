"""The table of faults, from the results of its cells."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.fault_trials.cells import FaultCell
from meta_opt.text_files import write_json
from meta_opt.types import write_atomic

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
    lines = [
        f"{len(found)} of {len(cells)} cells measured, by `{command}`.",
        "",
        "| kind of run | kills | "
        + " | ".join(_STAGES)
        + " | finished runs | differ |",
        "|---|" + "---|" * (len(_STAGES) + 3),
        *(
            f"| {kind} | {row['kills']} | "
            + " | ".join(str(row[stage]) for stage in _STAGES)
            + f" | {row['runs']} | {row['differing']} |"
            for kind, row in kills.items()
        ),
        "",
        "| fault | outcome | what is said | differs |",
        "|---|---|---|---|",
        *(_line(x) for x in others),
        "",
        "| of four processes | the others end after | what they say | "
        "then | metrics differ by | differ |",
        "|---|---|---|---|---|---|",
        *(_line_of_processes(x) for x in processes),
    ]
    text = "\n".join(lines) + "\n"
    folder = Path(folder)
    write_json(folder / "faults.json", {"kills": kills, "cells": found}, indent=1)
    with write_atomic(folder / "faults.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
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


def _line(record: Mapping[str, Any]) -> str:
    name = record["name"].rpartition("/")[2].replace("_", " ")
    if "tried" in record:
        went = ", ".join(f"{n} times {x}" for x, n in record["restored"].items())
        outcome = f"{record['tried']} damages of {record['files']} files: {went}"
        return f"| {name} | {outcome} | | {len(record['wrong'])} |"
    said = record["said"].replace("|", "\\|") or "nothing"
    resumed = record.get("resumed")
    then = f"; then {resumed}" if resumed else ""
    then = f", with tracebacks{then}" if record.get("traceback") else then
    return (
        f"| {name} | {record['outcome']}, exit code {record['code']}{then} | {said} | "
        f"{len(record['differing'])} |"
    )


def _line_of_processes(record: Mapping[str, Any]) -> str:
    what = f"process {record['process']} gets {record['signal']} at step"
    codes = ", ".join(map(str, record["codes"]))
    said = "; ".join(record["said"])
    if record["woken"]:
        said += f" -- the stopped one, woken: {record['woken']}"
    tracebacks = ", with tracebacks" * record["traceback"]
    return (
        f"| {what} {record['step']} | {record['seconds']} s, exit codes {codes}"
        f"{tracebacks} | {said} | {record['then']} processes go on from step "
        f"{record['resumed']} | {record['difference']:.1e} | "
        f"{len(record['differing'])} |"
    )
