"""Cost of MELTR in training throughput, by losses, model, devices and method.

    python -m experiments.meltr_throughput --config configs/meltr_throughput.py:full
    python -m experiments.meltr_throughput --config configs/meltr_throughput.py:smoke

Cells that were measured with the same configuration are reused: each has a file below
``--config.results``. TPU topologies need the extra ``tpu``. ``--only NAME`` measures
some of the cells, and ``--report_only`` none.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.stored_results import StoredResult
from experiments.worker import start_on_devices, terminated_on_error
from meta_opt.text_files import plain_json
from meta_opt.types import check_keys, from_config

CONFIG = cli.define_config()
CHOSEN = cli.define_only()
REPORT_ONLY = cli.define_report_only()

_KEYS = ("cases", "intervals", "held_out", "results")


@dataclasses.dataclass(frozen=True, eq=False)
class Cell(StoredResult):
    """A measured case and its stored result.

    The setup has the fields of `meta_opt.studies.meltr_throughput.cases.Case`.

    Attributes:
        name: name of the cell.
    """

    name: str

    @property
    def place(self) -> tuple[int, str]:
        """Devices and topology, which are fixed for a process."""
        return self.setup["devices"], self.setup["topology"]


def _measure(cell: Cell) -> None:
    """Measures a cell and stores the result."""
    import jax

    from experiments.benchmarks.timing import medians
    from meta_opt.studies.meltr_throughput.cases import Case
    from meta_opt.studies.meltr_throughput.measure import measure

    if cell.setup["topology"]:
        # These programs are not run; low effort takes a fraction of the compile time.
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    found = measure(from_config(Case, cell.setup, cell.name), medians)
    cell.write({"name": cell.name, "case": cell.setup, **found})


def measure_all(missing: Sequence[Cell]) -> None:
    """Measures cells sequentially, with one process for each set of devices."""
    from tqdm import tqdm

    context = multiprocessing.get_context("spawn")
    places = dict.fromkeys(cell.place for cell in missing)
    with tqdm(total=len(missing), desc="cells", unit="cell") as bar:
        for place in places:
            mine = [cell for cell in missing if cell.place == place]
            pool = concurrent.futures.ProcessPoolExecutor(
                1, context, start_on_devices, place
            )
            with pool, terminated_on_error(pool):
                for cell in mine:
                    bar.set_postfix_str(cell.name)
                    pool.submit(_measure, cell).result()
                    bar.update()


def main() -> None:
    """Measures missing cells and writes the report."""
    from meta_opt.studies.meltr_throughput.cases import Case
    from meta_opt.studies.meltr_throughput.cost_model import HeldOut
    from meta_opt.studies.meltr_throughput.report import write_throughput

    settings = CONFIG.value.to_dict()
    check_keys("config", settings, _KEYS)
    folder = Path(settings["results"])
    cells = []
    for name, given in settings["cases"].items():
        case = from_config(Case, given, f"config.cases.{name}")
        # Converted to JSON values, for comparison with stored ones.
        full = plain_json(dataclasses.asdict(case))
        cells.append(Cell(folder / "cells" / f"{name}.json", full, name))
    chosen = CHOSEN(cell.name for cell in cells)
    missing = [c for c in cells if c.name in chosen and c.stored() is None]
    try:
        if missing and not REPORT_ONLY.value:
            measure_all(missing)
    except BrokenProcessPool as error:
        raise ValueError(
            f"{error} The same command resumes; if memory was short, measure fewer "
            "examples a batch"
        ) from None
    records = [record for cell in cells if (record := cell.stored()) is not None]
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
