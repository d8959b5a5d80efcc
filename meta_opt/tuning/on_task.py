"""A baseline's search on one small task."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.leases import EXPIRY_SECONDS
from meta_opt.tasks.inner_run import InnerRun
from meta_opt.tuning.baseline_spaces import baseline_space
from meta_opt.tuning.results import describe_trials
from meta_opt.tuning.search import Report, SearchConfig, search


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What a search on a task found.

    Attributes:
        settings: the best ones; those of the first trial if every trial failed.
        trials: JSON values: number, state, value, params and seconds of each.
        seconds: total time of all trials, over all sessions, without compilation.
    """

    settings: dict[str, float]
    trials: list[dict[str, Any]]
    seconds: float


def tune_on_task(
    run: InnerRun,
    name: str,
    num_steps: int,
    config: SearchConfig,
    *,
    seeds: Sequence[int],
    storage: str | Path,
    setup: Mapping[str, Any],
    expiry_seconds: float = EXPIRY_SECONDS,
) -> Tuned:
    """Looks for the settings of least validation loss, the mean over ``seeds``.

    Args:
        run: a task under the baseline; settings as `baseline_space` names them.
        name: name of the baseline.
        num_steps: length of every trial: the full budget.
        config: settings of the search.
        seeds: random seeds of every trial; reported results should use other seeds.
        storage: storage of the search, from which it resumes; see `Storage`.
        setup: everything else that the losses depend on, as a JSON value.
        expiry_seconds: see `search`.

    Returns:
        The best settings and all trials. A trial that diverges counts as worse than
        any other.

    Raises:
        ValueError: ``storage`` holds a search with another setup.
    """
    space = baseline_space(name)
    # Compiled before the first trial, whose seconds are those of training then.
    run.compile(dict.fromkeys(space, 0.0))

    def objective(settings: dict[str, Any], report: Report) -> float:
        outcome, _ = run(seeds, num_steps, settings)
        return float(np.mean(outcome.validation_loss))

    study = search(
        config,
        space,
        objective,
        storage=storage,
        name=name,
        setup={**setup, "num_steps": num_steps, "seeds": list(seeds)},
        may_all_fail=True,
        expiry_seconds=expiry_seconds,
    )
    trials = describe_trials(study)
    values = [t["value"] if t["state"] == "complete" else math.inf for t in trials]
    return Tuned(
        settings=trials[int(np.argmin(values))]["params"],
        trials=trials,
        seconds=sum(t["seconds"] for t in trials),
    )
