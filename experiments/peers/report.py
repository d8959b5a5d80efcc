"""Comparison table of libraries on the same texts, encoder and splits."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.peers.trials import Peer, user_lines
from meta_opt.metrics.geometric_mean import geometric_mean
from meta_opt.reporting.tables import Cell, Section, Table, to_markdown, write_report
from meta_opt.studies.framework.report import stages_table, tasks_table
from meta_opt.studies.framework.summary import Results, StageRow, summarise_stages

_COSTS = ("processor seconds", "peak memory (MiB)", "lines")
_NOTES = (
    "All fine-tune the same encoder (MiniLM for texts, EfficientNet-Lite0 for images) "
    "on the same training, validation and test splits. Accuracy of the test split: "
    "mean over tasks, 95% interval over seeds; the difference to the first row has its "
    "interval over tasks. "
    "Processor seconds and memory are those of a whole process that imports the "
    "library, reads the files, compiles where it does, trains and predicts: geometric "
    "means over tasks and seeds, memory the largest. Seconds by the clock, which other "
    "work on the machine changes, are in the records only. Lines are those of the "
    "function that does it (`experiments/peers`)."
)


@dataclasses.dataclass(frozen=True)
class PeerRow:
    """Results of a library over all tasks.

    Attributes:
        means: accuracy and macro F1; its ``stage`` is the library's name.
        processor_seconds: CPU time of a run, geometric mean over tasks.
        peak_mib: largest peak memory of a run.
        lines: lines of user code.
    """

    means: StageRow
    processor_seconds: float
    peak_mib: int
    lines: int


def summarise_peers(records: Results, peers: Sequence[Peer]) -> list[PeerRow]:
    """Returns a row for each peer, over the tasks that were measured for all of them.

    Args:
        records: records of all seeds, by name of the peer and task.
        peers: peers in the order of the rows.
    """
    by_name = {peer.name: peer for peer in peers}
    rows = []
    for means in summarise_stages({name: records.get(name, {}) for name in by_name}):
        every = [r for task in means.by_task for r in records[means.stage][task]]
        rows.append(
            PeerRow(
                means,
                geometric_mean(r["processor_seconds"] for r in every),
                max(r["peak_mib"] for r in every),
                user_lines(by_name[means.stage]),
            )
        )
    return rows


def write_peers(
    folder: str | Path, rows: Sequence[PeerRow], command: str, missing: int
) -> str:
    """Writes ``peers.md`` and ``peers.json``; returns the Markdown."""
    parts = [f"`{command}`"]
    if missing:
        parts.append(f"{missing} cell(s) not measured yet.")
    if rows:
        tasks = tasks_table([row.means for row in rows])
        parts += [to_markdown(_table(rows)), to_markdown(tasks), _NOTES]
    values = {"command": command, "rows": [dataclasses.asdict(row) for row in rows]}
    write_report(folder, "peers", parts, values)
    return "\n\n".join(parts)


def _table(rows: Sequence[PeerRow]) -> Table:
    table = stages_table([row.means for row in rows])
    lines = []
    for row, line in zip(rows, table.sections[0].rows, strict=True):
        costs = (f"{row.processor_seconds:.0f}", f"{row.peak_mib}", f"{row.lines}")
        cells = (*line.cells, *map(Cell, costs))
        lines.append(dataclasses.replace(line, cells=cells))
    return Table((*table.columns, *_COSTS), (Section("", tuple(lines)),))
