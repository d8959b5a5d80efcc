"""Remeasures a cell of each published table; ``make check-results``.

    python -m experiments.check_results --config configs/check_results.py:published

``--only foreign`` selects cells, ``--list`` names all of them and the results that are
not remeasured, and ``--records`` counts stored records that lack provenance.

The exit status is 1 if a number is outside its interval, and 2 if one could not be
measured, for example because `make data` has not been run. Each check runs in its own
process.
"""

import sys
import time
from collections.abc import Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from absl import flags

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.worker import run_in_process
from meta_opt.studies.reproduction.compare import Comparison
from meta_opt.studies.reproduction.report import (
    aligned,
    comparison_rows,
    comparison_table,
    failure_row,
)
from meta_opt.types import check_keys

CONFIG = cli.define_config()
CHOSEN = cli.define_only("checks")
LIST = flags.DEFINE_bool("list", False, "List the checks and what is not rerun.")
RECORDS = flags.DEFINE_bool(
    "records", False, "Count stored records that lack provenance."
)

AGREES, OUTSIDE, NOT_RUN = 0, 1, 2


def measure(kind: str, settings: Mapping[str, Any]) -> list[Comparison] | str:
    """Runs a check; returns an error message of one line if it cannot be run."""
    from experiments.result_checks.by_name import CHECKS
    from meta_opt.types import check_name

    try:
        check_name("kind", kind, CHECKS)
        return CHECKS[kind](settings)
    except (ValueError, FileNotFoundError) as error:
        return " ".join(str(error).split())


def measure_apart(check: Mapping[str, Any]) -> list[Comparison] | str:
    """Runs a check in a new process with the number of devices that it needs."""
    kind, settings = check["kind"], check["settings"]
    try:
        return run_in_process(measure, kind, settings, devices=check["devices"])
    except BrokenProcessPool:
        return "its process ended early; memory may have been short"


def run_checks(checks: Mapping[str, Any]) -> int:
    """Measures, prints the table and returns the exit status."""
    from tqdm import tqdm

    rows: list[tuple[str, ...]] = []
    status = AGREES
    bar = tqdm(checks.items(), desc="checks", unit="check", disable=None)
    for name, check in bar:
        bar.set_postfix_str(name)
        began = time.monotonic()
        found = measure_apart(check)
        if isinstance(found, str):
            mine, own = [failure_row(name, found)], NOT_RUN
        else:
            mine = comparison_rows(name, found)
            own = AGREES if all(x.agrees for x in found) else OUTSIDE
        rows, status = rows + mine, max(status, own)
        seconds = time.monotonic() - began
        verdicts = ", ".join(dict.fromkeys(row[-1] for row in mine))
        bar.write(f"{name}: {verdicts} ({seconds:.0f} s)", file=sys.stderr)
    print(comparison_table(rows))
    verdicts = [row[-1] for row in rows]
    counts = {v: verdicts.count(v) for v in dict.fromkeys(verdicts)}
    print("\n" + ", ".join(f"{count} {v}" for v, count in counts.items()))
    return status


def list_checks(config: Mapping[str, Any]) -> str:
    """Returns the list of checks, and of the results that are not remeasured.

    The latter have the reason and the command that measures them.
    """
    rows = [(name, check["kind"]) for name, check in config["checks"].items()]
    left = [
        (what, x["reason"], x["command"]) for what, x in config["not_rerun"].items()
    ]
    return "\n\n".join(
        [
            "Measured again:\n" + aligned([("cell", "check"), *rows]),
            "Not measured again:\n" + aligned([("what", "reason", "command"), *left]),
        ]
    )


def list_records(folder: Path) -> str:
    """Returns counts by folder: records, and records that lack parts of provenance.

    Raises:
        FileNotFoundError: the folder has no records.
    """
    from meta_opt.provenance import FIELDS, NOT_RECORDED, describe_provenance
    from meta_opt.text_files import read_json

    counts: dict[str, list[int]] = {}
    for path in sorted(folder.rglob("*.json")):
        found = describe_provenance(read_json(path))
        row = counts.setdefault(path.relative_to(folder).parts[0], [0] * 5)
        row[0] += 1
        for column, field in enumerate(FIELDS, start=1):
            row[column] += found[field] == NOT_RECORDED
    if not counts:
        raise FileNotFoundError(f"there are no records in {folder}")
    head = ("results", "records", *(f"{field} {NOT_RECORDED}" for field in FIELDS))
    return aligned([head, *((k, *map(str, row)) for k, row in counts.items())])


def main() -> None:
    """Lists checks or records, or runs the checks and exits with their status."""
    config = CONFIG.value.to_dict()
    check_keys("config", config, ("checks", "not_rerun", "results"))
    if RECORDS.value:
        print(list_records(Path(config["results"])))
    elif LIST.value:
        print(list_checks(config))
    else:
        chosen = CHOSEN(config["checks"])
        sys.exit(run_checks({n: c for n, c in config["checks"].items() if n in chosen}))


if __name__ == "__main__":
    cli.run(main)
