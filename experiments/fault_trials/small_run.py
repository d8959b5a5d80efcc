"""Trains a small network by the fine-tuning loop.

    python -m experiments.fault_trials.small_run --workdir runs/small --steps 8

It exercises the loop, its files and its processes rather than a model.
"""

import logging

from absl import flags

from experiments import cli

WORKDIR = cli.define_workdir(None, "Folder for logs and checkpoints.")
_STEPS = flags.DEFINE_integer("steps", 8, "Optimizer updates.")
_EVERY = flags.DEFINE_integer("every", 2, "Steps between checkpoints.")
_PACE = flags.DEFINE_float("pace", 0.0, "Minimum seconds per step.")


def main(first: bool) -> None:
    """Trains on all devices of all processes; process 0 prints the result."""
    from experiments.fault_trials.small_network import small_run

    result = small_run(WORKDIR.value, _STEPS.value, _EVERY.value, _PACE.value, fsdp=-1)
    if first:
        print(f"{int(result.state.step)} steps, {result.last_evaluation}")


if __name__ == "__main__":
    cli.run(main, log_level=logging.INFO, processes=True)
