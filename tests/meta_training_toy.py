"""A meta-training of seconds; as a program, one of the processes that share it.

    python tests/meta_training_toy.py WORKDIR --devices 2 --processes 2 --index 0 \
        --coordinator localhost:1234 --settings '{"estimator": "nres"}'
"""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.meta_training.config import MetaTrainConfig
from meta_opt.meta_training.outer_loop import meta_train
from meta_opt.meta_training.parametrisation import Parametrisation
from meta_opt.optimizers.controller import ControllerConfig, init_theta
from meta_opt.parallel.processes import start_processes
from meta_opt.tasks.task import Splits, Task

SMALL = ControllerConfig(global_hidden=3, tensor_hidden=2, directions=("adam",))


def line_task(name="line", init_scale=1.0):
    """Least squares in three dimensions: compiles in a second."""
    x = jax.random.normal(jax.random.key(7), (24, 3))
    y = x @ jnp.array([1.0, -2.0, 0.5])

    def part(s):
        return {"x": x[s], "y": y[s]}

    def loss(params, arrays):
        error = arrays["x"] @ params["w"] - arrays["y"]
        return jnp.mean(jnp.square(error)), jnp.mean((jnp.abs(error) > 1) * 1.0)

    return Task(
        name=name,
        dataset="line",
        init=lambda key: {"w": init_scale * jax.random.normal(key, (3,))},
        loss=loss,
        splits=Splits(part(slice(0, 12)), part(slice(12, 18)), part(slice(18, 24))),
        batch_size=4,
        feedback_every=2,
        horizons=(3, 8),
    )


def long_task(name):
    """Least squares of that name, in runs of forty steps; module-level for workers."""
    task = line_task(name, init_scale={"steep": 3.0}.get(name, 1.0))
    return dataclasses.replace(task, horizons=(40, 40), feedback_every=0)


def config(**changes):
    base = MetaTrainConfig(
        families=("line",),
        outer_steps=6,
        estimator="es",
        pairs=2,
        particles=2,
        checkpoint_every=2,
        controller=SMALL,
    )
    return dataclasses.replace(base, **changes)


def parametrisation(direct=()):
    """All weights, or a few of them."""
    return Parametrisation(init_theta(jax.random.key(0), SMALL), SMALL, direct)


def validate(theta):
    """In place of meta-validation: the size of the weights; each process runs it."""
    return {"size": float(sum(np.sum(np.abs(x)) for x in jax.tree.leaves(theta)))}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--coordinator", default="")
    parser.add_argument("--settings", type=json.loads, default={})
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.devices)
    start_processes(args.coordinator, args.processes, args.index)
    assert jax.device_count() == args.devices * args.processes
    result = meta_train(
        config(**args.settings),
        {"line": line_task()},
        args.workdir,
        show_progress=False,
        validation=validate,
    )
    leaves = [np.asarray(x).tolist() for x in jax.tree.leaves(result.theta)]
    print(json.dumps({"theta": leaves, "steps": result.steps, "score": result.score}))


if __name__ == "__main__":
    main()
