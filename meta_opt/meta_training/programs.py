"""The compiled programs of all families, and the families of each outer step."""

import concurrent.futures
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from tqdm import tqdm

from meta_opt.meta_training.config import MetaTrainConfig
from meta_opt.meta_training.estimation import make_estimator
from meta_opt.meta_training.estimators.episode import Estimate, Estimator
from meta_opt.meta_training.parametrisation import Parametrisation
from meta_opt.tasks.task import Task
from meta_opt.types import PyTree

_log = logging.getLogger(__name__)

_MAPPINGS_PER_PROGRAM = 6000
"""Approximate number of memory mappings of a program on the CPU."""


class FamilyPrograms:
    """Estimates the meta-gradients of the families of an outer step.

    Without a mesh a step takes as many families as there are local devices, one per
    device; a family stays with its device, so that it is compiled once. With a mesh a
    step takes one family.

    Args:
        config: settings of meta-training, including the families.
        tasks: task of each family.
        parts: map from the meta-trained parameters to the controller's weights.
        mesh: mesh of the particles; None if devices take different families.
        show_progress: whether to show a progress bar while compiling.

    Attributes:
        families: names of the families whose initial loss is finite.

    Raises:
        ValueError: no family has a finite initial loss.
    """

    def __init__(
        self,
        config: MetaTrainConfig,
        tasks: Mapping[str, Task],
        parts: Parametrisation,
        mesh: Mesh | None,
        show_progress: bool,
    ) -> None:
        self.families = [
            name for name in config.families if _has_finite_loss(tasks[name])
        ]
        if not self.families:
            raise ValueError(
                "no family left: no task has a finite loss at its initial parameters"
            )
        devices = jax.local_devices() if mesh is None else []
        self._at_once = max(1, min(len(self.families), len(devices)))
        self._config, self._tasks, self._parts = config, tasks, parts
        self._mesh, self._show_progress = mesh, show_progress
        self._longest = config.longest_at(0)
        self._programs, self._places = self._build()
        self._compiled = False

    def init(self, theta: PyTree, key: jax.Array) -> tuple[PyTree, ...]:
        """Returns the initial state of each program's inner runs.

        Args:
            theta: the meta-trained parameters.
            key: JAX random key.
        """
        keys = jax.random.split(key, len(self._programs))
        return tuple(
            p.init(theta, k) for p, k in zip(self._programs, keys, strict=True)
        )

    def __call__(
        self, theta: PyTree, inner: Sequence[PyTree], step: int, key: jax.Array
    ) -> tuple[list[tuple[str, Estimate]], tuple[PyTree, ...]]:
        """Returns the estimates of one outer step; compiles the programs if necessary.

        Args:
            theta: the meta-trained parameters.
            inner: state of the inner runs, from `init` or the previous call.
            step: index of the outer step, from 0.
            key: JAX random key of this step.

        Returns:
            Families with their estimates, and the new state of the inner runs.
        """
        longest = self._config.longest_at(step)
        if longest != self._longest:
            self._longest, self._compiled = longest, False
            self._programs, self._places = self._build()
        if not self._compiled:
            self._compile(theta, inner)
            self._compiled = True
        turns = _family_indices(len(self.families), self._at_once, step)
        # Dispatch all programs before waiting for any of them.
        taken = [
            self._programs[self._places[turn]].estimate(
                theta, inner[self._places[turn]], jax.random.fold_in(key, i)
            )
            for i, turn in enumerate(turns)
        ]
        moved = list(inner)
        for turn, (_, after) in zip(turns, taken, strict=True):
            moved[self._places[turn]] = after
        estimates = [
            (self.families[turn], estimate)
            for turn, (estimate, _) in zip(turns, taken, strict=True)
        ]
        return estimates, tuple(moved)

    def _build(self) -> tuple[list[Estimator], list[int]]:
        """Returns the programs, and the index of each family's program."""
        families, mesh = self.families, self._mesh
        if mesh is not None:
            names = list(dict.fromkeys(families))
            shared = [self._estimator(name, mesh) for name in names]
            return shared, [names.index(name) for name in families]
        devices = jax.local_devices()
        wanted = [(name, i % len(devices)) for i, name in enumerate(families)]
        unique = list(dict.fromkeys(wanted))

        def build(name: str, device: jax.Device) -> Estimator:
            jitted = self._estimator(name, None)

            def on_device(function: Callable) -> Callable:
                return lambda *args: function(*jax.device_put(args, device))

            return Estimator(on_device(jitted.init), on_device(jitted.estimate))

        built = [build(name, devices[device]) for name, device in unique]
        return built, [unique.index(place) for place in wanted]

    def _estimator(self, name: str, mesh: Mesh | None) -> Estimator:
        return make_estimator(
            self._tasks[name], self._config, self._parts, mesh, self._longest
        )

    def _compile(self, theta: PyTree, inner: Sequence[PyTree]) -> None:
        """Runs every program once, as many concurrently as in a step."""
        _check_mappings(len(self._programs))

        def warm(i: int) -> None:
            taken: Any = self._programs[i].estimate(theta, inner[i], jax.random.key(0))
            jax.block_until_ready(taken)

        with concurrent.futures.ThreadPoolExecutor(self._at_once) as pool:
            done = pool.map(warm, range(len(self._programs)))
            for _ in tqdm(
                done,
                desc="compile",
                total=len(self._programs),
                disable=not self._show_progress,
            ):
                pass


def _family_indices(families: int, at_once: int, step: int) -> list[int]:
    """Returns the indices of a step's families; each family stays with its device."""
    rounds = -(-families // at_once)
    first = step % rounds * at_once
    return [i for i in range(first, first + at_once) if i < families]


def _check_mappings(programs: int) -> None:
    """Raises RuntimeError if Linux allows too few memory mappings for the kernels.

    XLA's CPU backend maps every kernel separately, and crashes beyond the limit.
    """
    limit = Path("/proc/sys/vm/max_map_count")
    if jax.default_backend() != "cpu" or not limit.is_file():
        return
    allowed, needed = int(limit.read_text()), _MAPPINGS_PER_PROGRAM * programs
    if allowed < needed:
        raise RuntimeError(
            f"{programs} programs need about {needed} memory mappings and "
            f"vm.max_map_count is {allowed}: run `sudo sysctl -w "
            f"vm.max_map_count={2 * needed}`, or name fewer families"
        )


def _has_finite_loss(task: Task) -> bool:
    loss, _ = task.loss(task.init(jax.random.key(0)), task.splits.test)
    if not jnp.isfinite(loss):
        _log.warning("task %r is left out: its initial loss is %s", task.name, loss)
    return bool(jnp.isfinite(loss))
