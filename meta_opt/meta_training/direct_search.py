"""Search of a few direct weights by CMA-ES over whole runs of all families.

With a few dozen parameters and long inner runs, comparing a population on common seeds
needs fewer runs than back-propagated gradients, which are dominated by chaos. The
covariance matrix adaptation is that of the package ``cmaes`` (Hansen 2016,
arXiv:1604.00772).
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.leases import Lease, Leases, share
from meta_opt.meta_training.direct_search_config import DirectSearchConfig
from meta_opt.meta_training.family_scores import REFERENCES, Families, read_or
from meta_opt.meta_training.outer_loop import MetaResult
from meta_opt.meta_training.parametrisation import Parametrisation
from meta_opt.meta_training.validation import Validation
from meta_opt.optimizers.controller import init_theta
from meta_opt.optimizers.weights import load_theta
from meta_opt.parallel.workdir import hold_workdir
from meta_opt.run_log import RunLog, progress_bar, write_config
from meta_opt.tasks.task import Task
from meta_opt.text_files import write_json
from meta_opt.types import PyTree

_HISTORY = "history.json"
_MEAN = "validation/mean"


def direct_search(
    config: DirectSearchConfig,
    make: Callable[[str], Task],
    workdir: str | Path,
    show_progress: bool = True,
    validation: Validation | None = None,
    leases: Leases | None = None,
) -> MetaResult:
    """Runs CMA-ES, or resumes from the last complete generation in ``workdir``.

    Every generation draws candidates, runs each on the families at every budget and
    with the same seeds, and scores it by `meta_objective`: the mean over families, plus
    the weighted mean over the worst fifth of them. Only the scores of a generation are
    stored: a resumed search replays them and continues bit for bit.

    Processes that share a search evaluate different families, wait for each other at
    the end of a generation, and return the same result, up to rounding between
    different machines.

    Args:
        config: settings of the search.
        make: builds the task of a family; pickled if ``config.workers`` is above 0.
        workdir: folder for ``history.json`` (scores of every generation),
            ``references.json`` (AdamW's results), logs and the resolved config.
        show_progress: whether to show progress bars.
        validation: meta-validation of the centre every few generations and at the end.
        leases: leases in a folder that all processes sharing the search can access;
            None if this process is alone.

    Returns:
        The centre with the best meta-validation (without validation the final centre),
        and the final centre.

    Raises:
        ValueError: an unknown direct weight, a family without a task, or ``workdir`` is
            in use by another run.
    """
    with hold_workdir(workdir, shared=leases is not None):
        return _search(config, make, Path(workdir), show_progress, validation, leases)


def _search(
    config: DirectSearchConfig,
    make: Callable[[str], Task],
    workdir: Path,
    show_progress: bool,
    validation: Validation | None,
    leases: Leases | None,
) -> MetaResult:
    # Another process that shares the search may have written files already.
    begun = [(workdir / name).is_file() for name in (_HISTORY, REFERENCES)]
    resuming = leases is not None or any(begun)
    write_config(workdir, dataclasses.asdict(config), resuming=resuming)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        # Without generations nothing is evaluated, so skip measuring AdamW.
        families = None
        if config.generations:
            families = Families(config, make, workdir, show_progress, leases)
            stack.callback(families.close)
        history = _History(config, workdir, validation, leases)
        stack.callback(history.close)
        found = _generations(config, families, history, show_progress)
    return found._replace(seconds=time.monotonic() - began)


def _generations(
    config: DirectSearchConfig,
    families: Families | None,
    history: "_History",
    show_progress: bool,
) -> MetaResult:
    from cmaes import CMA

    weights = _Weights(config)
    optimizer = CMA(
        mean=np.zeros(len(config.direct)),
        sigma=1.0,
        population_size=config.population,
        seed=config.seed,
    )
    best, best_score = weights.theta(optimizer.mean), float("inf")
    bar = progress_bar(
        config.generations, start=len(history), label="search", show=show_progress
    )
    for generation in range(config.generations):
        drawn = [optimizer.ask() for _ in range(config.population)]
        centre = optimizer.mean.copy()
        row: dict[str, float] = {}
        replayed = history.has(generation)
        if replayed:
            scores = history.scores(generation)
        else:
            assert families is not None
            candidates = [weights.theta(z) for z in (*drawn, centre)]
            scores, row = families.scores(candidates, generation)
            away = [float(np.mean(np.square(z))) for z in (*drawn, centre)]
            scores = [
                score + config.pull * distance
                for score, distance in zip(scores, away, strict=True)
            ]
        optimizer.tell(list(zip(drawn, scores[:-1], strict=True)))
        after = weights.theta(optimizer.mean)
        if not replayed:
            row |= {"score/centre": scores[-1], "score/best": min(scores)}
            row |= weights.named(optimizer.mean)
            history.add(generation, scores, row, after)
            bar.set_postfix({"centre": f"{scores[-1]:+.3f}"})
            bar.update()
        score = history.validation(generation, after)
        if not history.validates:
            best = after
        elif score is not None and score < best_score:
            best, best_score = after, score
    bar.close()
    return MetaResult(
        best,
        weights.theta(optimizer.mean),
        best_score,
        config.generations,
        seconds=0.0,
        finished=True,
    )


class _History:
    """Stores the scores of each generation in ``history.json`` and in the logs.

    If several processes share the search, one of them validates, logs and stores a
    generation.
    """

    def __init__(
        self,
        config: DirectSearchConfig,
        workdir: Path,
        validation: Validation | None,
        leases: Leases | None,
    ) -> None:
        self._config, self._validation = config, validation
        self._workdir, self._leases = workdir, leases
        self._entries: list[dict[str, Any]] = read_or(workdir / _HISTORY)
        self._log = None if leases else self._open_log()

    @property
    def validates(self) -> bool:
        """Whether meta-validation is configured."""
        return self._validation is not None

    def __len__(self) -> int:
        return len(self._entries)

    def has(self, generation: int) -> bool:
        """Whether a generation has been stored, by this process or another."""
        if self._leases and generation >= len(self):
            self._entries = read_or(self._workdir / _HISTORY)
        return generation < len(self)

    def scores(self, generation: int) -> list[float]:
        """Returns the scores of a generation's candidates and, last, of its centre."""
        return self._entries[generation]["scores"]

    def validation(self, generation: int, after: PyTree) -> float | None:
        """Returns the mean meta-validation after a generation; None if none is due.

        Args:
            generation: index of a stored generation.
            after: weights of the centre after that generation.
        """
        entry = self._entries[generation]
        if entry["validation"] is None:
            # The last generation of a shorter search may be due now.
            entry["validation"] = self._validated(generation, after).get(_MEAN)
        return entry["validation"]

    def add(
        self, generation: int, scores: list[float], row: dict[str, float], after: PyTree
    ) -> None:
        """Stores a generation, unless another process has."""

        def keep(generation: int, lease: Lease | None) -> None:
            if self.has(generation):
                return
            found = self._validated(generation, after)
            entry = {"scores": scores, "validation": found.get(_MEAN)}
            entries = [*self._entries, entry]
            if lease is not None:
                lease.check()
            log = self._log or self._open_log()
            # Log first: resuming drops log lines of generations that the history
            # lacks, but does not log the generations that it replays.
            log.write(generation + 1, row | found)
            write_json(self._workdir / _HISTORY, entries, indent=1)
            self._entries = entries
            if log is not self._log:
                log.close()

        share([generation], lambda n: f"generation {n + 1}", keep, self._leases)

    def close(self) -> None:
        """Closes the log."""
        if self._log is not None:
            self._log.close()

    def _open_log(self) -> RunLog:
        return RunLog(self._workdir, resume_step=len(self) or None)

    def _validated(self, generation: int, after: PyTree) -> dict[str, float]:
        last = generation + 1 == self._config.generations
        due = (generation + 1) % self._config.validate_every == 0 or last
        if self._validation is None or not due:
            return {}
        found = self._validation(after)
        rows = {f"validation/{name}": score for name, score in found.items()}
        return rows | {_MEAN: float(np.mean(list(found.values())))}


class _Weights:
    """Maps standardised search coordinates to the controller's weights."""

    def __init__(self, config: DirectSearchConfig) -> None:
        self._names = [name.split("+") for name, _, _ in config.direct]
        self._centre = np.array([centre for _, centre, _ in config.direct])
        self._scale = np.array([scale for _, _, scale in config.direct])
        flat = tuple(n for names in self._names for n in names)
        # This random draw has no effect: the LSTMs' output weights are zero.
        start = init_theta(jax.random.key(config.seed), config.controller)
        if config.start:
            start, shape = load_theta(config.start)
            # The number of iterations does not change the shapes of the weights.
            shape = dataclasses.replace(shape, iterations=config.controller.iterations)
            if shape != config.controller:
                raise ValueError(
                    f"the weights start={config.start!r} belong to another controller: "
                    f"{shape}"
                )
        self._parts = Parametrisation(start, config.controller, flat)

    def theta(self, z: np.ndarray) -> PyTree:
        values = self._centre + self._scale * z
        each = [v for v, names in zip(values, self._names, strict=True) for _ in names]
        return self._parts.theta(jnp.array(each, jnp.float32))

    def named(self, z: np.ndarray) -> dict[str, float]:
        values = self._centre + self._scale * z
        return {
            f"weight/{'+'.join(names)}": float(v)
            for v, names in zip(values, self._names, strict=True)
        }
