"""The same short run on several numbers of devices: how far the losses differ.

    python -m experiments.devices --config configs/devices.py:nano

Writes a record for each number of devices, and ``devices.md`` and ``devices.json``,
into ``--config.results``. What is measured already is not measured again.
"""

import concurrent.futures
import json
import multiprocessing
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# For configs.common, wherever this is started from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.stored_results import StoredResult
from experiments.worker import start_on_devices
from experiments.workloads import read_run
from meta_opt.types import check_keys, check_name

CONFIG = cli.define_config(partial=True)
WORKDIR = cli.define_workdir("runs/devices", "Folder for compiled programs.")
LOSSES = {"train_loss": "training loss", "validation_loss": "validation loss"}


def measure_run(run: Any) -> dict[str, list[float]]:
    """Runs, and returns the losses of each evaluation.

    Args:
        run: a `meta_opt.finetuning.runs.RunConfig`.
    """
    from meta_opt.finetuning.trial import Trial

    found = Trial(run, test=False)(run.optimizer)
    return {
        "step": [x.step for x in found.evaluations],
        "train_loss": [x.train_loss for x in found.evaluations],
        "validation_loss": [x.validation["loss"] for x in found.evaluations],
    }


def _measure(cell: StoredResult) -> None:
    cell.write(measure_run(read_run(cell.setup["run"])))


def cells(settings: Mapping[str, Any]) -> dict[str, StoredResult]:
    """By case, what is measured and where it is stored."""
    found = {}
    for name, case in settings["cases"].items():
        check_keys(f"config.cases.{name}", case, ("devices", "mesh"))
        run = {**settings["run"], "mesh": case["mesh"]}
        setup = json.loads(json.dumps({"devices": case["devices"], "run": run}))
        found[name] = StoredResult(Path(settings["results"]) / f"{name}.json", setup)
    return found


def largest_difference(
    record: Mapping[str, Any], reference: Mapping[str, Any], loss: str
) -> float:
    """Over the evaluations, the largest relative difference of a loss."""
    pairs = zip(record[loss], reference[loss], strict=True)
    return max(abs(a - b) / abs(b) for a, b in pairs)


def report(settings: Mapping[str, Any], records: Mapping[str, Any]) -> str:
    """Writes the report and returns its table."""
    from meta_opt.reporting.tables import fact_list, write_report

    reference = records[settings["reference"]]
    rows, lines = [], ["| devices | mesh | training loss | validation loss | "]
    lines[0] += "largest relative difference |"
    lines.append("|---:|---|---:|---:|---:|")
    for name, record in records.items():
        case = settings["cases"][name]
        difference = max(largest_difference(record, reference, x) for x in LOSSES)
        mesh = ", ".join(f"{k}={v}" for k, v in case["mesh"].items())
        rows.append({"name": name, **case, "largest_difference": difference})
        rows[-1] |= {x: record[x][-1] for x in LOSSES}
        values = [f"{record[x][-1]:.6f}" for x in LOSSES]
        values.append("-" if record is reference else f"{difference:.1e}")
        lines.append(f"| {case['devices']} | {mesh} | {' | '.join(values)} |")
    facts = {**cli.origin(settings), "steps": settings["run"]["num_steps"]}
    facts["batch size"] = settings["run"]["batch_size"]
    parts = ["# One run on several numbers of devices", "\n".join(lines)]
    parts += [fact_list(facts)]
    write_report(settings["results"], "devices", parts, {"facts": facts, "rows": rows})
    return "\n".join(lines)


def main() -> None:
    """Measures what is not there, each in a process of its own; reports."""
    from tqdm import tqdm

    settings = CONFIG.value.to_dict()
    check_keys("config", settings, ("run", "cases", "reference", "results"))
    check_name("config.reference", settings["reference"], settings["cases"])
    every = cells(settings)
    context = multiprocessing.get_context("spawn")
    for cell in tqdm(every.values(), desc="devices", unit="run", disable=None):
        if cell.stored() is None:
            start = (cell.setup["devices"], "", WORKDIR.value)
            with concurrent.futures.ProcessPoolExecutor(
                1, context, start_on_devices, start
            ) as pool:
                pool.submit(_measure, cell).result()
    print(report(settings, {name: cell.stored() for name, cell in every.items()}))
    print(f"written: {settings['results']}/devices.md, devices.json")


if __name__ == "__main__":
    cli.run(main)
