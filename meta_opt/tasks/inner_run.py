"""One inner run: trains a task from start to end with any optimizer, and evaluates."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_opt.optimizers.baselines import averaged_params
from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.transformation import learned_transformation
from meta_opt.tasks.inner_step import inner_step
from meta_opt.tasks.perturbations import Condition, Moment, largest
from meta_opt.tasks.task import Splits, Task, count_of, rows_of
from meta_opt.types import PyTree

MakeOptimizer = Callable[[jax.Array, Any], optax.GradientTransformationExtraArgs]
"""``(num_steps, settings) -> optimizer``; both arguments are traced."""


def learned_on(
    task: Task, config: ControllerConfig, safeguard: bool = True
) -> MakeOptimizer:
    """Returns a function from (num_steps, theta) to the learned optimizer for a task.

    The weights theta are an argument of the compiled program, which is reused for
    other weights.
    """
    return lambda num_steps, theta: learned_transformation(
        num_steps,
        theta=theta,
        config=config,
        stacked=task.stacked,
        safeguard=safeguard,
    )


class Outcome(NamedTuple):
    """Held-out losses and error rates after a run; float32 [seeds], NaN on failure."""

    validation_loss: Any
    validation_error: Any
    test_loss: Any
    test_error: Any

    def failed(self) -> np.ndarray:
        """Returns whether any value of a seed is not finite, bool [seeds]."""
        return ~np.isfinite(np.stack([np.asarray(x) for x in self])).all(axis=0)

    def held_out(self, splits: Splits) -> tuple[np.ndarray, np.ndarray]:
        """Returns loss and error rate on validation and test examples together."""
        loss = pooled(splits, self.validation_loss, self.test_loss)
        error = pooled(splits, self.validation_error, self.test_error)
        return np.asarray(loss), np.asarray(error)


def pooled(splits: Splits, validation: Any, test: Any) -> Any:
    """Returns the mean over validation and test examples, from the two means."""
    sizes = [count_of(part) for part in splits[1:]]
    share = sizes[0] / sum(sizes)
    return share * validation + (1 - share) * test


def train_and_evaluate(
    task: Task,
    make_tx: Callable[[Any], optax.GradientTransformationExtraArgs],
    keys: jax.Array,
    num_steps: jax.Array | int,
    condition: Condition | None = None,
) -> Outcome:
    """Trains ``task`` once for each key and evaluates the trained parameters.

    Pure. Initial parameters and batches depend on the key only, not on the optimizer.
    If the task says so, the optimizer is given the loss as ``value`` and the validation
    loss as ``feedback``.

    Args:
        task: the task.
        make_tx: function from the number of steps to the optimizer.
        keys: random keys, [seeds].
        num_steps: length of the runs; may be traced, so that one program serves all
            lengths.
        condition: perturbation of the data and of the optimizer's inputs; its
            ``length`` is not applied here, but must be by the caller.

    Returns:
        Loss and error rate on all validation and all test examples.
    """
    size = count_of(task.splits.train)
    tx = make_tx(num_steps if condition is None else condition.horizon(num_steps))
    classes = {} if condition is None else largest(task.splits.train)

    def run(key: jax.Array) -> Outcome:
        init_key, batch_key = jax.random.split(key)
        start = task.init(init_key)

        def step(t: jax.Array, carry: tuple) -> tuple:
            key = jax.random.fold_in(batch_key, t)
            picks = jax.random.randint(key, (task.batch_size,), 0, size)
            batch = rows_of(task.splits.train, picks)
            # A separate key, so that the batches are those of an unperturbed run.
            moment = Moment(t, num_steps, jax.random.fold_in(key, 1))
            perturb = None
            if condition is not None:
                batch = condition.batch(batch, classes, moment)
                perturb = functools.partial(condition.signal, start, moment)
            loss_key = jax.random.fold_in(key, 2)
            return inner_step(task, tx, t, carry, batch, loss_key, perturb=perturb)

        params, state = jax.lax.fori_loop(0, num_steps, step, (start, tx.init(start)))
        params = averaged_params(state, params)
        return Outcome(
            *task.loss(params, task.splits.validation),
            *task.loss(params, task.splits.test),
        )

    return jax.vmap(run)(keys)


class InnerRun:
    """`train_and_evaluate` as one compiled program for all settings, seeds and lengths.

    Args:
        task: the task; its examples are arguments of the program, not constants.
        make_tx: ``(num_steps, settings) -> optimizer``.
        seeds_at_once: number of seeds that are vmapped in the program. A run of fewer
            seeds takes as long.

    Attributes:
        compile_seconds: seconds spent on compilation; 0 before compilation.
    """

    def __init__(
        self, task: Task, make_tx: MakeOptimizer, seeds_at_once: int = 1
    ) -> None:
        if seeds_at_once < 1:
            raise ValueError(f"seeds_at_once={seeds_at_once} must be at least 1")
        self._task = task
        self._make_tx = make_tx
        self._at_once = seeds_at_once
        self._compiled: Any = None
        self.compile_seconds = 0.0

    def __call__(
        self,
        seeds: Sequence[int],
        num_steps: int,
        settings: PyTree,
        condition: Condition | None = None,
    ) -> tuple[Outcome, float]:
        """Runs all seeds.

        Args:
            seeds: random seeds of initialisation and batches.
            num_steps: length of the runs.
            settings: pytree of numbers, with the same structure and shapes in all
                calls.
            condition: as in `train_and_evaluate`; given in all calls or in none.

        Returns:
            The outcome, NumPy float32 [seeds], and the seconds per seed, excluding
            compilation.
        """
        self.compile(settings, condition)
        parts, seconds = [], 0.0
        for start in range(0, len(seeds), self._at_once):
            some = seeds[start : start + self._at_once]
            args = self._arguments(some, num_steps, settings, condition)
            began = time.perf_counter()
            outcome = jax.block_until_ready(self._compiled(*args))
            seconds += time.perf_counter() - began
            parts.append(Outcome(*(np.asarray(x)[: len(some)] for x in outcome)))
        whole = Outcome(*(np.concatenate(x) for x in zip(*parts, strict=True)))
        return whole, seconds / len(seeds)

    def compile(self, settings: PyTree, condition: Condition | None = None) -> None:
        """Compiles the program if necessary; only structure and shapes matter."""
        if self._compiled is not None:
            return

        def program(
            splits: Splits,
            keys: jax.Array,
            num_steps: jax.Array,
            settings: PyTree,
            condition: Condition | None,
        ) -> Outcome:
            task = dataclasses.replace(self._task, splits=splits)
            return train_and_evaluate(
                task, lambda n: self._make_tx(n, settings), keys, num_steps, condition
            )

        args = self._arguments([0], 1, settings, condition)
        began = time.perf_counter()
        self._compiled = jax.jit(program).lower(*args).compile()
        self.compile_seconds = time.perf_counter() - began

    def _arguments(
        self,
        seeds: Sequence[int],
        num_steps: int,
        settings: PyTree,
        condition: Condition | None,
    ) -> tuple[Splits, jax.Array, jax.Array, PyTree, PyTree]:
        # Pad the last group of seeds: another size would need another program.
        filled = [*seeds, *[seeds[-1]] * (self._at_once - len(seeds))]
        keys = jax.vmap(jax.random.key)(jnp.array(filled, jnp.uint32))
        numbers, disturbed = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float32), (settings, condition)
        )
        return self._task.splits, keys, jnp.int32(num_steps), numbers, disturbed


class PopulationRun:
    """`train_and_evaluate`, vmapped over many settings in one compiled program.

    Args:
        task: the task; its examples are arguments of the program, not constants.
        make_tx: ``(num_steps, settings) -> optimizer``.
        device: device to run the program on; None for the default.

    Example:
        >>> from meta_opt.tasks.families import make_task
        >>> import optax
        >>> task = make_task("digits_mlp")
        >>> run = PopulationRun(task, lambda n, rate: optax.sgd(rate))
        >>> keys = jax.random.split(jax.random.key(0))
        >>> run(jnp.array([0.1, 0.01, 0.0]), keys, 5).validation_loss.shape
        (3, 2)
    """

    def __init__(
        self, task: Task, make_tx: MakeOptimizer, device: jax.Device | None = None
    ) -> None:
        def program(
            splits: Splits, settings: PyTree, keys: jax.Array, num_steps: jax.Array
        ) -> Outcome:
            own = dataclasses.replace(task, splits=splits)
            return jax.vmap(
                lambda one: train_and_evaluate(
                    own, lambda n: make_tx(n, one), keys, num_steps
                )
            )(settings)

        self._task, self._device = task, device
        self._program = jax.jit(program)

    def __call__(self, settings: PyTree, keys: jax.Array, num_steps: int) -> Outcome:
        """Runs all settings on all seeds.

        Args:
            settings: pytree of arrays [population, ...].
            keys: random keys, [seeds]; the same for all settings.
            num_steps: length of the runs.

        Returns:
            The outcome, NumPy float32 [population, seeds].
        """
        given = (self._task.splits, settings, keys, jnp.int32(num_steps))
        outcome = self._program(*jax.device_put(given, self._device))
        return Outcome(*map(np.asarray, outcome))
