"""Fine-tunes a model: vision-text, multimodal, or video-text with several losses.

    python -m experiments.finetune --config configs/finetune.py:so400m_lora \
        --config.model.weights=siglip-so400m-patch14-384 \
        --config.data.name=captions.jsonl --workdir runs/mine
    python -m experiments.finetune --config configs/multimodal.py:tuxpaint_trimodal \
        --workdir runs/trimodal
    python -m experiments.finetune --config configs/meltr.py:univl_retrieval \
        --workdir runs/meltr

Rerunning with the same workdir resumes. Under SLURM, Open MPI and on Cloud TPU the
processes of a run find each other; otherwise pass ``--coordinator``, ``--processes``
and ``--process``. ``config.mesh`` refers to the devices of all processes:

    python experiments/finetune.py --config configs/finetune.py:nano_clipart \
        --config.mesh.fsdp=-1 --workdir /shared/run \
        --coordinator host0:1234 --processes 2 --process 0
"""

import logging
import sys
from pathlib import Path
from typing import Any

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.workloads import read_run

CONFIG = cli.define_config(partial=True)
WORKDIR = cli.define_workdir(None, "Folder for logs and checkpoints.")


def main(first: bool) -> None:
    """Fine-tunes the model; process 0 prints a summary."""
    from meta_opt.compilation_cache import use_compilation_cache
    from meta_opt.finetuning.runs import finetune

    use_compilation_cache()
    config = read_run(CONFIG.value.to_dict())
    finished = finetune(config, WORKDIR.value)
    if first:
        report(config, finished)


def report(config: Any, finished: Any) -> None:
    """Prints metrics, decisions and the output files of a finished run."""
    from meta_opt.reporting.decisions import plot_decisions

    result, workdir = finished.result, Path(WORKDIR.value)
    print(f"{config.optimizer.name}: {int(result.state.step)} steps")
    for record in result.actions:
        print(f"  step {record['step']}, {record['action']}: {record['reason']}")
    count = finished.data.get("examples", {}).get("test")
    of = f"  of {count} examples" if count else ""
    for metric, value in finished.test.items():
        print(f"  test {metric:24} {value:.4f}{of}")
    examples = int(result.state.step) * result.batch_size
    share = result.optimizer_bytes / result.trainable
    for name, value in {
        "seconds training": f"{result.train_seconds:.1f}",
        "seconds compiling": f"{result.compile_seconds:.1f}",
        "examples per second": f"{examples / max(result.train_seconds, 1e-9):.1f}",
        "  by the input alone": f"{examples / max(result.input_seconds, 1e-9):.1f}",
        "parameters that train": f"{result.trainable:,}",
        "optimizer bytes per parameter": f"{share:.2f}",
        "steps with non-finite loss": f"{int(result.state.nonfinite)}",
        **finished.counts(),
    }.items():
        print(f"  {name:29} {value}")
    written = [workdir / "result.json", workdir / "metrics.jsonl"]
    if plot_decisions(workdir / "decisions.png", result.history):
        written.append(workdir / "decisions.png")
    if config.export.path:
        written.append(f"{config.export.format} at {config.export.path}")
    print(f"  written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    cli.run(main, log_level=logging.INFO, processes=True)
