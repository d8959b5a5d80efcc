"""Runs as a report sees them: read from their directories, nothing else."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from meta_opt.run_log import METRICS, TIMING, read_records, read_starts
from meta_opt.text_files import read_json

RESULT = "result.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """What a finished run left.

    Attributes:
        label: label in tables and figures.
        result: contents of ``result.json``: ``test`` metrics and, if something was
            trained, ``train_seconds``, ``input_seconds``, ``compile_seconds``,
            ``optimizer_bytes``, ``trainable``, ``nonfinite``, and ``validation``, the
            last record of that kind.
        records: records of ``metrics.jsonl``.
        timing: records of ``timing.jsonl``.
        config: the resolved configuration, empty if there is none.
        environment: environment of the last start; empty if there is none.
    """

    label: str
    result: dict[str, Any]
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    timing: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Returns steps and values of the records that have ``metric``."""
        points = [(r["step"], r[metric]) for r in self.records if metric in r]
        return [step for step, _ in points], [value for _, value in points]

    def seconds(self, steps: list[int]) -> list[float]:
        """Returns the seconds of training until each step, NaN where not recorded."""
        known = {
            r["step"]: r["train_seconds"] for r in self.timing if "train_seconds" in r
        }
        return [known.get(step, math.nan if step else 0.0) for step in steps]

    def final(self, metric: str) -> float | None:
        """Returns the last value of ``metric``, or None if there is none.

        Where there are no records, that of ``result.json`` counts.
        """
        values = self.curve(metric)[1]
        return values[-1] if values else self.result.get("validation", {}).get(metric)


def is_finished(workdir: str | Path) -> bool:
    """Whether a run in ``workdir`` has finished."""
    return (Path(workdir) / RESULT).is_file()


def read_run(workdir: str | Path, label: str) -> Run:
    """Reads a finished run.

    Args:
        workdir: directory of the run. Only ``result.json`` is required.
        label: label in tables and figures.

    Raises:
        ValueError: if the run is not finished, or a file is damaged; it is named.
    """
    workdir = Path(workdir)
    if not is_finished(workdir):
        raise ValueError(
            f"the run in {workdir} is not finished ({RESULT} is missing); run it again "
            "to finish it"
        )

    def read(name: str) -> dict[str, Any]:
        path = workdir / name
        return read_json(path) if path.is_file() else {}

    def records(name: str) -> list[dict[str, Any]]:
        return read_records(workdir / name) if (workdir / name).is_file() else []

    return Run(
        label=label,
        result=read(RESULT),
        records=records(METRICS),
        timing=records(TIMING),
        config=read("config.json"),
        environment=(read_starts(workdir) or [{}])[-1],
    )
