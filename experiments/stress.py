"""Stress test of trained image classifiers, and of short runs on changed data.

    python -m experiments.few_shot_data --config configs/few_shot_data.py:openclipart
    python -m experiments.stress --config configs/stress.py:reduced \
        --config.models.lite0_100=runs/lite0/model --workdir runs/stress
    python -m experiments.stress --config configs/stress.py:smoke \
        --workdir runs/stress/smoke

Rerunning with the same workdir resumes; ``--report_only`` only reports. Outputs:
``stress.md``, figures, ``wrong_answers.html``, and predictions
(`meta_opt/studies/stress/study.py`).
"""

import sys
from pathlib import Path

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli

CONFIG = cli.define_config(partial=True)
WORKDIR = cli.define_workdir(None, "Folder of the stress test.")
REPORT_ONLY = cli.define_report_only()


def main() -> None:
    """Runs unfinished parts and writes the report."""
    from tqdm import tqdm

    from meta_opt.compilation_cache import use_compilation_cache
    from meta_opt.interruption import Interrupted
    from meta_opt.studies.stress.facts import facts_of
    from meta_opt.studies.stress.report import write_stress_report
    from meta_opt.studies.stress.settings import read_stress
    from meta_opt.studies.stress.study import StressTest
    from meta_opt.studies.stress.summary import summarise

    config = read_stress(CONFIG.value.to_dict())
    test = StressTest(config, WORKDIR.value)

    def report() -> str:
        predictions = test.predictions()
        if not predictions:
            raise ValueError(f"{WORKDIR.value} has no finished part to report")
        summary = summarise(predictions, test.baseline(predictions))
        facts = {**facts_of(test), "command": f"`{cli.command_line()}`"}
        folder = config.data.folder
        return write_stress_report(WORKDIR.value, summary, predictions, folder, facts)

    if not REPORT_ONLY.value:
        use_compilation_cache()
        with tqdm(total=test.remaining(), unit="picture", unit_scale=True) as bar:
            running = 0

            def announce(name: str, cost: int) -> None:
                nonlocal running
                bar.update(running)
                running = cost
                bar.set_postfix_str(name)

            try:
                test.run(announce)
                bar.update(running)
            except (Interrupted, KeyboardInterrupt):
                # Report the finished parts before ending.
                if test.predictions():
                    report()
                raise
    print(report())
    print(f"written: {Path(WORKDIR.value) / 'stress.md'}")


if __name__ == "__main__":
    cli.run(main)
