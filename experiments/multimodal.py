"""Trains a multimodal model on a task of the suite, or on your own samples.

    python -m experiments.multimodal --config configs/multimodal.py:tuxpaint_trimodal \
        --workdir runs/trimodal

Run again with the same workdir, it resumes. Beside the logs, ``decisions.png`` shows
what the learned optimizer decided.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

# For configs.common, wherever this is started from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.run_report import print_run

CONFIG = config_flags.DEFINE_config_file("config", help_string="file.py:task")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for logs and checkpoints.")


def main(argv: Sequence[str]) -> None:
    """Parses, builds, runs, reports."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("meta_opt").setLevel(logging.INFO)
    from meta_opt.evaluation.multimodal import score_on
    from meta_opt.finetuning.interruption import Interrupted
    from meta_opt.finetuning.multimodal import MultimodalRunConfig, run_multimodal
    from meta_opt.reporting.decisions import plot_decisions
    from meta_opt.types import from_config

    try:
        config = from_config(MultimodalRunConfig, CONFIG.value.to_dict())
        finished = run_multimodal(config, score_on, WORKDIR.value)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"multimodal: {error}")
    except Interrupted as interrupted:
        print(f"stopped by {interrupted}; the same command resumes it", file=sys.stderr)
        sys.exit(interrupted.exit_code)
    result = finished.result
    print_run(config.optimizer.name, result, finished.test)
    for split, missing in finished.missing.items():
        for modality, count in missing.items():
            if count:
                print(f"  {split}: {count} samples without {modality}")
    for split, count in finished.skipped.items():
        if count:
            print(f"  {split}: {count} samples skipped, whose files cannot be read")
    print(f"  parameters that train         {result.trainable:,}")
    path = Path(WORKDIR.value) / "decisions.png"
    if plot_decisions(path, result.history):
        print(f"  written: {path}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
