"""Fuzzes every reader of untrusted files (see ``SECURITY.md``).

    python -m experiments.hostile --mutations 20000 --formats png,webdataset_tar
    python -m experiments.hostile --formats tiff --start 1234 --mutations 1

A reader must return a value, or raise a documented error that names the file. It must
not raise other errors, crash, take 10 seconds or 2 GB, or write outside of its folder.
Mutations are deterministic, so that a failing one can be repeated by its index. The
command exits with 1 if any reader broke this contract.
"""

import sys
from pathlib import Path

from absl import flags

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli

MUTATIONS = flags.DEFINE_integer(
    "mutations", 1000, "Mutations per format.", lower_bound=1
)
FORMATS = flags.DEFINE_list("formats", [], "Names of formats; all if empty.")
START = flags.DEFINE_integer("start", 0, "Index of the first mutation.", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the mutations.")


def main() -> None:
    """Fuzzes the readers, and prints a table of outcomes and the problems."""
    from experiments.hostile_files import formats, trial
    from meta_opt.types import check_name

    names = FORMATS.value or list(formats.FORMATS)
    for name in names:
        check_name("--formats", name, formats.FORMATS)
    found = trial.try_formats(names, MUTATIONS.value, SEED.value, START.value)
    print(trial.report(found))
    if any(one.problems for one in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
