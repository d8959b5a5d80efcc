"""Fine-tunes a model that answers questions about images in few-shot phases.

    python -m experiments.few_shot_data --config configs/few_shot_data.py:openclipart
    python -m experiments.progressive \
        --config configs/progressive.py:openclipart_small --workdir runs/progressive
    python -m experiments.progressive --config configs/progressive.py:smoke \
        --workdir runs/progressive/smoke

Rerunning with the same workdir resumes; ``--report_only`` only reports. Outputs:
``progressive.md``, figures, and a folder for each phase
(`meta_opt/studies/progressive/phases.py`).
"""

import sys
from pathlib import Path

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli

CONFIG = cli.define_config(partial=True)
WORKDIR = cli.define_workdir(None, "Folder of the study.")
REPORT_ONLY = cli.define_report_only()


def main() -> None:
    """Runs unfinished phases and writes the report."""
    from tqdm import tqdm

    from meta_opt.compilation_cache import use_compilation_cache
    from meta_opt.studies.progressive.phases import Phases
    from meta_opt.studies.progressive.report import write_progressive
    from meta_opt.studies.progressive.study import read_study
    from meta_opt.studies.progressive.summary import read_arms

    study = read_study(CONFIG.value.to_dict())
    phases = Phases(study, WORKDIR.value)
    names = list(study.tracks())
    # The report states these settings, so all finished phases must have them.
    phases.check()

    def report() -> str:
        model = study.run.workload.model
        return write_progressive(
            WORKDIR.value,
            read_arms(WORKDIR.value, names, phases.count, study.run.prices),
            count=phases.count,
            settings={
                "model": Path(model.weights).name or model.size,
                "trainable": model.trainable,
                "width": study.config.width,
                "mode": study.config.mode,
                "epochs": study.config.epochs,
                "batch_size": study.run.loop.batch_size,
            },
            command=cli.command_line(),
        )

    if not REPORT_ONLY.value:
        use_compilation_cache()
        total = 1 + len(names) * phases.count
        with tqdm(total=total, desc="phases", unit="phase") as bar:

            def announce(name: str) -> None:
                # Counts the previous phase as done; zero-shot has none before it.
                bar.update(bar.postfix is not None)
                bar.set_postfix_str(name)

            # After an interruption, the finished phases are still reported.
            try:
                phases.run(announce)
                bar.update()
            finally:
                report()
    elif not read_arms(WORKDIR.value, names, phases.count):
        raise ValueError(f"--workdir={WORKDIR.value} has no finished phase of a study")
    print(report())
    print(f"written: {Path(WORKDIR.value) / 'progressive.md'}")


if __name__ == "__main__":
    cli.run(main)
