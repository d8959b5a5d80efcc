"""A resumable search: TPE with successive halving, kept in an SQLite file.

Bergstra et al. 2011 (TPE); Li et al. 2020, arXiv:1810.05934 (asynchronous successive
halving). Both are Optuna's.
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from meta_opt.tuning.space import Setting, suggest_all

if TYPE_CHECKING:
    import optuna

_log = logging.getLogger(__name__)

Report: TypeAlias = Callable[[int, float], None]
"""``report(step, value)``: an intermediate value; raises :class:`Pruned` to stop."""

Objective: TypeAlias = Callable[[dict[str, Any], Report], float]
"""``(params, report) -> value``, lower is better."""

# User attributes of the study, and of a trial.
_SETUP, _INTERRUPTED = "setup", "interrupted"
_ERROR, _SECONDS = "error", "seconds"


class Pruned(Exception):
    """The trial is not worth finishing; let it through."""


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How to search.

    Attributes:
        num_trials: trials that end by themselves: complete, pruned or failed.
        seed: of the suggestions. They depend on it and on the trials so far, so that
            an interrupted and resumed search makes those of an unbroken one.
        startup_trials: drawn at random before TPE begins.
        min_resource: the step from which trials may be pruned; 0 never prunes.
        reduction_factor: at ``min_resource`` times each of its powers one trial in so
            many goes on.
        progress: whether to show a progress bar on a terminal.
    """

    num_trials: int = 20
    seed: int = 0
    startup_trials: int = 8
    min_resource: int = 0
    reduction_factor: int = 2
    progress: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges."""
        least = {
            "num_trials": 1,
            "startup_trials": 1,
            "min_resource": 0,
            "reduction_factor": 2,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least {bound}"
                )


def search(
    config: SearchConfig,
    space: Mapping[str, Setting],
    objective: Objective,
    *,
    storage: str | Path,
    name: str,
    setup: Mapping[str, Any] | None = None,
    stop_on: tuple[type[BaseException], ...] = (),
    may_all_fail: bool = False,
) -> "optuna.Study":
    """Minimises ``objective``, going on with the study in ``storage`` if there is one.

    A trial that was cut off (the process was killed, or an exception of ``stop_on``
    came up) does not count; the next one has its settings. A trial that raises anything
    else is recorded as failed, with the error; one whose value is not finite
    is recorded as pruned, which TPE takes for worse than any other.

    Args:
        config: how to search.
        space: settings by name.
        objective: called with one value for each setting. It may report values at
            increasing steps.
        storage: the SQLite file, created if needed.
        name: of the study.
        setup: what the objective depends on, as a JSON value; a study is only resumed
            under the same setup, space and seed.
        stop_on: exceptions that end the search, beside KeyboardInterrupt and its like.
        may_all_fail: whether to return a study without any complete trial, too.

    Returns:
        The study. Its user attribute ``interrupted`` lists the trials cut off.

    Raises:
        ValueError: if the study in ``storage`` was made under another setup.
        RuntimeError: if no trial completed, unless ``may_all_fail``.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{Path(storage).absolute()}",
        study_name=name,
        pruner=_pruner(config),
        load_if_exists=True,
    )
    _check_setup(study, config, space, setup or {}, storage)
    for trial in study.get_trials(deepcopy=False):
        if trial.state is optuna.trial.TrialState.RUNNING:
            _set_aside(study, trial.number)
    from tqdm import tqdm

    done = len(_counted(study))
    if done:
        _log.info("%s: going on after %d trials", storage, done)
    quiet = None if config.progress else True
    with tqdm(
        total=config.num_trials, initial=done, desc=name, disable=quiet, unit="trial"
    ) as bar:
        while done < config.num_trials:
            # A sampler's own state would start over with each process, and with it
            # the random trials.
            study.sampler = optuna.samplers.TPESampler(
                seed=config.seed * 1_000_003 + done,
                n_startup_trials=config.startup_trials,
            )
            _run_trial(study, config, space, objective, stop_on)
            done += 1
            bar.update(done - bar.n)
            if _any_complete(study):
                bar.set_postfix(best=f"{study.best_value:.4g}")
    if not _any_complete(study) and not may_all_fail:
        errors = {str(t.user_attrs.get(_ERROR)) for t in _counted(study)}
        raise RuntimeError(
            f"none of {done} trials of {name!r} completed: {'; '.join(sorted(errors))}"
        )
    return study


def _run_trial(
    study: "optuna.Study",
    config: SearchConfig,
    space: Mapping[str, Setting],
    objective: Objective,
    stop_on: tuple[type[BaseException], ...],
) -> None:
    """Runs one trial and records how it ended."""
    from optuna.trial import TrialState

    trial = study.ask()
    started = time.perf_counter()

    def report(step: int, value: float) -> None:
        if not math.isfinite(value):
            raise Pruned(f"the value at step {step} is {value}")
        trial.report(value, step)
        if config.min_resource and trial.should_prune():
            raise Pruned(f"behind at step {step}")

    def end(state: TrialState, value: float | None = None, error: str = "") -> None:
        trial.set_user_attr(_SECONDS, round(time.perf_counter() - started, 2))
        if error:
            trial.set_user_attr(_ERROR, error)
        study.tell(trial, value, state=state)

    try:
        value = float(objective(suggest_all(space, trial), report))
    except stop_on:
        _set_aside(study, trial.number)
        raise
    except Pruned as reason:
        end(TrialState.PRUNED, error=str(reason))
    except Exception as error:
        _log.warning("trial %d failed: %r", trial.number, error)
        end(TrialState.FAIL, error=repr(error))
    except BaseException:
        _set_aside(study, trial.number)
        raise
    else:
        if math.isfinite(value):
            end(TrialState.COMPLETE, value)
        else:
            end(TrialState.PRUNED, error=f"the value is {value}")


def _pruner(config: SearchConfig) -> "optuna.pruners.BasePruner":
    import optuna

    if not config.min_resource:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=config.min_resource, reduction_factor=config.reduction_factor
    )


def _check_setup(
    study: "optuna.Study",
    config: SearchConfig,
    space: Mapping[str, Setting],
    setup: Mapping[str, Any],
    storage: str | Path,
) -> None:
    settings = dataclasses.asdict(config)
    for free in ("num_trials", "progress"):
        del settings[free]
    now = {
        "search": settings,
        "space": {key: dataclasses.asdict(space[key]) for key in sorted(space)},
        "setup": dict(setup),
    }
    now = json.loads(json.dumps(now, default=str))
    before = study.user_attrs.get(_SETUP)
    if before is None:
        study.set_user_attr(_SETUP, now)
    elif before != now:
        changed = [key for key in now if before.get(key) != now[key]]
        raise ValueError(
            f"{storage} holds the study {study.study_name!r} made under another "
            f"{' and '.join(changed)}; take those again to go on with it, or another "
            "file"
        )


def _counted(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    """Returns the trials that ended by themselves."""
    cut_off = study.user_attrs.get(_INTERRUPTED, [])
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and trial.number not in cut_off
    ]


def _any_complete(study: "optuna.Study") -> bool:
    return any(trial.state.name == "COMPLETE" for trial in _counted(study))


def _set_aside(study: "optuna.Study", number: int) -> None:
    """Marks a trial as cut off: neither TPE nor the count regards it."""
    from optuna.trial import TrialState

    cut_off = study.user_attrs.get(_INTERRUPTED, [])
    study.set_user_attr(_INTERRUPTED, [*cut_off, number])
    study.tell(number, state=TrialState.FAIL)
