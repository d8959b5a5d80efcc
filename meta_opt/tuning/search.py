"""A resumable search: TPE with successive halving, kept in an SQLite file.

Several processes of one machine may share it.

Bergstra et al. 2011 (TPE); Li et al. 2020, arXiv:1810.05934 (asynchronous successive
halving). Both are Optuna's.
"""

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from meta_opt.tuning.claims import Claims
from meta_opt.tuning.space import Setting, suggest_all

if TYPE_CHECKING:
    import optuna

_log = logging.getLogger(__name__)

Report: TypeAlias = Callable[[int, float], None]
"""``report(step, value)``: an intermediate value; raises :class:`Pruned` to stop."""

Objective: TypeAlias = Callable[[dict[str, Any], Report], float]
"""``(params, report) -> value``."""

# User attributes of the study, and of a trial.
_SETUP, _INTERRUPTED = "setup", "interrupted"
_ERROR, _SECONDS, _PLACE = "error", "seconds", "place"

_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RuntimeError)
"""What Optuna raises for values in a file that it did not write."""

_NAMED = 5
"""Differing settings that an error names."""
_POLL_SECONDS = 0.2
"""Between looks at the trials of other processes, when no other is left to begin."""
_BUSY_SECONDS = 60.0
"""How long SQLite waits for another process to have written."""


class Pruned(Exception):
    """The trial is not worth finishing; let it through."""


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How to search.

    Attributes:
        num_trials: trials that end by themselves: complete, pruned or failed; of all
            processes together.
        seed: of the suggestions. They depend on it and on the trials so far, so that
            an interrupted and resumed search of one process makes those of an unbroken
            one.
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
    maximize: bool = False,
) -> "optuna.Study":
    """Minimises ``objective``, going on with the study in ``storage`` if there is one.

    Processes that call this at the same time with the same arguments share the trials:
    each is run by one of them, and all return when the last has ended. A search of
    several processes does not repeat itself exactly, since its suggestions depend on
    which trials have ended.

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
        maximize: whether the objective is maximised.

    Returns:
        The study. Its user attribute ``interrupted`` lists the trials cut off.

    Raises:
        ValueError: if the study in ``storage`` was made under another setup.
        RuntimeError: if no trial completed, unless ``may_all_fail``.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    claims = Claims(storage)
    with claims.exclusive(), _damage_named(storage):
        study = optuna.create_study(
            storage=optuna.storages.RDBStorage(
                f"sqlite:///{Path(storage).absolute()}",
                engine_kwargs={"connect_args": {"timeout": _BUSY_SECONDS}},
            ),
            study_name=name,
            pruner=_pruner(config),
            direction="maximize" if maximize else "minimize",
            load_if_exists=True,
        )
        _check_setup(study, config, space, setup or {}, storage, maximize)
        _set_dead_aside(study, claims)
        study.get_trials(deepcopy=False)  # All of it is read, before any is run.
    from tqdm import tqdm

    done = len(_counted(study))
    if done:
        _log.info("%s: going on after %d trials", storage, done)
    quiet = None if config.progress else True
    with tqdm(
        total=config.num_trials, initial=done, desc=name, disable=quiet, unit="trial"
    ) as bar:
        while True:
            with contextlib.ExitStack() as stack:
                trial = _claim(study, config, claims, stack)
                if trial is not None:
                    _run_trial(study, trial, config, space, objective, stop_on, claims)
            done = len(_counted(study))
            bar.update(done - bar.n)
            if _any_complete(study):
                bar.set_postfix(best=f"{study.best_value:.4g}")
            if done >= config.num_trials:
                break
            if trial is None:
                time.sleep(_POLL_SECONDS)
    if not _any_complete(study) and not may_all_fail:
        errors = {str(t.user_attrs.get(_ERROR)) for t in _counted(study)}
        raise RuntimeError(
            f"none of {done} trials of {name!r} completed: {'; '.join(sorted(errors))}"
        )
    return study


@contextlib.contextmanager
def _damage_named(storage: str | Path) -> Iterator[None]:
    """Turns what a damaged file of a study raises into ValueError with its name."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError, *_UNREADABLE) as error:
        cause = error.__cause__ or error
        if isinstance(cause, OperationalError) and "locked" in str(cause):
            raise
        if isinstance(error, ValueError) and str(storage) in str(error):
            raise  # It is named already.
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{storage} is no study or is damaged ({problem}); move it away to begin "
            "anew"
        ) from error


def _claim(
    study: "optuna.Study",
    config: SearchConfig,
    claims: Claims,
    stack: contextlib.ExitStack,
) -> "optuna.Trial | None":
    """Begins a trial, held until ``stack`` closes; None if all are begun."""
    import optuna

    with claims.exclusive():
        _set_dead_aside(study, claims)
        running = study.get_trials(
            deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)
        )
        begun = sorted([*_counted(study), *running], key=lambda trial: trial.number)
        # Studies of one process alone once had no places.
        places = {t.user_attrs.get(_PLACE, i) for i, t in enumerate(begun)}
        if len(places) >= config.num_trials:
            return None
        place = min(set(range(config.num_trials)) - places)
        # A sampler's own state would start over with each process, and with it the
        # random trials. The place, and not the number of trials so far: processes that
        # begin at once, or again, would draw the same.
        study.sampler = optuna.samplers.TPESampler(
            seed=config.seed * 1_000_003 + place,
            n_startup_trials=config.startup_trials,
        )
        trial = study.ask()
        stack.enter_context(claims.hold(trial.number))
        trial.set_user_attr(_PLACE, place)
        return trial


def _run_trial(
    study: "optuna.Study",
    trial: "optuna.Trial",
    config: SearchConfig,
    space: Mapping[str, Setting],
    objective: Objective,
    stop_on: tuple[type[BaseException], ...],
    claims: Claims,
) -> None:
    """Runs one trial and records how it ended."""
    from optuna.trial import TrialState

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
        with claims.exclusive():
            _set_aside(study, trial.number)
        raise
    except Pruned as reason:
        end(TrialState.PRUNED, error=str(reason))
    except Exception as error:
        _log.warning("trial %d failed: %r", trial.number, error)
        end(TrialState.FAIL, error=repr(error))
    except BaseException:
        with claims.exclusive():
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
        min_resource=config.min_resource,
        reduction_factor=config.reduction_factor,
        min_early_stopping_rate=0,
    )


def _check_setup(
    study: "optuna.Study",
    config: SearchConfig,
    space: Mapping[str, Setting],
    setup: Mapping[str, Any],
    storage: str | Path,
    maximize: bool,
) -> None:
    settings = dataclasses.asdict(config)
    for free in ("num_trials", "progress"):
        del settings[free]
    if maximize:
        settings["maximize"] = True
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
        changed = [
            f"{key} ({', '.join(names[:_NAMED])}{', ...' * (len(names) > _NAMED)})"
            for key in now
            if (names := _changed(before.get(key, {}), now[key]))
        ]
        raise ValueError(
            f"{storage} holds the study {study.study_name!r} made under another "
            f"{' and '.join(changed)}; take those again to go on with it, or another "
            "file"
        )


def _changed(before: Any, now: Any, path: tuple[str, ...] = ()) -> list[str]:
    """Names the settings that differ, or are in one of two nested mappings only.

    >>> _changed({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 0, "c": 2}, "e": 3})
    ['a.b', 'd', 'e']
    """
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [".".join(path)] if before != now else []
    return [
        name
        for key in sorted({*before, *now})
        for name in _changed(before.get(key), now.get(key), (*path, key))
    ]


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


def _set_dead_aside(study: "optuna.Study", claims: Claims) -> None:
    """Sets aside the running trials whose processes have ended."""
    import optuna

    running = (optuna.trial.TrialState.RUNNING,)
    found = study.get_trials(deepcopy=False, states=running)
    unheld = {t.number for t in found if not claims.held(t.number)}
    if not unheld:
        return
    # Looked at again: one that has ended in between was let go after that.
    for trial in study.get_trials(deepcopy=False, states=running):
        if trial.number in unheld:
            _set_aside(study, trial.number)


def _set_aside(study: "optuna.Study", number: int) -> None:
    """Marks a trial as cut off: neither TPE nor the count regards it."""
    from optuna.trial import TrialState

    cut_off = study.user_attrs.get(_INTERRUPTED, [])
    study.set_user_attr(_INTERRUPTED, [*cut_off, number])
    study.tell(number, state=TrialState.FAIL)
