"""Resumable hyperparameter search: TPE with successive halving.

A search is stored in a file or on a database server. Several processes may share
it, and with some storages several machines.

Bergstra et al. 2011 (TPE); Li et al. 2020, arXiv:1810.05934 (asynchronous successive
halving). Both are Optuna's.
"""

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from meta_opt.leases import EXPIRY_SECONDS
from meta_opt.tuning.claims import Claims
from meta_opt.tuning.space import Setting, suggest_all
from meta_opt.tuning.storage import Storage
from meta_opt.tuning.study_setup import INTERRUPTED, PLACE, check_setup, check_trials

if TYPE_CHECKING:
    import optuna

_log = logging.getLogger(__name__)

Report: TypeAlias = Callable[[int, float], None]
"""``report(step, value)``: an intermediate value; raises :class:`Pruned` to stop."""

Objective: TypeAlias = Callable[[dict[str, Any], Report], float]
"""``(params, report) -> value``."""

# User attributes of the study, and of a trial.
_ERROR, _SECONDS = "error", "seconds"


class Pruned(Exception):
    """Raised to prune a trial; objectives must not catch it."""


class _Taken(Exception):
    """The trial was set aside: this process was not heard of for too long."""


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Settings of a search.

    Attributes:
        num_trials: number of trials that complete, are pruned or fail, over all
            processes.
        seed: random seed of the suggestions, which depend only on it and on the
            previous trials, so that an interrupted and resumed search of one process
            equals an uninterrupted one.
        startup_trials: number of random trials before TPE begins.
        min_resource: step from which trials may be pruned; 0 never prunes.
        reduction_factor: eta of successive halving: at ``min_resource`` times each
            power of it, one trial in this many is promoted.
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
    expiry_seconds: float = EXPIRY_SECONDS,
) -> "optuna.Study":
    """Minimises ``objective``, resuming the study in ``storage`` if there is one.

    Processes that call this at the same time with the same arguments share the trials:
    each trial is run by one process, and all return when the last trial has ended. A
    search of several processes is not exactly reproducible, since its suggestions
    depend on which trials have ended.

    An interrupted trial (its process was killed, did not respond for so long that its
    claim expired, or raised an exception of ``stop_on``) is not counted; the next trial
    repeats its settings. A trial that raises any other exception is recorded as failed,
    with the error. A trial whose value is not finite is recorded as pruned, which TPE
    treats as worse than any other.

    Args:
        config: settings of the search.
        space: settings by name.
        objective: function of one value for each setting. It may report values at
            increasing steps.
        storage: file, created if needed, or server; see `Storage`.
        name: name of the study.
        setup: everything that the objective depends on, as a JSON value; a study is
            only resumed under the same setup, space and seed.
        stop_on: exceptions that end the search, besides those like KeyboardInterrupt.
        may_all_fail: whether to return a study even if no trial completed.
        maximize: whether the objective is maximised.
        expiry_seconds: time without a heartbeat after which other processes may take
            over a trial, if ``storage`` is shared by several machines.

    Returns:
        The study. Its user attribute ``interrupted`` lists the interrupted trials.

    Raises:
        ValueError: the study in ``storage`` has another setup, or ``storage`` is not a
            valid storage.
        ConnectionError: the server cannot be reached.
        RuntimeError: no trial completed, unless ``may_all_fail``.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    where = Storage(storage, name, expiry_seconds)
    claims = where.claims
    with contextlib.ExitStack() as stack:
        stack.enter_context(where.outage_named())
        stack.callback(claims.close)
        with claims.exclusive(), where.damage_named():
            study = optuna.create_study(
                storage=where.open(),
                study_name=name,
                pruner=_pruner(config),
                direction="maximize" if maximize else "minimize",
                load_if_exists=True,
            )
            check_setup(study, _setup(config, space, setup or {}, maximize), where.name)
            _set_dead_aside(study, claims)
            check_trials(study, maximize)  # Reads all of it, before any trial runs.
        _run_trials(study, config, space, objective, stop_on, where)
    done = _counted(study)
    if not _any_complete(study) and not may_all_fail:
        errors = {str(t.user_attrs.get(_ERROR)) for t in done}
        raise RuntimeError(
            f"none of {len(done)} trials of {name!r} completed: "
            f"{'; '.join(sorted(errors))}"
        )
    return study


def _run_trials(
    study: "optuna.Study",
    config: SearchConfig,
    space: Mapping[str, Setting],
    objective: Objective,
    stop_on: tuple[type[BaseException], ...],
    storage: Storage,
) -> None:
    """Takes part in the search until all its trials have ended."""
    from tqdm import tqdm

    done = len(_counted(study))
    if done:
        _log.info("%s: resuming after %d trials", storage.name, done)
    quiet = None if config.progress else True
    with tqdm(
        total=config.num_trials,
        initial=done,
        desc=study.study_name,
        disable=quiet,
        unit="trial",
    ) as bar:
        while True:
            with contextlib.ExitStack() as stack:
                trial = _claim(study, config, storage.claims, stack)
                if trial is not None:
                    _run_trial(
                        study, trial, config, space, objective, stop_on, storage.claims
                    )
            done = len(_counted(study))
            bar.update(done - bar.n)
            if _any_complete(study):
                bar.set_postfix(best=f"{study.best_value:.4g}")
            if done >= config.num_trials:
                break
            if trial is None:
                time.sleep(storage.claims.poll_seconds)


def _claim(
    study: "optuna.Study",
    config: SearchConfig,
    claims: Claims,
    stack: contextlib.ExitStack,
) -> "optuna.Trial | None":
    """Begins a trial and claims it until ``stack`` closes; None if none is left."""
    import optuna

    with claims.exclusive():
        _set_dead_aside(study, claims)
        running = study.get_trials(
            deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)
        )
        begun = sorted([*_counted(study), *running], key=lambda trial: trial.number)
        # Single-process studies of earlier versions did not store places.
        places = {t.user_attrs.get(PLACE, i) for i, t in enumerate(begun)}
        if len(places) >= config.num_trials:
            return None
        place = min(set(range(config.num_trials)) - places)
        # Reseed the sampler for each trial, because its state is not stored. The seed
        # depends on the trial's place instead of the number of trials so far, which may
        # be the same for concurrent or restarted processes.
        study.sampler = optuna.samplers.TPESampler(
            seed=config.seed * 1_000_003 + place,
            n_startup_trials=config.startup_trials,
        )
        trial = study.ask()
        stack.enter_context(claims.hold(trial.number))
        trial.set_user_attr(PLACE, place)
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
    """Runs one trial and records how it ended, unless another process has taken it."""
    from optuna.trial import TrialState

    started = time.perf_counter()

    def report(step: int, value: float) -> None:
        if not math.isfinite(value):
            raise Pruned(f"the value at step {step} is {value}")
        with _unless_taken():
            trial.report(value, step)
        if config.min_resource and trial.should_prune():
            raise Pruned(f"behind at step {step}")

    def end(state: TrialState, value: float | None = None, error: str = "") -> None:
        with _unless_taken():
            trial.set_user_attr(_SECONDS, round(time.perf_counter() - started, 2))
            if error:
                trial.set_user_attr(_ERROR, error)
        study.tell(trial, value, state=state, skip_if_finished=True)

    try:
        try:
            value = float(objective(suggest_all(space, trial), report))
        except _Taken:
            raise
        except stop_on:
            raise
        except Pruned as reason:
            end(TrialState.PRUNED, error=str(reason))
        except Exception as error:
            _log.warning("trial %d failed: %r", trial.number, error)
            end(TrialState.FAIL, error=repr(error))
        else:
            if math.isfinite(value):
                end(TrialState.COMPLETE, value)
            else:
                end(TrialState.PRUNED, error=f"the value is {value}")
    except _Taken:
        _log.warning("trial %d: %s", trial.number, _Taken.__doc__)
    except BaseException:
        with claims.exclusive():
            _set_aside(study, trial.number)
        raise


@contextlib.contextmanager
def _unless_taken() -> Iterator[None]:
    """Raises `_Taken` if the storage refuses updates because the trial has ended."""
    try:
        yield
    except RuntimeError as error:  # `UpdateFinishedTrialError` in newer versions.
        raise _Taken from error


def _pruner(config: SearchConfig) -> "optuna.pruners.BasePruner":
    import optuna

    if not config.min_resource:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=config.min_resource,
        reduction_factor=config.reduction_factor,
        min_early_stopping_rate=0,
    )


def _setup(
    config: SearchConfig,
    space: Mapping[str, Setting],
    setup: Mapping[str, Any],
    maximize: bool,
) -> dict[str, Any]:
    """Returns the setup that a study must match to be resumed."""
    settings = dataclasses.asdict(config)
    for free in ("num_trials", "progress"):
        del settings[free]
    if maximize:
        settings["maximize"] = True
    return {
        "search": settings,
        "space": {key: dataclasses.asdict(space[key]) for key in sorted(space)},
        "setup": dict(setup),
    }


def _counted(study: "optuna.Study") -> list["optuna.trial.FrozenTrial"]:
    """Returns the trials that were not interrupted."""
    cut_off = study.user_attrs.get(INTERRUPTED, [])
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and trial.number not in cut_off
    ]


def _any_complete(study: "optuna.Study") -> bool:
    return any(trial.state.name == "COMPLETE" for trial in _counted(study))


def _set_dead_aside(study: "optuna.Study", claims: Claims) -> None:
    """Marks running trials whose processes have ended as interrupted."""
    import optuna

    running = (optuna.trial.TrialState.RUNNING,)
    found = study.get_trials(deepcopy=False, states=running)
    unheld = {t.number for t in found if not claims.held(t.number)}
    if not unheld:
        return
    # Read the trials again: some may have ended, and been released, in between.
    for trial in study.get_trials(deepcopy=False, states=running):
        if trial.number in unheld:
            _set_aside(study, trial.number)


def _set_aside(study: "optuna.Study", number: int) -> None:
    """Marks a trial as interrupted, which TPE and the count ignore."""
    from optuna.trial import TrialState

    cut_off = study.user_attrs.get(INTERRUPTED, [])
    study.set_user_attr(INTERRUPTED, [*cut_off, number])
    study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
