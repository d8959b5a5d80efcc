"""Compares untuned optimizers, then fine-tunes nano; writes tables and a report.

    python -m experiments.demo

First a small language model of titles is trained from scratch with a dozen optimizers
that are not tuned for it, with three seeds each. Then nano, a vision-text transformer,
is fine-tuned with the learned optimizer and with tuned AdamW.

Rerunning resumes interrupted runs and reuses finished ones, as long as settings,
weights, code and machine are the same; ``--fresh`` starts over.
"""

import shutil
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from meta_opt.text_files import write_text

ROOT = Path(__file__).resolve().parents[1]

CONFIG = cli.define_config("configs/demo.py", partial=True)
WORKDIR = cli.define_workdir("runs/demo", "Folder for the runs.")
REPORT = flags.DEFINE_string("report", "report", "Folder for the report.")
FRESH = flags.DEFINE_bool("fresh", False, "Discard finished runs.")

SUMMARY = (
    "A small vision-text transformer learns to match drawings and their titles, once "
    "with each optimizer, from the same weights and on the same batches. “{}” is given "
    "the number of steps and no other setting. All that is shown was measured in these "
    "runs."
)


def resolve(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of the runs by name, with tuned settings filled in."""
    from meta_opt.finetuning.comparison import with_optimizer
    from meta_opt.finetuning.run_config import read_run_config
    from meta_opt.tuning.results import read_results
    from meta_opt.workloads.image_text import ImageTextConfig

    base, runs = read_run_config(ImageTextConfig, config["base"], "config.base"), {}
    for name in config["order"]:
        entry = config["runs"][name]
        settings = dict(entry["optimizer"])
        if entry["tuned"]:
            settings |= read_results(ROOT / entry["tuned"])["best"]["params"]
        runs[name] = with_optimizer(base, settings)
    return runs


def train(
    config: dict[str, Any], runs: dict[str, Any], labels: dict[str, str]
) -> dict[str, Path]:
    """Trains all runs, and evaluates before and after; returns their folders."""
    from meta_opt.data import bundled_clipart
    from meta_opt.finetuning.comparison import EXPORT, run_all
    from meta_opt.models import pretrained
    from meta_opt.studies.examples import before_and_after

    names, workdir = config["order"], Path(WORKDIR.value)

    def announce(name: str, finished: bool) -> None:
        reused = ": finished before and reused, --fresh measures again"
        line = f"[{names.index(name) + 1}/{len(names)}] {labels[name]}"
        print(line + reused * finished, file=sys.stderr, flush=True)

    folders = run_all(
        runs,
        workdir,
        fresh=FRESH.value,
        announce=announce,
    )
    before_and_after(
        workdir / "before",
        workload=runs[names[0]].workload,
        after=pretrained.load(folders[names[0]] / EXPORT),
        after_label=f"after, {labels[names[0]]}",
        splits={s: bundled_clipart(s) for s in ("train", "validation", "test")},
        num_queries=config["num_queries"],
        top=config["top"],
    )
    return folders


def compare_untuned(settings: dict[str, Any]) -> str:
    """Trains a small model under each untuned optimizer; returns a table."""
    from tqdm import tqdm

    from meta_opt.run_log import describe_environment, settings_digest
    from meta_opt.studies.meta_test import side_by_side
    from meta_opt.studies.meta_test.contenders import MetaTestConfig, contenders
    from meta_opt.studies.meta_test.measuring import measured
    from meta_opt.tasks.families import make_task
    from meta_opt.tasks.fingerprint import task_fingerprint
    from meta_opt.tuning.search import SearchConfig
    from meta_opt.types import from_config

    config = from_config(MetaTestConfig, settings, "config.untuned")
    workdir = Path(WORKDIR.value)
    # Records do not depend on code and machine, so the folder's name does.
    results = workdir / f"untuned-{settings_digest(describe_environment())}"
    if FRESH.value:
        shutil.rmtree(results, ignore_errors=True)
    (name,) = config.tasks
    task = make_task(name)
    fingerprint, records = task_fingerprint(task), {}
    field = [entry for entry in contenders(config) if not entry.tuned]
    with tqdm(field, desc="untuned optimizers", unit="optimizer") as bar:
        for entry in bar:
            bar.set_postfix_str(side_by_side.label_of(entry.name))
            records[entry.name] = measured(
                task, fingerprint, entry, config, SearchConfig(), results, workdir
            )
    seeds, steps = len(config.seeds), config.steps(task)
    title = f"{name}: {steps} steps from scratch, {seeds} seeds"
    side_by_side.plot(Path(REPORT.value) / "untuned.png", records, title)
    table = side_by_side.table_of(records)
    spread = side_by_side.noise(records)
    text = f"{title}\n\n{table}\n\nA seed makes {spread:.3f} of difference."
    write_text(Path(REPORT.value) / "untuned.md", text + "\n")
    return text


def main() -> None:
    """Trains, and writes and prints the report."""
    from meta_opt.reporting.comparison import write_report
    from meta_opt.types import check_keys

    config, started = CONFIG.value.to_dict(), time.perf_counter()
    check_keys(
        "config",
        config,
        ("untuned", "base", "runs", "order", "reference", "num_queries", "top"),
    )
    runs = resolve(config)
    print(f"\n{compare_untuned(config['untuned'])}\n", flush=True)
    entries = config["runs"]
    labels = {name: entries[name]["label"] for name in config["order"]}
    folders = train(config, runs, labels)
    table = write_report(
        REPORT.value,
        title="Fine-tuning nano on Open Clip Art",
        summary=SUMMARY.format(labels[config["order"][0]]),
        runs={labels[name]: folder for name, folder in folders.items()},
        reference=labels[config["reference"]],
        before=Path(WORKDIR.value) / "before",
        facts={
            f"search for {labels[name]}": entries[name]["tuned"]
            for name in labels
            if entries[name]["tuned"]
        },
    )
    print(
        f"\n{table}\n\nwritten: {REPORT.value}/index.html, curves.png, table.txt, "
        "untuned.png, untuned.md"
    )
    print(f"{time.perf_counter() - started:.0f} seconds in all")


if __name__ == "__main__":
    cli.run(main)
