"""Differences in losses and parameters between runs on 1, 2 and 8 devices.

    python -m experiments.device_counts --config configs/finetune.py:smoke

The devices are virtual CPU devices. Parameters, optimizer state and batch are sharded
over them; seed and batches are the same. Reductions sum in a different order, so that
results differ by rounding errors, which training amplifies.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli

CONFIG = cli.define_config("configs/finetune.py:smoke", partial=True)
DEVICES = flags.DEFINE_list("devices", ["1", "2", "8"], "Device counts to compare.")


def runs(settings: Mapping[str, Any], counts: Sequence[int]) -> dict[int, Any]:
    """Returns the results of a configuration by number of devices."""
    from experiments.workloads import read_run
    from meta_opt.finetuning.runs import finetune

    found = {}
    for count in counts:
        config = read_run({**settings, "mesh": {"fsdp": count}})
        found[count] = finetune(config).result
    return found


def main() -> None:
    """Trains on each number of devices and prints the differences."""
    import jax

    from experiments.device_differences import compare, table

    try:
        counts = [int(x) for x in DEVICES.value]
    except ValueError:
        counts = []
    if len(counts) < 2 or min(counts) < 1:
        raise ValueError(f"--devices={','.join(DEVICES.value)}: give numbers, as 1,2,8")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(counts))
    found = runs(CONFIG.value.to_dict(), counts)
    first, *others = counts
    differences = {n: compare(found[n], found[first]) for n in others}
    print(table(differences, first))


if __name__ == "__main__":
    cli.run(main)
