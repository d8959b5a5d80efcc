"""Search of a few direct weights by CMA-ES over whole runs of all families.

Where a few dozen numbers decide, and runs are long, a search that compares whole
populations on the same seeds needs fewer runs than gradients that are mostly chaos. The
covariance matrix adaptation is that of the package ``cmaes`` (Hansen 2016,
arXiv:1604.00772).
"""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from meta_opt.meta_training.outer_loop import MetaResult
from meta_opt.meta_training.parametrisation import Parametrisation
from meta_opt.meta_training.scoring import meta_objective, over_tasks
from meta_opt.meta_training.validation import Validation
from meta_opt.optimizers.baselines import baseline
from meta_opt.optimizers.controller import ControllerConfig, init_theta
from meta_opt.optimizers.weights import load_theta
from meta_opt.parallel.processes import end_with_parent
from meta_opt.parallel.workdir import hold_workdir
from meta_opt.run_log import RunLog, progress_bar, write_config
from meta_opt.tasks.inner_run import Outcome, PopulationRun, learned_on
from meta_opt.tasks.task import Task
from meta_opt.text_files import read_json_value, write_json
from meta_opt.types import PyTree, check_least

_HISTORY = "history.json"
_FLOOR = 5e-3
"""Share of a task's initial loss below which differences do not count."""


@dataclasses.dataclass(frozen=True)
class DirectSearchConfig:
    """Settings of the search.

    Attributes:
        families: names of task families.
        num_steps: AdamW's steps by family; a family's larger horizon where left out.
        direct: (name, centre, scale) of each number that is searched: where it begins
            and its first standard deviation. A name is that of a direct weight, see
            `Parametrisation`, or several joined by ``+`` that share the number.
        generations: length of the search; 0 takes the centre as it is.
        population: candidates of a generation; the centre is evaluated beside them.
        seeds: inner runs of each candidate and family, other ones each generation.
        reference_seeds: inner runs of every setting of AdamW.
        budgets: shares of AdamW's steps that candidates are run for.
        rates: learning rates of AdamW, the reference.
        decays: its weight decays; every pair is run once, and the best counts.
        error_weight: weight of the error rate beside the log loss, at the full budget.
        seed: of the search.
        validate_every: generations between meta-validations of the centre.
        controller: the controller's shape.
        worst_weight: weight of the mean over the worst fifth of the families (the
            conditional value at risk) beside the mean over all of them.
        pull: weight of the squared distance from where the search began, in its first
            standard deviations, beside a candidate's score. Outputs are bounded, so
            that without it the search may wander off where nothing changes any more.
        families_per_generation: how many families, drawn at random, a generation runs
            on; 0 for all.
        workers: processes that share the families; 0 for this process alone. Families
            stay with their process, which builds and compiles them.
        side_by_side: whether the candidates of a generation run in one program, which
            suits small models; one after the other is faster for large ones.
        start: weights that what is searched is added to, a shipped name or a path; ""
            for the hand-designed rule.
    """

    families: tuple[str, ...]
    direct: tuple[tuple[str, float, float], ...]
    num_steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    generations: int = 16
    population: int = 15
    seeds: int = 2
    reference_seeds: int = 3
    budgets: tuple[float, ...] = (1.0, 0.4)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    decays: tuple[float, ...] = (1e-2, 0.5)
    error_weight: float = 2.0
    seed: int = 0
    validate_every: int = 2
    controller: ControllerConfig = dataclasses.field(default_factory=ControllerConfig)
    worst_weight: float = 0.5
    pull: float = 0.0
    families_per_generation: int = 0
    workers: int = 0
    side_by_side: bool = True
    start: str = ""

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            ValueError: an empty list, a number out of range, a family that is not
                there.
        """
        for name in ("families", "direct", "budgets", "rates", "decays"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")
        check_least("", self, generations=0, population=4, seeds=1, reference_seeds=1)
        check_least("", self, validate_every=1, families_per_generation=0, workers=0)
        check_least("", self, worst_weight=0, pull=0)
        if not all(0 < b <= 1 for b in self.budgets):
            raise ValueError(f"budgets={self.budgets} must be in (0, 1]")
        if bad := [name for name, _, scale in self.direct if scale <= 0]:
            raise ValueError(f"the scale of {', '.join(bad)} must be above 0")
        if unknown := set(self.num_steps) - set(self.families):
            raise ValueError(f"num_steps names {sorted(unknown)}, not among families")


@dataclasses.dataclass(frozen=True)
class Reference:
    """What AdamW reached at its best setting: mean loss and error rate over seeds.

    Attributes:
        loss: held-out loss.
        error: held-out error rate.
        start: held-out loss before training, which gives the scale of losses.
    """

    loss: float
    error: float
    start: float


def direct_search(
    config: DirectSearchConfig,
    make: Callable[[str], Task],
    workdir: str | Path,
    show_progress: bool = True,
    validation: Validation | None = None,
) -> MetaResult:
    """Searches, or goes on from the last whole generation in ``workdir``.

    Every generation draws candidates, runs each on the families at every budget and
    with the same seeds, and scores it by `meta_objective`: the mean over families, and
    the mean over the worst fifth of them. A generation's scores are all that is kept:
    on resuming, the search is replayed from them, to the bit.

    Args:
        config: settings.
        make: builds the task of a family; with ``workers`` it is pickled.
        workdir: gets ``history.json`` (scores of every generation), ``references.json``
            (AdamW's results), logs and the resolved config.
        show_progress: whether to show bars.
        validation: evaluates the centre every few generations and at the end.

    Returns:
        The centre with the best meta-validation (the last one without), and the last.

    Raises:
        ValueError: an unknown direct weight, a family without task, or another run
            uses ``workdir``.
    """
    with hold_workdir(workdir):
        return _search(config, make, Path(workdir), show_progress, validation)


def _search(
    config: DirectSearchConfig,
    make: Callable[[str], Task],
    workdir: Path,
    show_progress: bool,
    validation: Validation | None,
) -> MetaResult:
    write_config(
        workdir, dataclasses.asdict(config), resuming=(workdir / _HISTORY).is_file()
    )
    began = time.monotonic()
    weights = _Weights(config)
    with contextlib.ExitStack() as stack:
        # Without generations nothing is evaluated, so that AdamW need not be measured.
        families = None
        if config.generations:
            families = _Families(config, make, workdir, show_progress)
            stack.callback(families.close)
        history: list[dict[str, Any]] = _read(workdir / _HISTORY)
        log = RunLog(workdir, resume_step=len(history) if history else None)
        stack.callback(log.close)
        found = _generations(
            config, weights, families, history, log, workdir, show_progress, validation
        )
    return found._replace(seconds=time.monotonic() - began)


def _generations(
    config: DirectSearchConfig,
    weights: "_Weights",
    families: "_Families | None",
    history: list[dict[str, Any]],
    log: RunLog,
    workdir: Path,
    show_progress: bool,
    validation: Validation | None,
) -> MetaResult:
    from cmaes import CMA

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
        replayed = generation < len(history)
        row: dict[str, float] = {}
        entry: dict[str, Any]
        if not replayed and families is not None:
            candidates = [weights.theta(z) for z in (*drawn, centre)]
            scores, row = families.scores(candidates, generation)
            away = [float(np.mean(np.square(z))) for z in (*drawn, centre)]
            scores = [
                score + config.pull * distance
                for score, distance in zip(scores, away, strict=True)
            ]
            history.append({"scores": scores, "validation": None})
        entry = history[generation]
        optimizer.tell(list(zip(drawn, entry["scores"][:-1], strict=True)))
        after = weights.theta(optimizer.mean)
        last = generation + 1 == config.generations
        due = (generation + 1) % config.validate_every == 0 or last
        if validation and due and entry["validation"] is None:
            found = validation(after)
            mean = float(np.mean(list(found.values())))
            row |= {f"validation/{name}": score for name, score in found.items()}
            row["validation/mean"] = entry["validation"] = mean
        if not validation:
            best = after
        elif entry["validation"] is not None and entry["validation"] < best_score:
            best, best_score = after, entry["validation"]
        if replayed:
            continue
        row |= {"score/centre": entry["scores"][-1], "score/best": min(entry["scores"])}
        row |= weights.named(optimizer.mean)
        # The log first: of what the history lacks, resuming drops the lines; what it
        # has is replayed and not logged again.
        log.write(generation + 1, row)
        write_json(workdir / _HISTORY, history, indent=1)
        bar.set_postfix({"centre": f"{entry['scores'][-1]:+.3f}"})
        bar.update()
    bar.close()
    return MetaResult(
        best,
        weights.theta(optimizer.mean),
        best_score,
        config.generations,
        seconds=0.0,
        finished=True,
    )


class _Weights:
    """From the search's standard coordinates to the controller's weights."""

    def __init__(self, config: DirectSearchConfig) -> None:
        self._names = [name.split("+") for name, _, _ in config.direct]
        self._centre = np.array([centre for _, centre, _ in config.direct])
        self._scale = np.array([scale for _, _, scale in config.direct])
        flat = tuple(n for names in self._names for n in names)
        # Nothing random: the LSTMs have no output weight and can begin anew later.
        start = init_theta(jax.random.key(config.seed), config.controller)
        if config.start:
            start, shape = load_theta(config.start)
            # Of the same tensors; how often they iterate is another matter.
            shape = dataclasses.replace(shape, iterations=config.controller.iterations)
            if shape != config.controller:
                raise ValueError(
                    f"start={config.start!r} is of another controller: {shape}"
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


class _FamilyEvaluator:
    """A family's program: a population of weights on several seeds, of any length."""

    def __init__(
        self, task: Task, config: DirectSearchConfig, device: jax.Device
    ) -> None:
        self._task, self._config = task, config
        self._full = config.num_steps.get(task.name, task.horizons[1])
        self._run = PopulationRun(task, learned_on(task, config.controller), device)

    def __call__(
        self, thetas: PyTree, keys: jax.Array, reference: Reference
    ) -> np.ndarray:
        """Scores [candidates] of stacked weights: the mean over budgets."""
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


class _Families:
    """Evaluators of all families: in this process, or spread over workers."""

    def __init__(
        self,
        config: DirectSearchConfig,
        make: Callable[[str], Task],
        workdir: Path,
        show_progress: bool,
    ) -> None:
        self._config = config
        self._local = _Worker(config, make)
        # One process a pool, so that a family always meets its compiled program.
        self._pools = [
            concurrent.futures.ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin_worker,
                initargs=(config, make),
            )
            for _ in range(config.workers)
        ]
        self._threads = concurrent.futures.ThreadPoolExecutor(len(jax.local_devices()))
        self._references = self._measure(workdir, show_progress)

    def _measure(self, workdir: Path, show_progress: bool) -> dict[str, Reference]:
        """AdamW's best results on each family, measured once and kept."""
        path = workdir / "references.json"
        found = _read(path, {})
        missing = [name for name in self._config.families if name not in found]
        for name, reached in tqdm(
            self._map("measure", [(name,) for name in missing]),
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

    def _map(self, method: str, calls: Sequence[tuple]) -> Iterator[tuple[str, Any]]:
        """Calls a method of the worker of each family, the first argument.

        Yields:
            Families and what the call returned, as they are done.
        """
        if self._pools:
            home = {
                n: i % len(self._pools) for i, n in enumerate(self._config.families)
            }
            futures = {
                self._pools[home[call[0]]].submit(_in_worker, method, call): call[0]
                for call in calls
            }
        else:
            futures = {
                self._threads.submit(getattr(self._local, method), *call): call[0]
                for call in calls
            }
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()

    def scores(
        self, candidates: Sequence[PyTree], generation: int
    ) -> tuple[list[float], dict[str, float]]:
        """Score of every candidate, and the last one's on each family."""
        names = self._drawn(generation)
        thetas = jax.tree.map(lambda *x: np.stack(x), *candidates)
        calls = [(name, thetas, generation, self._references[name]) for name in names]
        by_name = dict(self._map("score", calls))
        found = [by_name[name] for name in names]
        rows = {
            f"score/{name}": float(scores[-1])
            for name, scores in zip(names, found, strict=True)
        }
        total = over_tasks(np.stack(found), self._config.worst_weight)
        return [float(x) for x in total], rows

    def _drawn(self, generation: int) -> list[str]:
        names = list(self._config.families)
        count = self._config.families_per_generation
        if not count or count >= len(names):
            return names
        rng = np.random.default_rng((self._config.seed, generation))
        picks = sorted(rng.choice(len(names), count, replace=False))
        return [names[i] for i in picks]

    def close(self) -> None:
        """Ends the workers; what they have not begun is left out."""
        for pool in (self._threads, *self._pools):
            pool.shutdown(cancel_futures=True)


class _Worker:
    """Makes tasks and evaluators when first needed, and keeps the evaluators."""

    def __init__(self, config: DirectSearchConfig, make: Callable[[str], Task]) -> None:
        self._config, self._make = config, make
        self._evaluators: dict[str, _FamilyEvaluator] = {}

    def measure(self, name: str) -> dict[str, float]:
        """What AdamW reaches on a family."""
        return _adamw(self._make(name), self._config, self._device(name))

    def score(
        self, name: str, thetas: PyTree, generation: int, reference: Reference
    ) -> np.ndarray:
        """Scores [candidates] on a family."""
        if name not in self._evaluators:
            self._evaluators[name] = _FamilyEvaluator(
                self._make(name), self._config, self._device(name)
            )
        return self._evaluators[name](
            thetas, _keys(self._config, generation), reference
        )

    def _device(self, name: str) -> jax.Device:
        devices = jax.local_devices()
        return devices[self._config.families.index(name) % len(devices)]


_WORKER: list[_Worker] = []
"""The one of a worker process."""


def _begin_worker(config: DirectSearchConfig, make: Callable[[str], Task]) -> None:
    end_with_parent()
    _WORKER.append(_Worker(config, make))


def _in_worker(method: str, arguments: tuple) -> Any:
    return getattr(_WORKER[0], method)(*arguments)


def _keys(config: DirectSearchConfig, generation: int) -> jax.Array:
    return jax.random.split(jax.random.key(1000 + generation), config.seeds)


def _one_by_one(run: PopulationRun) -> Callable[[PyTree, jax.Array, int], Outcome]:
    """The same program, a setting and a seed at a time: faster for large models."""

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


def _adamw(
    task: Task,
    config: DirectSearchConfig,
    device: jax.Device,
) -> dict[str, float]:
    """The pair of least loss, that loss, and the least error rate of any pair."""
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


def _read(path: Path, default: Any = ()) -> Any:
    """The JSON value of a file; ``default`` (a tuple as a list) if there is none."""
    if path.is_file():
        return read_json_value(path)
    return list(default) if isinstance(default, tuple) else default
