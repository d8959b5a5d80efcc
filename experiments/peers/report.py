"""The table of libraries on the same texts, encoder and splits."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.peers.trials import Peer, user_lines
from meta_opt.metrics.geometric_mean import geometric_mean
from meta_opt.metrics.intervals import Interval, interval
from meta_opt.reporting.tables import (
    Cell,
    Row,
    Section,
    Table,
    plus_minus,
    signed,
    to_markdown,
    write_report,
)

Records = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
"""By the peer's name and the task, a record for each seed."""
_COLUMNS = (
    *("accuracy (%)", "over the first row", "macro F1"),
    *("processor seconds", "peak memory (MiB)", "lines"),
)
_NOTES = (
    "All fine-tune the same MiniLM folder (22.7M parameters) on the same training, "
    "validation and test splits. Accuracy of the test split: mean over tasks, 95% "
    "interval over seeds; the difference to the first row has its interval over tasks. "
    "Processor seconds and memory are those of a whole process that imports the "
    "library, reads the files, compiles where it does, trains and predicts: geometric "
    "means over tasks and seeds, memory the largest. Seconds by the clock, which other "
    "work on the machine changes, are in the records only. Lines are those of the "
    "function that does it (`experiments/peers`)."
)


@dataclasses.dataclass(frozen=True)
class PeerRow:
    """A library over all tasks.

    Attributes:
        peer: its name.
        accuracy: percent, mean over tasks, interval over seeds.
        gain: over the first row, points, interval over tasks; None in the first row.
        macro_f1: in [0, 1], mean over tasks.
        processor_seconds: geometric mean.
        peak_mib: the largest.
        lines: of user code.
        by_task: accuracy, percent, mean over seeds.
    """

    peer: str
    accuracy: Interval
    gain: Interval | None
    macro_f1: float
    processor_seconds: float
    peak_mib: int
    lines: int
    by_task: dict[str, float]


def summarise_peers(records: Records, peers: Sequence[Peer]) -> list[PeerRow]:
    """A row for each peer, over the tasks that all measured peers have."""
    measured = [peer for peer in peers if records.get(peer.name)]
    if not measured:
        return []
    common = set.intersection(*(set(records[peer.name]) for peer in measured))
    tasks = [task for task in records[measured[0].name] if task in common]
    rows: list[PeerRow] = []
    for peer in measured if tasks else ():
        of_task = [records[peer.name][task] for task in tasks]
        seeds = min(map(len, of_task))
        accuracy = np.asarray(
            [[100 * r["test"]["accuracy"] for r in of[:seeds]] for of in of_task]
        )
        by_task = dict(zip(tasks, accuracy.mean(1).tolist(), strict=True))
        gain = None
        if rows:
            gain = interval(by_task[task] - rows[0].by_task[task] for task in tasks)
        every = [record for of in of_task for record in of]
        rows.append(
            PeerRow(
                peer.name,
                interval(accuracy.mean(0).tolist()),
                gain,
                float(np.mean([r["test"]["macro_f1"] for r in every])),
                geometric_mean(r["processor_seconds"] for r in every),
                max(r["peak_mib"] for r in every),
                user_lines(peer),
                by_task,
            )
        )
    return rows


def write_peers(
    folder: str | Path, rows: Sequence[PeerRow], command: str, missing: int
) -> str:
    """Writes ``peers.md`` and ``peers.json``; returns the Markdown."""
    parts = [f"`{command}`"]
    if missing:
        parts.append(f"{missing} cells are not measured yet.")
    if rows:
        parts += [to_markdown(_table(rows)), to_markdown(_tasks(rows)), _NOTES]
    values = {"command": command, "rows": [dataclasses.asdict(row) for row in rows]}
    write_report(folder, "peers", parts, values)
    return "\n\n".join(parts)


def _table(rows: Sequence[PeerRow]) -> Table:
    lines = []
    for row in rows:
        texts = (
            plus_minus(row.accuracy),
            signed(row.gain),
            f"{row.macro_f1:.3f}",
            f"{row.processor_seconds:.0f}",
            f"{row.peak_mib}",
            f"{row.lines}",
        )
        lines.append(Row(row.peer, "", tuple(map(Cell, texts))))
    return Table(_COLUMNS, (Section("", tuple(lines)),))


def _tasks(rows: Sequence[PeerRow]) -> Table:
    tasks = tuple(rows[0].by_task)
    lines = tuple(
        Row(row.peer, "", tuple(Cell(f"{row.by_task[task]:.1f}") for task in tasks))
        for row in rows
    )
    return Table(tasks, (Section("", lines),))
