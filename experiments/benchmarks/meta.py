"""Speed of meta-gradients compared with plain training."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import optax
from absl import flags

from configs.meta_train import small
from experiments.benchmarks.timing import Ratio, medians
from meta_opt.meta_training.config import MetaTrainConfig
from meta_opt.meta_training.estimation import make_estimator
from meta_opt.meta_training.parametrisation import Parametrisation
from meta_opt.optimizers.controller import init_theta
from meta_opt.tasks.families import make_task
from meta_opt.tasks.task import Task
from meta_opt.types import from_config

_FAMILIES = flags.DEFINE_list(
    "families",
    ["digits_mlp", "cldr_reader", "cldr_writer_lora"],
    "Task families of the meta-training benchmark.",
)
_ESTIMATORS = flags.DEFINE_list(
    "estimators",
    ["es", "bptt"],
    "Gradient estimators of the meta-training benchmark.",
)


def bench_meta() -> Iterator[Ratio]:
    """Measures inner steps per second of a meta-gradient and of plain AdamW training.

    Both train the same number of vmapped runs of a family at full length, with the
    settings of ``configs/meta_train.py:small``, and evaluate them on the test examples.
    The AdamW runs that serve as the baseline of ``es`` are included in the count.
    """
    num_steps = 50
    for family in _FAMILIES.value:
        task = dataclasses.replace(make_task(family), horizons=(num_steps, num_steps))
        for name in _ESTIMATORS.value:
            settings = small().meta.to_dict() | {"families": (family,)}
            whole = {"estimator": name, "least_budget": 1.0, "longest": ()}
            config = from_config(MetaTrainConfig, settings | whole)
            forward, runs = name == "es", config.particles
            if forward:
                runs = 2 * config.pairs + 1 + config.particles * len(config.rates)
            theta = init_theta(jax.random.key(0), config.controller)
            parts = Parametrisation(theta, config.controller)
            estimator = make_estimator(task, config, parts)
            key = jax.random.key(1)
            ms = medians(
                {
                    "ours": partial(estimator.estimate, theta, (), key),
                    "adamw": plain_training(task, runs, num_steps),
                },
                5,
            )
            rate = {n: 1e3 * runs * num_steps / t for n, t in ms.items()}
            label = f"inner steps, {family}, {name} of {runs} runs / adamw"
            target = 0.5 if forward else None
            yield Ratio(label, rate["ours"], rate["adamw"], "steps/s", target)


def plain_training(task: Task, runs: int, num_steps: int) -> Callable[[], jax.Array]:
    """Returns a function that trains vmapped AdamW runs with their own seed and rate.

    Args:
        task: the task.
        runs: number of runs.
        num_steps: length of each run.

    Returns:
        A function of no arguments that returns the test losses.
    """
    size = len(next(iter(task.splits.train.values())))

    def train(
        key: jax.Array, rate: jax.Array, steps: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        tx = optax.adamw(rate)
        init_key, batch_key = jax.random.split(key)

        def step(t: jax.Array, carry: tuple) -> tuple:
            params, state = carry
            picks = jax.random.randint(
                jax.random.fold_in(batch_key, t), (task.batch_size,), 0, size
            )
            batch = {name: x[picks] for name, x in task.splits.train.items()}
            grads = jax.grad(lambda p: task.loss(p, batch)[0])(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = task.init(init_key)
        carry = jax.lax.fori_loop(0, steps, step, (params, tx.init(params)))
        return task.loss(carry[0], task.splits.test)

    keys = jax.random.split(jax.random.key(1), runs)
    mapped = jax.vmap(train, (0, 0, None))
    return partial(jax.jit(mapped), keys, jnp.linspace(1e-4, 1e-3, runs), num_steps)
