"""What MELTR costs in training throughput, by losses, model, devices and method.

    python -m experiments.meltr_throughput --config configs/meltr_throughput.py:full
    python -m experiments.meltr_throughput --config configs/meltr_throughput.py:smoke

What is measured already, under the same configuration, is not measured again: each cell
is a file below ``--config.results``. TPU topologies need the extra ``tpu``. ``--cells``
measures some of the cells, in its order, and ``--nomeasure`` none.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from absl import flags

# For configs.common, wherever this is started from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.table_cells import start_worker
from meta_opt.text_files import read_json, write_json
from meta_opt.types import check_keys, from_config

CONFIG = cli.define_config()
WORKDIR = cli.define_workdir("runs/meltr_throughput", "Folder for compiled programs.")
ONLY = flags.DEFINE_list("cells", [], "Measure cells with one of these in their names.")
MEASURE = flags.DEFINE_bool("measure", True, "Whether to measure what is not there.")

_KEYS = ("cases", "intervals", "held_out", "results")


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """What is measured, and where it is stored.

    Attributes:
        name: of the cell.
        case: fields of `meta_opt.studies.meltr_throughput.measure.Case`, JSON values.
        path: of its file.
    """

    name: str
    case: dict[str, Any]
    path: Path

    @property
    def place(self) -> tuple[int, str]:
        """Devices and topology, which a process has one of."""
        return self.case["devices"], self.case["topology"]


def digest(case: Mapping[str, Any]) -> str:
    """Of a case's settings: a cell of others is measured again.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1})
    True
    """
    text = json.dumps(case, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stored(path: Path, case: Mapping[str, Any]) -> dict[str, Any] | None:
    """The cell of a case, if it is there and of these settings.

    Raises:
        ValueError: a file that is no cell.
    """
    if not path.is_file():
        return None
    record = read_json(path)
    if "digest" not in record:
        raise ValueError(
            f"{path} is no cell of this study; delete it to measure it again"
        )
    return record if record["digest"] == digest(case) else None


def _start(devices: int, topology: str, workdir: str) -> None:
    """Sets this process up before JAX looks for devices."""
    import jax

    start_worker(None, workdir)
    if topology or devices > 1:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    if topology:  # What is compiled for others cannot be read here.
        jax.config.update("jax_compilation_cache_dir", None)


def _measure(cell: Cell) -> None:
    """Measures a cell and writes it."""
    from experiments.benchmarks.timing import medians
    from meta_opt.run_log import describe_environment
    from meta_opt.studies.meltr_throughput.measure import Case, measure

    found = measure(from_config(Case, cell.case, cell.name), medians)
    write_json(
        cell.path,
        {
            "digest": digest(cell.case),
            "name": cell.name,
            "case": cell.case,
            **found,
            "environment": describe_environment(),
        },
        indent=1,
    )


def measure_all(missing: Sequence[Cell]) -> None:
    """Measures cells one after another, a process for each set of devices."""
    from tqdm import tqdm

    context = multiprocessing.get_context("spawn")
    places = dict.fromkeys(cell.place for cell in missing)
    with tqdm(total=len(missing), desc="cells", unit="cell") as bar:
        for place in places:
            mine = [cell for cell in missing if cell.place == place]
            with concurrent.futures.ProcessPoolExecutor(
                1, context, _start, (*place, WORKDIR.value)
            ) as pool:
                try:
                    for cell in mine:
                        bar.set_postfix_str(cell.name)
                        pool.submit(_measure, cell).result()
                        bar.update()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    for worker in multiprocessing.active_children():
                        worker.terminate()
                    raise


def main() -> None:
    """Measures what is not there, reports."""
    from meta_opt.studies.meltr_throughput.cost_model import HeldOut
    from meta_opt.studies.meltr_throughput.measure import Case
    from meta_opt.studies.meltr_throughput.report import write_throughput

    settings = CONFIG.value.to_dict()
    check_keys("config", settings, _KEYS)
    folder = Path(settings["results"])
    cells = []
    for name, given in settings["cases"].items():
        case = from_config(Case, given, f"config.cases.{name}")
        # As JSON has it.
        full = json.loads(json.dumps(dataclasses.asdict(case)))
        cells.append(Cell(name, full, folder / "cells" / f"{name}.json"))
    chosen = dict.fromkeys(
        cell for part in ONLY.value or [""] for cell in cells if part in cell.name
    )
    missing = [cell for cell in chosen if stored(cell.path, cell.case) is None]
    try:
        if missing and MEASURE.value:
            measure_all(missing)
    except BrokenProcessPool as error:
        raise ValueError(
            f"{error} The same command goes on; if memory was short, measure fewer "
            "examples a batch"
        ) from None
    found = [stored(cell.path, cell.case) for cell in cells]
    records = [record for record in found if record is not None]
    print(
        write_throughput(
            folder,
            records,
            total=len(cells),
            intervals=settings["intervals"],
            held_out=from_config(HeldOut, settings["held_out"], "config.held_out"),
            command=cli.command_line(),
        )
    )


if __name__ == "__main__":
    cli.run(main)
