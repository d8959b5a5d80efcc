"""Files that runs and studies write: records, ledgers, predictions, checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.hostile_files import samples
from experiments.hostile_files.format import Files, Format, of_file, written


def _run() -> Files:
    loop = {"num_steps": 4, "batch_size": 2, "seed": 0}
    steps = [{"step": i, "train/loss": 1.0 / (i + 1)} for i in range(4)]
    return {
        "result.json": samples.dumped(
            {"test": {"accuracy": 0.5}, "train_seconds": 1.0, "trainable": 10}
        ),
        "config.json": samples.dumped({"loop": loop}),
        "environment.json": samples.dumped([{"step": 0, "git": None}]),
        "metrics.jsonl": samples.lines(*steps),
        "timing.jsonl": samples.lines({"step": 3, "train_seconds": 2.0}),
    }


def _read_run(folder: Path) -> Any:
    from meta_opt.reporting.runs import read_run

    found = read_run(folder, "a")
    return found.curve("train/loss"), found.seconds([0, 3]), found.final("train/loss")


def _ledger() -> Files:
    from meta_opt.finetuning.ledger import Amounts, Ledger, Prices

    ledger = Ledger(Prices("USD", device_hour=2.0)).add("a", "training", Amounts(1.0))
    return {"ledger.json": samples.dumped(ledger.record())}


def _read_ledger(folder: Path) -> Any:
    from meta_opt.finetuning.ledger import read_ledger

    return read_ledger(folder).record()


def _meta_test() -> bytes:
    run = {
        "budget": 1.0,
        "num_steps": 10,
        **{
            f"{split}_{what}": [0.5, None]
            for split in ("validation", "test")
            for what in ("loss", "error")
        },
        "seconds": 1.0,
    }
    return samples.dumped(
        {
            "format": 1,
            "task": "a",
            "optimizer": "adam",
            "fingerprint": {"a": [1.0]},
            "setup": {"seed": 0},
            "settings": {"learning_rate": 0.1},
            "trials": [],
            "runs": [run],
            "tuning_seconds": 0.0,
            "compile_seconds": 0.0,
            "environment": {},
        }
    )


def _read_meta_test(path: Path) -> Any:
    from meta_opt.studies.meta_test.records import read_record

    found = read_record(path)
    return found.full.mean_test_loss, found.full.test_accuracy


def _tuned() -> bytes:
    return samples.dumped(
        {"best": {"number": 0, "params": {"rate": 0.1}}, "trials": []}
    )


def _read_tuned(path: Path) -> Any:
    from meta_opt.tuning.results import read_results

    return read_results(path)


def _stress() -> bytes:
    return samples.lines(
        *(
            {
                "example": f"{i}.png",
                "label": "ship",
                "prediction": prediction,
                "confidence": 0.75,
                "model": "resnet50",
                "condition": {"corruption": "contrast", "severity": 3},
            }
            for i, prediction in enumerate(("ship", "bird", "ship"))
        )
    )


def _predictions(path: Path) -> Any:
    from meta_opt.studies.stress.predictions import cells, read_predictions

    # For inconsistent values the message names the example instead of the file.
    found = read_predictions([path])
    try:
        return cells(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


_DATABASE, _JOURNAL = "study.sqlite3", "study.journal"


def _study(storage: str) -> Files:
    return written(lambda folder: _search(folder / storage, 2))


def _search(storage: Path, trials: int) -> Any:
    from meta_opt.tuning.search import SearchConfig, search
    from meta_opt.tuning.space import Setting

    config = SearchConfig(num_trials=trials, seed=1, startup_trials=9, progress=False)
    space = {"rate": Setting("linear", low=0.0, high=1.0)}
    return search(
        config,
        space,
        lambda params, report: params["rate"],
        storage=storage,
        name="s",
    )


def _checkpoint() -> Files:
    def write(folder: Path) -> None:
        from meta_opt.checkpoints import Checkpoints

        found = Checkpoints(folder)
        found.save(1, {"w": np.arange(6.0)}, {"seen": 3}, metric=0.5)
        found.close()

    return written(write)


def _read_checkpoint(folder: Path) -> Any:
    from meta_opt.checkpoints import Checkpoints

    found = Checkpoints(folder)
    try:
        return found.restore({"w": np.arange(6.0)}), found.best_step()
    finally:
        found.close()


FORMATS: Mapping[str, Format] = {
    "run_folder": Format(
        _run,
        _read_run,
        {
            **dict.fromkeys(("result.json", "config.json", "environment.json"), "json"),
            **dict.fromkeys(("metrics.jsonl", "timing.jsonl"), "json_lines"),
        },
    ),
    "ledger": Format(_ledger, _read_ledger, {"ledger.json": "json"}),
    "meta_test_record": of_file("a.json", _meta_test, _read_meta_test, "json"),
    "search_result": of_file("a.json", _tuned, _read_tuned, "json"),
    "stress_predictions": of_file("p.jsonl", _stress, _predictions, "json_lines"),
    "optuna_study": Format(
        lambda: _study(_DATABASE),
        lambda folder: _search(folder / _DATABASE, 2),
        {_DATABASE: "bytes"},
        costly=True,
    ),
    "optuna_journal": Format(
        lambda: _study(_JOURNAL),
        lambda folder: _search(folder / _JOURNAL, 2),
        {_JOURNAL: "json_lines"},
        costly=True,
    ),
    "checkpoint": Format(_checkpoint, _read_checkpoint, {"*": "bytes"}, costly=True),
}
