"""A cell of a table: one optimizer on a variant of a task, tuned and run."""

import dataclasses
import functools
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks.timing import medians
from experiments.stored_results import StoredResult
from experiments.workloads import read_run
from meta_opt.leases import EXPIRY_SECONDS, Lease
from meta_opt.optimizers.weights import weights_digest
from meta_opt.text_files import plain_json
from meta_opt.types import from_config

FORMAT = 1
STEPS = "steps"
"""Stands in for an optimizer in the cell that times a step of every optimizer."""


@dataclasses.dataclass(frozen=True, eq=False)
class Cell(StoredResult):
    """One optimizer on a variant of a task, and its stored result.

    Attributes:
        task: name of the task.
        variant: name of the variant, such as which parameters are trained.
        optimizer: name of the optimizer, or `STEPS`.
        workdir: folder of the hyperparameter searches.
    """

    task: str
    variant: str
    optimizer: str
    workdir: Path

    @property
    def name(self) -> str:
        """Name for progress bars and messages."""
        return f"{self.task}, {self.variant}, {self.optimizer}"


def cells(config: Mapping[str, Any], workdir: Path) -> list[Cell]:
    """Returns all cells of a table, in the order in which they are measured."""
    found: list[tuple[str, str, str, dict[str, Any]]] = []
    timed_weights = name_and_digest(config["timed_weights"])
    for task, base in config["tasks"].items():
        for variant, changes in config["variants"].items():
            run = _run_config(task, base, changes).settings()
            weights = name_and_digest(run["optimizer"]["weights"])
            run = deciding(run)
            for optimizer in config["optimizers"]:
                setup: dict[str, Any] = {"run": run, "seeds": list(config["seeds"])}
                if optimizer == "learned":
                    setup["budgets"] = list(config["budgets"])
                    setup["weights"] = weights
                else:
                    setup["tuning_seed"] = config["tuning_seed"]
                    setup["search"] = dict(config["search"])
                found.append((task, variant, optimizer, setup))
            if not config["timing_rounds"]:
                continue
            timed = {
                "run": run,
                "rounds": config["timing_rounds"],
                "optimizers": list(config["optimizers"]),
                "weights": timed_weights,
            }
            found.append((task, variant, STEPS, timed))
    folder = Path(config["results"])
    return [
        Cell(
            folder / task / variant / f"{optimizer}.json",
            plain_json(setup),
            *(task, variant, optimizer, workdir),
        )
        for task, variant, optimizer, setup in found
    ]


def name_and_digest(weights: str) -> list[str]:
    """Returns weights as a cell's setup has them: their name and `weights_digest`."""
    return [weights, weights_digest(weights)]


def _run_config(task: str, base: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    return read_run(_merged(base, changes), f"config.tasks.{task}")


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with changes merged in, section by section.

    >>> _merged({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    both = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = _merged(both[key], value) if nested else value
    return both


def deciding(run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run that its outcome depends on.

    Left out are paths, the number of unreadable files that is allowed, the optimizer's
    settings (a cell has its own), and sections that are None or 0, that is, switched
    off. A readout that is switched off is left out too, because the first cells were
    measured before models had one.
    """
    idle = ("data_dir", "feature_cache_dir", "max_unreadable")
    kept = {
        name: {
            k: v
            for k, v in part.items()
            if k not in idle and (k, v) != ("readout", False)
        }
        if isinstance(part, Mapping)
        else part
        for name, part in run.items()
        if name != "export" and part not in (None, 0)
    }
    kept["optimizer"] = {k: run["optimizer"][k] for k in ("num_steps", "stacked")}
    return kept


@functools.lru_cache(maxsize=1)
def _trial(task: str, base: str, changes: str) -> Any:
    """Returns run configuration and trial of a task; the last task is cached."""
    from meta_opt.finetuning.trial import Trial
    from meta_opt.tuning.injected import injected

    config = _run_config(task, json.loads(base), json.loads(changes))
    return config, Trial(config, injected)


def measure(
    cell: Cell,
    base: dict[str, Any],
    changes: dict[str, Any],
    lease: Lease | None = None,
) -> None:
    """Measures a cell and writes its result.

    Args:
        cell: the cell.
        base: settings of the task's run.
        changes: settings that the variant changes.
        lease: lease on the cell, if several processes share the table.

    Raises:
        Interrupted: on SIGINT or SIGTERM; the study resumes from its last trial.
        LeaseLostError: another process has taken the cell.
    """
    config, trial = _trial(cell.task, json.dumps(base), json.dumps(changes))
    per_epoch = config.loop.eval_every
    if cell.optimizer == STEPS:
        times = _step_times(cell, config, trial)
        _write(cell, {"milliseconds": times}, lease)
        return
    if cell.optimizer == "learned":
        settings, trials, shares = {}, [], cell.setup["budgets"]
    else:
        settings, trials = _tuned(cell, config, trial, lease)
        shares = [1.0]
    runs = [
        _run(cell, config, trial, settings, share, seed)
        for share in shares
        for seed in cell.setup["seeds"]
    ]
    found = {
        "examples": trial.workload.describe()["examples"]["train"],
        "steps_per_epoch": per_epoch,
        "settings": settings,
        "trials": trials,
        "runs": runs,
    }
    _write(cell, found, lease)


def rerun(
    cell: Cell,
    base: dict[str, Any],
    changes: dict[str, Any],
    settings: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Runs at full length with given settings; returns an entry of ``runs``.

    Args:
        cell: the cell.
        base: settings of the task's run.
        changes: settings that the variant changes.
        settings: settings of the optimizer, such as the stored tuned ones.
        seed: random seed of initialisation and batches.
    """
    config, trial = _trial(cell.task, json.dumps(base), json.dumps(changes))
    return _run(cell, config, trial, settings, 1.0, seed)


def _run(
    cell: Cell,
    config: Any,
    trial: Any,
    settings: Mapping[str, Any],
    share: float,
    seed: int,
) -> dict[str, Any]:
    num_steps = max(1, round(share * config.loop.num_steps))
    optimizer = _optimizer(cell.optimizer, config, settings, num_steps)
    found = dataclasses.asdict(trial(optimizer, seed))
    evaluations, per_epoch = found.pop("evaluations"), config.loop.eval_every
    # The last epoch of a short run may be a fraction.
    epochs = [{"epoch": e.pop("step") / per_epoch, **e} for e in evaluations]
    return {"budget": share, **found, "epochs": epochs}


def _write(cell: Cell, found: Mapping[str, Any], lease: Lease | None) -> None:
    cell.write(
        {
            "format": FORMAT,
            "task": cell.task,
            "variant": cell.variant,
            "optimizer": cell.optimizer,
            "setup": cell.setup,
            **found,
        },
        lease,
    )


def _step_times(cell: Cell, config: Any, trial: Any) -> dict[str, float]:
    """Returns the median milliseconds of each optimizer's step, timed in turns."""
    weights, _ = cell.setup["weights"]
    settings = {"weights": weights}
    steppers = {
        name: trial.stepper(_optimizer(name, config, settings, config.loop.num_steps))
        for name in cell.setup["optimizers"]
    }
    return medians(steppers, cell.setup["rounds"])


def _optimizer(
    name: str, config: Any, settings: Mapping[str, Any], num_steps: int
) -> Any:
    return dataclasses.replace(
        config.optimizer, name=name, num_steps=num_steps, **settings
    )


def _tuned(
    cell: Cell, config: Any, trial: Any, lease: Lease | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the settings with the lowest final validation loss, and all trials."""
    from meta_opt.interruption import Interrupted
    from meta_opt.tuning.baseline_spaces import baseline_space
    from meta_opt.tuning.results import describe_trials
    from meta_opt.tuning.search import SearchConfig, search
    from meta_opt.tuning.storage import study_file

    given = dict(cell.setup["search"])
    given["min_resource"] *= config.loop.eval_every
    # Each cell draws its own random trials, so that lucky draws are not shared.
    given["seed"] = (given["seed"] + zlib.crc32(cell.name.encode())) % 4096

    def objective(settings: dict[str, Any], report: Any) -> float:
        num_steps = config.loop.num_steps
        optimizer = _optimizer(cell.optimizer, config, settings, num_steps)
        found = trial(optimizer, cell.setup["tuning_seed"], report)
        return found.evaluations[-1].validation["loss"]

    study = search(
        from_config(SearchConfig, given),
        baseline_space(cell.optimizer),
        objective,
        storage=study_file(
            cell.workdir / cell.task / cell.variant / cell.optimizer,
            shared=lease is not None,
        ),
        name=cell.name,
        setup=cell.setup,
        stop_on=(Interrupted,),
        expiry_seconds=EXPIRY_SECONDS if lease is None else lease.expiry_seconds,
    )
    return dict(study.best_params), describe_trials(study)
