"""Scores candidate weights on task families, in this process or several."""

import concurrent.futures
import dataclasses
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from meta_opt.leases import Lease, Leases, share
from meta_opt.meta_training.family_scores_config import FamilyScoresConfig
from meta_opt.meta_training.scoring import meta_objective, over_tasks
from meta_opt.optimizers.baselines import baseline
from meta_opt.parallel.processes import end_with_parent
from meta_opt.tasks.inner_run import Outcome, PopulationRun, learned_on
from meta_opt.tasks.task import Task
from meta_opt.text_files import read_json_value, write_json
from meta_opt.types import PyTree

_FLOOR = 5e-3
"""Loss floor as a fraction of a task's initial loss; see `relative_score`."""
_REFERENCES = "references"
REFERENCES = f"{_REFERENCES}.json"
"""File of AdamW's results in a search's folder."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """AdamW's results with its best setting: means of loss and error rate over seeds.

    Attributes:
        loss: held-out loss.
        error: held-out error rate.
        start: held-out loss before training, which sets the scale of the loss floor.
    """

    loss: float
    error: float
    start: float


class Families:
    """Evaluators of all families, in this process, in workers, or on other machines.

    Args:
        config: settings of the scores.
        make: builds the task of a family.
        workdir: folder for ``references.json`` and, if several processes share the
            search, for the scores of each family and generation, in its sub-folder
            ``shared``.
        show_progress: whether to show a progress bar while AdamW is measured.
        leases: leases of all processes that share the search; None if this process is
            alone.
    """

    def __init__(
        self,
        config: FamilyScoresConfig,
        make: Callable[[str], Task],
        workdir: Path,
        show_progress: bool,
        leases: Leases | None = None,
    ) -> None:
        self._config = config
        self._leases, self._shared = leases, workdir / "shared"
        self._closed = threading.Event()
        self._local = _Worker(config, make)
        # One process per pool, so that a family always runs where it is compiled.
        self._pools = [
            concurrent.futures.ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin_worker,
                initargs=(config, make),
            )
            for _ in range(config.workers)
        ]
        # Each lane evaluates one family at a time.
        self._lanes = len(self._pools) or len(jax.local_devices())
        self._threads = concurrent.futures.ThreadPoolExecutor(self._lanes)
        self._compiled: list[set[str]] = [set() for _ in range(self._lanes)]
        self._references = self._measure(workdir, show_progress)

    def _measure(self, workdir: Path, show_progress: bool) -> dict[str, Reference]:
        """Measures AdamW's best results on each family, unless they are stored."""
        path = workdir / REFERENCES
        found = read_or(path, {})
        missing = [name for name in self._config.families if name not in found]
        for name, reached in tqdm(
            self._map("measure", [(name,) for name in missing], _REFERENCES),
            desc="AdamW",
            total=len(missing),
            disable=not (show_progress and missing),
            unit="family",
        ):
            found[name] = reached
            write_json(path, found, indent=1)
        return {
            name: Reference(*(found[name][k] for k in ("loss", "error", "start")))
            for name in self._config.families
        }

    def _map(
        self, method: str, calls: Sequence[tuple], step: str
    ) -> Iterator[tuple[str, Any]]:
        """Calls a method of `_Worker` once for each family.

        Args:
            method: name of the method.
            calls: arguments of each call; the first one is the family.
            step: step of the search, for the names of leases and files.

        Yields:
            The family and the result of each call, as calls complete.
        """
        if self._leases is not None:
            yield from self._map_shared(method, calls, step)
            return
        if self._pools:
            home = {
                n: i % len(self._pools) for i, n in enumerate(self._config.families)
            }
            futures = {
                self._pools[home[call[0]]].submit(_call_worker, method, call): call[0]
                for call in calls
            }
        else:
            futures = {
                self._threads.submit(getattr(self._local, method), *call): call[0]
                for call in calls
            }
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()

    def _map_shared(
        self, method: str, calls: Sequence[tuple], step: str
    ) -> Iterator[tuple[str, Any]]:
        """As `_map`, with the calls divided among processes that share the search."""

        def path(family: str) -> Path:
            return self._shared / step / f"{family}.json"

        def take_part(lane: int) -> None:
            def evaluate(call: tuple, lease: Lease | None) -> None:
                if path(call[0]).is_file():
                    return
                self._compiled[lane].add(call[0])
                if self._pools:
                    found = (
                        self._pools[lane].submit(_call_worker, method, call).result()
                    )
                else:
                    found = getattr(self._local, method)(*call)
                if lease is not None:
                    lease.check()
                write_json(path(call[0]), found, indent=None)

            # Families whose programs are compiled in this lane come first.
            compiled = self._compiled[lane]
            order = sorted(calls, key=lambda call: call[0] not in compiled)
            share(
                order,
                lambda call: f"{step}, {call[0]}",
                evaluate,
                self._leases,
                stop=self._closed,
            )

        lanes = [self._threads.submit(take_part, lane) for lane in range(self._lanes)]
        try:
            for future in concurrent.futures.as_completed(lanes):
                future.result()
        except BaseException:
            # Otherwise the other lanes would continue, and wait for leases.
            self._closed.set()
            raise
        for call in calls:
            yield call[0], read_json_value(path(call[0]))

    def scores(
        self, candidates: Sequence[PyTree], generation: int
    ) -> tuple[list[float], dict[str, float]]:
        """Returns the score of every candidate, and the last one's for each family."""
        names = self._draw_families(generation)
        by_name = dict(self.scores_by_family(names, candidates, generation))
        # Scores from files are cast to the precision in which they were computed.
        found = [np.asarray(by_name[name], np.float32) for name in names]
        rows = {
            f"score/{name}": float(scores[-1])
            for name, scores in zip(names, found, strict=True)
        }
        total = over_tasks(np.stack(found), self._config.worst_weight)
        return [float(x) for x in total], rows

    def scores_by_family(
        self, names: Sequence[str], candidates: Sequence[PyTree], generation: int
    ) -> Iterator[tuple[str, list[float]]]:
        """Scores every candidate on each of the named families.

        Args:
            names: names of families.
            candidates: weights of the controller.
            generation: index of the generation, which determines the seeds; all
                candidates have the same ones.

        Yields:
            A family and the candidates' scores on it, as families complete.
        """
        thetas = jax.tree.map(lambda *x: np.stack(x), *candidates)
        calls = [(name, thetas, generation, self._references[name]) for name in names]
        yield from self._map("score", calls, f"generation {generation + 1}")

    def _draw_families(self, generation: int) -> list[str]:
        names = list(self._config.families)
        count = self._config.families_per_generation
        if not count or count >= len(names):
            return names
        rng = np.random.default_rng((self._config.seed, generation))
        picks = sorted(rng.choice(len(names), count, replace=False))
        return [names[i] for i in picks]

    def close(self) -> None:
        """Stops the workers and cancels calls that have not begun."""
        self._closed.set()
        for pool in (self._threads, *self._pools):
            pool.shutdown(cancel_futures=True)


class _FamilyEvaluator:
    """Evaluates a population of weights on one family, over several seeds."""

    def __init__(
        self, task: Task, config: FamilyScoresConfig, device: jax.Device
    ) -> None:
        self._task, self._config = task, config
        self._full = config.num_steps.get(task.name, task.horizons[1])
        self._run = PopulationRun(task, learned_on(task, config.controller), device)

    def __call__(
        self, thetas: PyTree, keys: jax.Array, reference: Reference
    ) -> np.ndarray:
        """Returns the scores [candidates] of stacked weights, means over budgets."""
        scores = []
        for budget in self._config.budgets:
            outcome = self._population(thetas, keys, max(1, round(budget * self._full)))
            loss, error = (
                np.mean(x, axis=1) for x in outcome.held_out(self._task.splits)
            )
            weight = self._config.error_weight if budget == 1.0 else 0.0
            objective = meta_objective(
                jnp.asarray(loss),
                jnp.asarray(error),
                jnp.float32(reference.loss),
                jnp.float32(reference.error),
                weight,
                _FLOOR * reference.start,
            )
            scores.append(np.asarray(objective))
        return np.mean(scores, axis=0)

    def _population(self, thetas: PyTree, keys: jax.Array, num_steps: int) -> Outcome:
        run = self._run if self._config.side_by_side else _one_by_one(self._run)
        return run(thetas, keys, num_steps)


class _Worker:
    """Builds tasks and evaluators when first needed, and caches the evaluators."""

    def __init__(self, config: FamilyScoresConfig, make: Callable[[str], Task]) -> None:
        self._config, self._make = config, make
        self._evaluators: dict[str, _FamilyEvaluator] = {}

    def measure(self, name: str) -> dict[str, float]:
        """Returns AdamW's results on a family, see `_tune_adamw`."""
        return _tune_adamw(self._make(name), self._config, self._device(name))

    def score(
        self, name: str, thetas: PyTree, generation: int, reference: Reference
    ) -> list[float]:
        """Returns the scores [candidates] on a family."""
        if name not in self._evaluators:
            self._evaluators[name] = _FamilyEvaluator(
                self._make(name), self._config, self._device(name)
            )
        keys = _keys(self._config, generation)
        return self._evaluators[name](thetas, keys, reference).tolist()

    def _device(self, name: str) -> jax.Device:
        devices = jax.local_devices()
        return devices[self._config.families.index(name) % len(devices)]


_WORKER: list[_Worker] = []
"""In a worker process, a list with its only worker."""


def _begin_worker(config: FamilyScoresConfig, make: Callable[[str], Task]) -> None:
    end_with_parent()
    _WORKER.append(_Worker(config, make))


def _call_worker(method: str, arguments: tuple) -> Any:
    return getattr(_WORKER[0], method)(*arguments)


def _keys(config: FamilyScoresConfig, generation: int) -> jax.Array:
    return jax.random.split(jax.random.key(1000 + generation), config.seeds)


def _one_by_one(run: PopulationRun) -> Callable[[PyTree, jax.Array, int], Outcome]:
    """Runs one setting and seed at a time, which is faster for large models."""

    def run_all(settings: PyTree, keys: jax.Array, num_steps: int) -> Outcome:
        population = []
        for i in range(len(jax.tree.leaves(settings)[0])):
            one = jax.tree.map(lambda x, i=i: x[i : i + 1], settings)
            seeds = [run(one, keys[k : k + 1], num_steps) for k in range(len(keys))]
            population.append(
                jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *seeds)
            )
        return jax.tree.map(lambda *xs: np.concatenate(xs), *population)

    return run_all


def _tune_adamw(
    task: Task,
    config: FamilyScoresConfig,
    device: jax.Device,
) -> dict[str, float]:
    """Tunes AdamW: best learning rate and weight decay by loss, and its results.

    The error rate is the lowest of any pair, which need not be the pair with the
    lowest loss.
    """
    pairs = [(rate, decay) for rate in config.rates for decay in config.decays]
    run = PopulationRun(
        task,
        lambda n, pair: baseline(
            "adamw", n, learning_rate=pair[0], weight_decay=pair[1]
        ),
        device,
    )
    run_all = run if config.side_by_side else _one_by_one(run)
    keys = jax.random.split(jax.random.key(999), config.reference_seeds)
    outcome = run_all(
        jnp.array(pairs, jnp.float32),
        keys,
        config.num_steps.get(task.name, task.horizons[1]),
    )
    # A run of no steps evaluates the initial parameters.
    start = run_all(jnp.array(pairs, jnp.float32), keys, 0).held_out(task.splits)[0]
    loss, error = (np.mean(x, axis=1) for x in outcome.held_out(task.splits))
    chosen = int(np.argmin(np.where(np.isfinite(loss), loss, np.inf)))
    return {
        "loss": float(loss[chosen]),
        "error": float(np.nanmin(error)),
        "start": float(np.mean(start)),
        "learning_rate": pairs[chosen][0],
        "weight_decay": pairs[chosen][1],
    }


def read_or(path: Path, default: Any = ()) -> Any:
    """Returns the JSON value of a file, or ``default`` if the file does not exist.

    A tuple as default is returned as a list.
    """
    if path.is_file():
        return read_json_value(path)
    return list(default) if isinstance(default, tuple) else default
