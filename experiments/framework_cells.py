"""A cell of the framework's table: one run of a stage on a task."""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.stored_results import StoredResult
from experiments.table_cells import deciding, name_and_digest
from experiments.workloads import read_run
from meta_opt.leases import Lease, Leases, share
from meta_opt.predictor.presets import Preset, find_preset
from meta_opt.studies.framework.stages import BEST, FIT, PLAIN, READOUT, Stage
from meta_opt.studies.optimizer_table.summary import full_runs
from meta_opt.text_files import plain_json, read_json
from meta_opt.types import from_config

_PICTURE_SIDE = 224
"""Side in pixels of the image files that are written for `meta_opt.fit`."""


@dataclasses.dataclass(frozen=True, eq=False)
class FrameworkCell(StoredResult):
    """A run of one stage on one task with one seed, and its stored result.

    Attributes:
        task: name of the task.
        stage: how the task is fine-tuned.
        seed: random seed of initialisation and the order of examples.
    """

    task: str
    stage: Stage
    seed: int

    @property
    def name(self) -> str:
        """Name for progress bars and messages."""
        return f"{self.task}, {self.stage.name}, seed {self.seed}"

    def run(self) -> Mapping[str, Any] | None:
        """Returns the stored run; None if it is not measured yet."""
        record = self.stored()
        return None if record is None else record["run"]


def table1_runs(
    folder: str | Path, task: str, stage: Stage
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the optimizer settings and full-length runs of a cell of Table 1.

    Args:
        folder: folder with the records of Table 1.
        task: name of the task.
        stage: stage with the cell's optimizer and trained parameters.

    Raises:
        FileNotFoundError: the cell is not measured.
    """
    path = Path(folder) / task / stage.trainable / f"{stage.optimizer}.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: measure it with python -m "
            "experiments.reproduce_tables --config configs/tables.py:table1 "
            f'--only "{task}, {stage.trainable}, {stage.optimizer}"'
        )
    record = read_json(path)
    return record["settings"], full_runs(record)


def framework_cells(
    config: Mapping[str, Any], stages: Sequence[Stage]
) -> dict[tuple[str, str, int], FrameworkCell]:
    """Returns the cells by stage, task and seed, without those of Table 1.

    They are in the order of measurement: all stages and tasks with the first seed come
    first.
    """
    found = {}
    for seed in config["seeds"]:
        for given in stages:
            if given.part == PLAIN:
                continue
            for task, base in config["tasks"].items():
                cell = _cell(config, task, base, given, seed)
                found[given.name, task, seed] = cell
    return found


def _cell(
    config: Mapping[str, Any],
    task: str,
    base: Mapping[str, Any],
    given: Stage,
    seed: int,
) -> FrameworkCell:
    stage = _of_task(given, _kind(base))
    run = _run(stage, base)
    setup: dict[str, Any] = {
        "run": deciding(run.settings()),
        "optimizer": stage.optimizer,
        "part": stage.part,
        "seed": seed,
    }
    learned = stage.optimizer == "learned"
    if learned:
        setup["weights"] = name_and_digest(run.optimizer.weights)
    else:
        setup["settings"], _ = table1_runs(config["table1"], task, stage)
    if stage.part == FIT:
        preset = dataclasses.asdict(find_preset(config["preset"]))
        # Those of the run, which are in the setup with their digest.
        del preset["weights"]
        setup["preset"] = preset
    part = stage.part.replace(" ", "_")
    # Cells of other weights are kept until all are measured.
    optimizer = Path(run.optimizer.weights).name if learned else stage.optimizer
    file = f"{stage.trainable}_{optimizer}_{part}_{seed}.json"
    path = Path(config["results"]) / task / file
    return FrameworkCell(path, plain_json(setup), task, stage, seed)


def measure(
    cell: FrameworkCell, base: Mapping[str, Any], lease: Lease | None = None
) -> None:
    """Measures a cell and writes its result.

    Args:
        cell: the cell.
        base: settings of the task's run.
        lease: lease on the cell, if several processes share the table.

    Raises:
        Interrupted: on SIGINT or SIGTERM.
        LeaseLostError: another process has taken the cell; nothing is written.
    """
    from meta_opt.predictor.plan import METRICS

    run = _run(cell.stage, base)
    if cell.stage.part == FIT:
        weights, _ = cell.setup["weights"]
        preset = from_config(Preset, {**cell.setup["preset"], "weights": weights})
        found = _fitted(run.workload.inputs, preset, cell.seed)
    else:
        found = _trained(cell, run, METRICS[_kind(base)])
    cell.write({"run": {"seed": cell.seed, **found}}, lease)


def measure_all(
    tasks: Mapping[str, Any], missing: Sequence[FrameworkCell], leases: Leases | None
) -> None:
    """Measures cells, except those that other processes measure, with a progress bar.

    Args:
        tasks: settings of each task's run, by name.
        missing: cells to measure.
        leases: leases of the processes that share the work; None without sharing.
    """
    from tqdm import tqdm

    from meta_opt.compilation_cache import use_compilation_cache

    use_compilation_cache()
    with tqdm(total=len(missing), desc="cells", unit="cell") as bar:

        def measure_cell(cell: FrameworkCell, lease: Lease | None) -> None:
            bar.set_postfix_str(cell.name)
            if cell.stored() is None:
                measure(cell, tasks[cell.task], lease)
            bar.update()

        share(missing, lambda cell: cell.lease_name(cell.name), measure_cell, leases)


def _kind(base: Mapping[str, Any]) -> str:
    from meta_opt.data.sources.multimodal import find_task

    return find_task(base["inputs"]["task"]).kind


def _of_task(stage: Stage, kind: str) -> Stage:
    """Returns the stage, without the linear readout if the task does not support it."""
    from meta_opt.workloads.readout import READ_OUT

    if stage.part == READOUT and kind not in READ_OUT:
        return dataclasses.replace(stage, part=BEST)
    return stage


def _run(stage: Stage, base: Mapping[str, Any]) -> Any:
    readout = stage.part == READOUT
    model = {**base["model"], "trainable": stage.trainable, "readout": readout}
    return read_run({**base, "model": model})


def _trained(
    cell: FrameworkCell, run: Any, selection: tuple[str, str]
) -> dict[str, Any]:
    """Trains with the suite's settings and tests the parameters of the best step."""
    from meta_opt.finetuning.early_stopping import EarlyStopping
    from meta_opt.finetuning.trial import Trial
    from meta_opt.tuning.injected import injected

    metric, mode = selection
    # Patience of the whole run: the comparison is about which parameters are tested,
    # so that the run must not be shortened.
    stopping = EarlyStopping(metric, mode, patience=run.loop.num_steps)
    optimizer = dataclasses.replace(
        run.optimizer,
        name=cell.stage.optimizer,
        num_steps=run.loop.num_steps,
        **cell.setup.get("settings", {}),
    )
    one = Trial(run, injected, early_stopping=stopping)(optimizer, cell.seed)
    values = [e.validation[metric] for e in one.evaluations]
    best = one.evaluations[stopping.best(values)]
    return {
        "test": one.test,
        "validation": best.validation,
        "step": best.step,
        "num_steps": one.num_steps,
        "seconds": one.seconds,
    }


def _fitted(inputs: Any, preset: Preset, seed: int) -> dict[str, Any]:
    """Writes the task's samples to files and calls `meta_opt.fit` on them."""
    import meta_opt
    from meta_opt.data.records import SPLITS
    from meta_opt.data.sources.multimodal import find_task, read_split
    from meta_opt.data.sources.sample_writer import write_samples

    task, root = find_task(inputs.task), inputs.data_dir or None
    parts = {
        split: read_split(task, inputs.task, split, root, _PICTURE_SIDE).at_most(
            inputs.max_examples
        )
        for split in SPLITS
    }
    with tempfile.TemporaryDirectory() as folder:
        file = write_samples(parts, folder)
        predictor = meta_opt.fit(
            file, preset=preset, seed=seed, data_dir=inputs.data_dir, progress=False
        )
    record = predictor.record
    chosen = {d.name: d.value for d in predictor.decisions}
    return {
        "test": record.metrics["test"],
        "validation": record.metrics["validation"],
        "step": chosen["best_step"],
        "num_steps": chosen["num_steps"],
        "seconds": record.seconds["training"] - record.seconds["compiling"],
        "seconds_in_all": record.seconds["in_all"],
        "decisions": {
            name: value
            for name, value in chosen.items()
            if isinstance(value, int | float | str)
        },
    }
