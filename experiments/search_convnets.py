"""Tunes an image classifier with Optuna and tests the best settings.

    python -m experiments.search_convnets --config configs/convnet_search.py:resnet50

The study is kept in ``--workdir``; rerunning resumes it. ``--config.jobs=4`` runs four
trials at a time in separate processes. The command may also be started several times,
also on several machines with ``--shared`` or ``--storage``. The outputs of the frozen
stages are computed once and cached for all trials.
"""

import contextlib
import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from experiments.sharing import define_storage, study_place
from experiments.worker import start_worker
from experiments.workloads import read_run

CONFIG = cli.define_config(partial=True)
WORKDIR = cli.define_workdir("runs/convnet_search", "Folder for the studies.")
STORAGE = define_storage()

_SETTINGS = (
    *("base", "epochs", "search", "space", "jobs", "seeds", "learned", "name"),
    "results",
)


def _search(config: Mapping[str, Any], place: Mapping[str, Any], progress: bool) -> Any:
    """Runs trials until the search is complete; returns the study."""
    from meta_opt.studies.convnet_search import (
        EpochsConfig,
        EpochTrial,
        search_settings,
    )
    from meta_opt.tuning.search import SearchConfig
    from meta_opt.tuning.space import read_space
    from meta_opt.types import from_config

    base = read_run(config["base"], "config.base")
    epochs = from_config(EpochsConfig, config["epochs"], "config.epochs")
    given = {**config["search"], "progress": progress}
    settings = from_config(SearchConfig, given, "config.search")
    space = read_space(config["space"], "config.space")
    # Built first, so that its features are cached before the other processes start.
    trial = EpochTrial(base, epochs)
    with _workers(config, place, config["jobs"] - 1 if progress else 0):
        return search_settings(
            trial,
            base,
            epochs,
            space,
            settings,
            **place,
            name=config["name"],
        )


@contextlib.contextmanager
def _workers(
    config: Mapping[str, Any], place: Mapping[str, Any], count: int
) -> Iterator[None]:
    """Runs further worker processes until the end of a ``with`` block."""
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work, args=(config, place), daemon=True)
        for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        # The workers are idle if the search is complete. If it was interrupted, each
        # one marks its trial to be repeated.
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _work(config: Mapping[str, Any], place: Mapping[str, Any]) -> None:
    from meta_opt.interruption import Interrupted

    start_worker()
    with contextlib.suppress(Interrupted):
        _search(config, place, progress=False)


def main() -> None:
    """Searches, tests the best settings, and writes the results."""
    from meta_opt.compilation_cache import use_compilation_cache
    from meta_opt.studies.convnet_search import (
        EpochsConfig,
        EpochTrial,
        measure_setting,
        untuned,
    )
    from meta_opt.tuning.results import (
        describe_search,
        describe_trials,
        write_results,
    )
    from meta_opt.types import check_keys, from_config

    config, workdir = CONFIG.value.to_dict(), Path(WORKDIR.value)
    check_keys("config", config, _SETTINGS)
    if config["jobs"] < 1 or not config["seeds"]:
        raise ValueError(
            f"config.jobs={config['jobs']} must be at least 1, and config.seeds="
            f"{config['seeds']} must name a seed"
        )
    use_compilation_cache()
    place = study_place(STORAGE.value, workdir, config["name"])
    study = _search(config, place, progress=True)
    base = read_run(config["base"], "config.base")
    epochs = from_config(EpochsConfig, config["epochs"], "config.epochs")
    tested = EpochTrial(base, epochs, test=True)
    found = {
        "tuned": measure_setting(tested, epochs, study.best_params, config["seeds"])
    }
    if config["learned"]:
        tested = EpochTrial(untuned(base), epochs, test=True)
        found["learned"] = measure_setting(tested, epochs, {}, config["seeds"])
    seconds = sum(trial["seconds"] for trial in describe_trials(study))
    record = write_results(
        config["results"],
        study,
        {
            "command": cli.command_line(),
            "objective": f"{epochs.metric} on validation, maximised, at the epoch of "
            f"best {epochs.early_stopping.metric}",
            "search_seconds": round(seconds, 1),
            **found,
        },
    )
    print(describe_search(record, f"validation {epochs.metric}"))
    print(f"  in {seconds:.0f} s")
    for name, measured in found.items():
        test = measured["test"].get(epochs.metric)
        value = "not finite" if test is None else f"{test['mean']:.4f}"
        print(
            f"  test {epochs.metric} of {name}, {len(measured['runs'])} runs: {value}"
        )
    print(f"  written to {config['results']}")


if __name__ == "__main__":
    cli.run(main)
