"""A fine-tuning run of a small network.

    python -m experiments.fault_trials.small_run --workdir runs/small --steps 8

What is tried on it is the loop, its files and its processes, and not a model.
"""

import logging

from absl import flags

from experiments import cli

WORKDIR = cli.define_workdir(None, "Folder for logs and checkpoints.")
_STEPS = flags.DEFINE_integer("steps", 8, "Optimizer updates.")
_EVERY = flags.DEFINE_integer("every", 2, "Steps between checkpoints.")
_PACE = flags.DEFINE_float("pace", 0.0, "Minimum seconds per step.")


def main(first: bool) -> None:
    """Runs it on all devices of all processes."""
    from experiments.fault_trials.small_network import small_run

    result = small_run(WORKDIR.value, _STEPS.value, _EVERY.value, _PACE.value, fsdp=-1)
    if first:
        print(f"{int(result.state.step)} steps, {result.last_evaluation}")


if __name__ == "__main__":
    cli.run(main, log_level=logging.INFO, processes=True)
