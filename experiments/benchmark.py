"""Benchmarks of the learned optimizer: medians and ratios measured in one run.

    python -m experiments.benchmark [--only update,step,compile,memory,import,meta]

Alternatives take turns within each round, so that a drift of the machine's speed
touches them alike; ratios are of medians. Nothing here is a test: a busy machine
prints other numbers.
"""

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

import meta_opt
from configs.meta_train import small
from meta_opt.finetuning.model_source import (
    ModelConfig,
    build_model,
    read_preprocessing,
)
from meta_opt.finetuning.state import init_state
from meta_opt.finetuning.step import make_train_step
from meta_opt.finetuning.vision_text import make_loss
from meta_opt.meta_training.config import MetaTrainConfig
from meta_opt.meta_training.estimation import make_estimator
from meta_opt.meta_training.parametrisation import Parametrisation
from meta_opt.models.lora import LoRAConfig
from meta_opt.models.vision_text import STACKED
from meta_opt.optimizers.controller import ControllerConfig, init_theta
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.parallel.mesh import MeshConfig, make_mesh
from meta_opt.parallel.sharding import FSDP_RULES
from meta_opt.tasks.families import make_task
from meta_opt.tasks.task import Task
from meta_opt.types import from_config

_ONLY = flags.DEFINE_list(
    "only",
    ["update", "step", "compile", "memory", "import", "meta"],
    "what to measure",
)
_FAMILIES = flags.DEFINE_list(
    "families",
    ["digits_mlp", "cldr_reader", "cldr_writer_lora"],
    "task families of the meta-training benchmark",
)
_ESTIMATORS = flags.DEFINE_list("estimators", ["es", "bptt"], "and its estimators")
_BATCH = flags.DEFINE_integer("batch_size", 64, "batch of the training step")

Params = dict[str, jax.Array]


class Ratio(NamedTuple):
    """One line of the report: milliseconds (or another unit) and their ratio.

    The target is a bound on the ratio: from above, or for rates from below.
    """

    what: str
    ours: float
    theirs: float
    unit: str
    target: float | None


def medians(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, taking turns, after two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 2):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            if i >= 2:
                times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(t) for name, t in times.items()}


def random_params(shapes: dict[str, tuple[int, ...]]) -> Params:
    """Small normal numbers in the given shapes."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: 0.05 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def learned(**changes: Any) -> optax.GradientTransformationExtraArgs:
    """The learned optimizer with a controller that decides something."""
    config = ControllerConfig(**changes)
    theta = meta_opt.init_theta(jax.random.key(0), config)
    theta["output"]["kernel"] += 0.01
    return meta_opt.learned_optimizer(1000, theta=theta, config=config)


def updater(
    tx: optax.GradientTransformation, params: Params
) -> tuple[Callable[[], Any], float]:
    """A function that runs one update, and seconds of its trace and compilation."""
    tx = optax.with_extra_args_support(tx)
    state = tx.init(params)
    grads = jax.tree.map(lambda p: 0.1 * p + 0.001, params)

    def update(grads: Params, state: Any, params: Params) -> Any:
        return tx.update(grads, state, params, value=jnp.float32(1.0))

    began = time.perf_counter()
    compiled = jax.jit(update, donate_argnums=1).lower(grads, state, params).compile()
    seconds = time.perf_counter() - began
    held = [state]

    def run() -> Any:
        updates, held[0] = compiled(grads, held[0], params)
        return updates

    return run, seconds


def bench_update() -> Iterator[Ratio]:
    """Update time alone, elementwise directions and with orthogonalisation."""
    sizes = {"1M": (4, 512, 30), "17M": (16, 1024, 5)}
    for name, (count, width, rounds) in sizes.items():
        shapes: dict[str, tuple[int, ...]] = {}
        for i in range(count):
            shapes |= {f"w{i}": (width, width), f"b{i}": (width,)}
        params = random_params(shapes)
        candidates = {
            "adamw": optax.adamw(1e-3),
            "elementwise": learned(directions=("adam", "momentum"), orthogonal=False),
            "with sign": learned(
                directions=("adam", "momentum", "sign"), orthogonal=False
            ),
        }
        runs = {k: updater(tx, params)[0] for k, tx in candidates.items()}
        ms = medians(runs, 3 * rounds)
        for ours in ("elementwise", "with sign"):
            target = 1.5 if ours == "elementwise" else None
            label = f"update {name}, {ours} / adamw"
            yield Ratio(label, ms[ours], ms["adamw"], "ms", target)
        orthogonal = {
            "muon": optax.contrib.muon(1e-3),
            "ours": learned(directions=("orthogonal", "adam", "momentum")),
        }
        runs = {k: updater(tx, params)[0] for k, tx in orthogonal.items()}
        ms = medians(runs, max(rounds // 3, 3))
        label = f"update {name}, orthogonalised / muon"
        yield Ratio(label, ms["ours"], ms["muon"], "ms", 1.0)


def nano_step(name: str, trainable: str) -> tuple[Callable[[], Any], float]:
    """A training step of nano, and the optimizer's bytes a trained parameter."""
    lora = LoRAConfig(r"(attention/(query|value|out)|mlp/(up|down))/kernel$")
    config = ModelConfig(weights="", trainable=trainable, lora=lora)
    model = build_model(config, read_preprocessing(config, text_length=16))
    tx = make_optimizer(OptimizerConfig(name=name, num_steps=1000, stacked=STACKED))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state = init_state(model.params, model.frozen, tx, mesh, FSDP_RULES, seed=0)
    step = jax.jit(make_train_step(make_loss(model), tx), donate_argnums=0)
    batch = {
        "image": jnp.zeros((_BATCH.value, 64, 64, 3), jnp.uint8),
        "text": jax.random.randint(jax.random.key(1), (_BATCH.value, 16), 4, 2048),
        "label": jnp.zeros(_BATCH.value, jnp.int32),
    }
    size = sum(x.size for x in jax.tree.leaves(model.params))
    nbytes = sum(x.nbytes for x in jax.tree.leaves(state.opt_state))
    held = [state]

    def run() -> Any:
        held[0], metrics = step(held[0], batch)
        return metrics

    return run, nbytes / size


def bench_step() -> Iterator[Ratio]:
    """The whole training step of nano."""
    for trainable, target in (("all", 1.25), ("lora", 1.05)):
        runs = {n: nano_step(n, trainable)[0] for n in ("adamw", "learned")}
        ms = medians(runs, 12)
        label = f"nano step at batch {_BATCH.value}, {trainable}, learned / adamw"
        yield Ratio(label, ms["learned"], ms["adamw"], "ms", target)


def bench_memory() -> Iterator[Ratio]:
    """Bytes of optimizer state a parameter."""
    ours, theirs = nano_step("learned", "all")[1], nano_step("adamw", "all")[1]
    yield Ratio("state of nano, learned (target: bytes)", ours, theirs, "B/param", None)


def bench_compile() -> Iterator[Ratio]:
    """Trace and compile time of the update for a transformer of 300 tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(25):
        block = f"layers/{i}"
        shapes |= {f"{block}/{n}/kernel": (64, 64) for n in ("q", "k", "v", "o")}
        shapes |= {f"{block}/up/kernel": (64, 256), f"{block}/down/kernel": (256, 64)}
        shapes |= {f"{block}/{n}/bias": (64,) for n in ("q", "k", "v", "o")}
        shapes |= {f"{block}/norm{n}/scale": (64,) for n in (1, 2)}
    params = random_params(shapes)
    seconds: dict[str, list[float]] = {"ours": [], "adamw": []}
    for _ in range(3):
        for name, tx in (
            ("adamw", optax.adamw(1e-3)),
            ("ours", learned(directions=("orthogonal", "adam", "momentum"))),
        ):
            seconds[name].append(updater(tx, params)[1])
            jax.clear_caches()
    ours, theirs = (statistics.median(seconds[n]) for n in ("ours", "adamw"))
    yield Ratio(f"trace + compile, {len(params)} tensors", ours, theirs, "s", 3.0)


def bench_import() -> Iterator[Ratio]:
    """Whole-process time of ``import meta_opt`` over ``import optax``."""

    def load(module: str) -> Callable[[], Any]:
        command = [sys.executable, "-c", f"import {module}"]
        return lambda: subprocess.run(command, check=True).returncode

    ms = medians({m: load(m) for m in ("optax", "meta_opt, optax")}, 7)
    ours, theirs = ms["meta_opt, optax"], ms["optax"]
    yield Ratio("import meta_opt / import optax", ours, theirs, "ms", 1.3)


def bench_meta() -> Iterator[Ratio]:
    """Inner steps per second in a meta-gradient and in plain AdamW training.

    Both train the same number of vmapped runs of a family from start to end, with the
    settings of ``configs/meta_train.py:small``, and judge them on the test examples.
    The runs of AdamW that ``es`` scores its population against count like the others.
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
    """AdamW training of ``runs`` vmapped runs, each with its own seed and rate."""
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


def main(argv: list[str]) -> None:
    """Runs what was asked for and prints a line for each ratio."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    benches = {
        "update": bench_update,
        "step": bench_step,
        "compile": bench_compile,
        "memory": bench_memory,
        "import": bench_import,
        "meta": bench_meta,
    }
    unknown = set(_ONLY.value) - set(benches)
    if unknown:
        raise app.UsageError(f"unknown {sorted(unknown)}; there are {list(benches)}")
    print(f"{'':56} {'ours':>9} {'theirs':>9} {'':8} {'ratio':>6} target")
    for name in _ONLY.value:
        for what, ours, theirs, unit, target in benches[name]():
            bound = ">=" if unit.endswith("/s") else "<="
            wanted = "" if target is None else f"{bound} {target:g}"
            numbers = f"{ours:9.2f} {theirs:9.2f} {unit:8} {ours / theirs:6.2f}"
            print(f"{what:56} {numbers} {wanted}", flush=True)


if __name__ == "__main__":
    app.run(main)
