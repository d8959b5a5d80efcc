"""What MELTR costs in training throughput, by losses, model, devices and method.

    python -m experiments.meltr_throughput --config configs/meltr_throughput.py:full
    python -m experiments.meltr_throughput --config configs/meltr_throughput.py:smoke

What is measured already, under the same configuration, is not measured again: each cell
is a file below ``--config.results``. TPU topologies need the extra ``tpu``. ``--cells``
measures some of the cells, and ``--nomeasure`` none.
"""

import concurrent.futures
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
ONLY = flags.DEFINE_string("cells", "", "Measure the cells with this in their names.")
MEASURE = flags.DEFINE_bool("measure", True, "Whether to measure what is not there.")

_KEYS = ("cases", "intervals", "held_out", "results")


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


def _measure(name: str, case: dict[str, Any], path: Path) -> str:
    """Measures a cell and writes it; returns its name."""
    from experiments.benchmarks.timing import medians
    from meta_opt.run_log import describe_environment
    from meta_opt.studies.meltr_throughput.measure import Case, measure

    found = measure(from_config(Case, case, name), medians)
    write_json(
        path,
        {
            "digest": digest(case),
            "name": name,
            "case": case,
            **found,
            "environment": describe_environment(),
        },
        indent=1,
    )
    return name


def measure_all(missing: Sequence[tuple[str, dict[str, Any], Path]]) -> None:
    """Measures cells one after another, a process for each set of devices."""
    from tqdm import tqdm

    context = multiprocessing.get_context("spawn")
    places = dict.fromkeys((c["devices"], c["topology"]) for _, c, _ in missing)
    with tqdm(total=len(missing), desc="cells", unit="cell") as bar:
        for place in places:
            mine = [m for m in missing if (m[1]["devices"], m[1]["topology"]) == place]
            with concurrent.futures.ProcessPoolExecutor(
                1, context, _start, (*place, WORKDIR.value)
            ) as pool:
                try:
                    for cell in mine:
                        bar.set_postfix_str(cell[0])
                        pool.submit(_measure, *cell).result()
                        bar.update()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    for worker in multiprocessing.active_children():
                        worker.terminate()
                    raise


def main() -> None:
    """Measures what is not there, reports."""
    import dataclasses

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
        cells.append((name, full, folder / "cells" / f"{name}.json"))
    missing = [c for c in cells if ONLY.value in c[0] and stored(c[2], c[1]) is None]
    try:
        if missing and MEASURE.value:
            measure_all(missing)
    except BrokenProcessPool as error:
        raise ValueError(
            f"{error} The same command goes on; if memory was short, measure fewer "
            "examples a batch"
        ) from None
    records = [r for _, case, path in cells if (r := stored(path, case)) is not None]
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
