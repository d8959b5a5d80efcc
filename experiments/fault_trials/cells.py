"""The cells of the table of faults: the trials and where their results are stored."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.fault_trials.commands import Starter
from experiments.fault_trials.damage import DAMAGES, damaged_checkpoints, damaged_run
from experiments.fault_trials.kills import Place, killed_runs
from experiments.fault_trials.kinds import KINDS
from experiments.fault_trials.processes import TRIALS, lost_process
from experiments.fault_trials.surroundings import FAULTS
from experiments.stored_results import StoredResult
from meta_opt.parallel.workdir import hold_workdir
from meta_opt.types import check_keys, check_name

EACH_FILE = "each_file"
"""Damage trial that covers every file of a small checkpoint, without a run."""

_SETTINGS = ("kinds", "trials", "kills", "damages", "faults", "processes", "results")


@dataclasses.dataclass(frozen=True, eq=False)
class FaultCell(StoredResult):
    """One trial.

    Attributes:
        name: name of the trial, such as ``kills/meltr/3``.
        measure: runs the trial and returns its result.
    """

    name: str
    measure: Callable[[Place], dict[str, Any]]


def cells(config: Mapping[str, Any]) -> list[FaultCell]:
    """Returns all cells of a configuration, in the order in which they are measured.

    Raises:
        ValueError: an unknown setting or name.
    """
    check_keys("config", config, _SETTINGS)
    found: dict[str, Callable[[Place], dict[str, Any]]] = {}
    # The first trial of every kind comes before the second of any.
    for number in range(config["trials"]):
        for kind in config["kinds"]:
            check_name("config.kinds", kind, KINDS)
            found[f"kills/{kind}/{number}"] = functools.partial(
                killed_runs, kind=kind, number=number, kills=config["kills"]
            )
        if number:
            continue
        for damage in config["damages"]:
            check_name("config.damages", damage, (EACH_FILE, *DAMAGES))
            found[f"damage/{damage}"] = (
                damaged_checkpoints
                if damage == EACH_FILE
                else functools.partial(damaged_run, damage=damage)
            )
        for fault in config["faults"]:
            check_name("config.faults", fault, FAULTS)
            found[f"faults/{fault}"] = FAULTS[fault]
        for trial in config["processes"]:
            check_name("config.processes", trial, TRIALS)
            found[f"processes/{trial}"] = functools.partial(lost_process, name=trial)
    folder = Path(config["results"]) / "cells"
    return [
        FaultCell(
            folder / f"{name.replace('/', '-')}.json",
            {"cell": name, **({"kills": config["kills"]} if "kills/" in name else {})},
            *(name, measure),
        )
        for name, measure in found.items()
    ]


@contextlib.contextmanager
def open_place(workdir: str) -> Iterator[Place]:
    """Yields a locked folder for trials with a starter of commands."""
    root = Path(workdir).absolute()
    with hold_workdir(root):
        starter = Starter(
            {
                "JAX_PLATFORMS": "cpu",
                # The trials are about restarts, so compiled programs are shared.
                "JAX_COMPILATION_CACHE_DIR": str(root / "shared" / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
        )
        try:
            yield Place(root, starter)
        finally:
            starter.close()
