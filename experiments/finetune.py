"""Fine-tunes a vision-text model, of this package or your own.

    python -m experiments.finetune --config configs/finetune.py:so400m_lora \
        --config.model.weights=siglip-so400m-patch14-384 \
        --config.data.name=captions.jsonl --workdir runs/mine

Run again with the same workdir, it resumes. Under SLURM, Open MPI and on Cloud TPU the
processes of a run find each other; elsewhere each is told, by its last flag, which it
is. ``config.mesh`` is of the devices of all of them:

    python experiments/finetune.py --config configs/finetune.py:nano_clipart \
        --config.mesh.fsdp=-1 --workdir /shared/run \
        --coordinator host0:1234 --processes 2 --process 0
"""

import functools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

# For configs.common, wherever this is started from.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.processes import joined
from experiments.run_report import print_run

CONFIG = config_flags.DEFINE_config_file("config", help_string="file.py:variant")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for logs and checkpoints.")


def main(argv: Sequence[str]) -> None:
    """Parses, builds, runs, reports."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # Orbax tells of every file it writes.
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("meta_opt").setLevel(logging.INFO)
    # Here, so that --help does not wait for JAX.
    from meta_opt.evaluation.split import score_on
    from meta_opt.finetuning.interruption import Interrupted
    from meta_opt.finetuning.vision_text import (
        RunConfig,
        read_preprocessing_of,
        run_vision_text,
    )
    from meta_opt.types import from_config

    try:
        config = from_config(RunConfig, CONFIG.value.to_dict())
        reading = read_preprocessing_of(config)
    except ValueError as error:
        sys.exit(f"config: {error}")
    scores = functools.partial(
        score_on,
        loss=config.model.loss,
        tokenizer=reading.tokenizer,
        text_length=reading.text_length,
        batch_size=config.data.eval_batch_size,
    )
    with joined() as first:
        try:
            finished = run_vision_text(config, scores, WORKDIR.value)
        except Interrupted as interrupted:
            message = f"stopped by {interrupted}; the same command resumes it"
            print(message, file=sys.stderr)
            sys.exit(interrupted.exit_code)
    if first:
        _report(config, *finished)


def _report(
    config: Any, result: Any, test: dict[str, float], unreadable: dict[str, str]
) -> None:
    print_run(config.optimizer.name, result, test)
    examples = int(result.state.step) * config.loop.batch_size
    for name, seconds in (
        ("examples a second", result.train_seconds),
        ("  by the input alone", result.input_seconds),
    ):
        print(f"  {name:29} {examples / max(seconds, 1e-9):.1f}")
    print(f"  seconds compiling             {result.compile_seconds:.1f}")
    share = result.optimizer_bytes / result.trainable
    print(f"  optimizer bytes a parameter   {share:.2f}")
    print(f"  steps with non-finite loss    {int(result.state.nonfinite)}")
    print(f"  unreadable pictures skipped   {len(unreadable)}")
    if config.export.path:
        print(f"  {config.export.format} written to {config.export.path}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
