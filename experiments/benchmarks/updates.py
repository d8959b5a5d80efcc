"""Optimizer updates: time, bytes moved, compilation time and import time."""

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags

import meta_opt
from experiments.benchmarks.timing import Ratio, medians
from meta_opt.finetuning.hlo_bytes import bytes_moved
from meta_opt.finetuning.planning import topology_devices
from meta_opt.optimizers.controller import ControllerConfig

_TOPOLOGY = flags.DEFINE_string(
    "topology",
    "",
    "TPU topology to count HLO bytes for, such as v5e:2x2; local devices if empty.",
)

Params = dict[str, jax.Array]


def random_params(shapes: dict[str, tuple[int, ...]]) -> Params:
    """Returns small normal random arrays of the given shapes."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: 0.05 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def learned(
    stacked: str | None = None, pallas: bool = False, **changes: Any
) -> optax.GradientTransformationExtraArgs:
    """Returns the learned optimizer with nonzero output weights of its controller."""
    config = ControllerConfig(**changes)
    theta = meta_opt.init_theta(jax.random.key(0), config)
    theta["output"]["kernel"] += 0.01
    return meta_opt.learned_optimizer(
        1000, theta=theta, config=config, stacked=stacked, pallas=pallas
    )


def updater(
    tx: optax.GradientTransformation, params: Params
) -> tuple[Callable[[], Any], float]:
    """Returns a function that runs one update, and its trace and compile seconds."""
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
    """Times the update, with elementwise directions and with orthogonalisation."""
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


def bench_hlo_bytes() -> Iterator[Ratio]:
    """Counts bytes per parameter that a compiled update reads and writes."""
    device = topology_devices(_TOPOLOGY.value)[0]
    here = jax.sharding.SingleDeviceSharding(device)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("query", "key", "value", "out"):
        shapes[f"layers/{name}/kernel"] = (12, 768, 768)
        shapes[f"layers/{name}/bias"] = (12, 768)
    shapes |= {
        "layers/up/kernel": (12, 768, 3072),
        "layers/down/kernel": (12, 3072, 768),
    }
    params = {
        k: jax.ShapeDtypeStruct(s, jnp.float32, sharding=here)
        for k, s in shapes.items()
    }
    size = sum(math.prod(s) for s in shapes.values())
    elementwise = partial(
        learned, directions=("adam", "momentum"), orthogonal=False, stacked="layers/"
    )

    def moved(tx: optax.GradientTransformation) -> float:
        tx = optax.with_extra_args_support(tx)

        def update(grads: Params, state: Any, params: Params) -> Any:
            updates, state = tx.update(grads, state, params, value=jnp.float32(1.0))
            return optax.apply_updates(params, updates), state

        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
            jax.eval_shape(tx.init, params),
        )
        jitted = jax.jit(update, donate_argnums=(1, 2))
        return (
            bytes_moved(jitted.lower(params, state, params).compile().as_text()) / size
        )

    adamw = moved(optax.adamw(1e-3))
    for label, pallas in (("elementwise", False), ("elementwise, Pallas", True)):
        ours = moved(elementwise(pallas=pallas))
        what = f"update on {device.device_kind}, {label} / adamw"
        yield Ratio(what, ours, adamw, "B/param", 1.0)


def bench_compile() -> Iterator[Ratio]:
    """Times tracing and compilation of the update, for few and for many shapes."""
    transformer: dict[str, tuple[int, ...]] = {}
    for i in range(25):
        block = f"layers/{i}"
        widths = {"up": (64, 256), "down": (256, 64)}
        widths |= {name: (64, 64) for name in ("q", "k", "v", "o")}
        transformer |= {f"{block}/{n}/kernel": shape for n, shape in widths.items()}
        transformer |= {f"{block}/{n}/bias": (64,) for n in ("q", "k", "v", "o")}
        transformer |= {f"{block}/norm{n}/scale": (64,) for n in (1, 2)}
    distinct: dict[str, tuple[int, ...]] = {}
    for i in range(15):
        width = 16 + 8 * i
        distinct |= {f"conv{i}/kernel": (3, 3, width, width + 8)}
        distinct |= {f"conv{i}/bias": (width + 8,)}
        distinct |= {f"dense{i}/kernel": (width + 4, 2 * width)}
        distinct |= {f"dense{i}/bias": (2 * width + 1,)}
    for label, shapes, target in (
        (f"{len(transformer)} tensors", transformer, 3.0),
        (f"{len(distinct)} tensors of as many shapes", distinct, 4.0),
    ):
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
        yield Ratio(f"trace + compile, {label}", ours, theirs, "s", target)


def bench_import() -> Iterator[Ratio]:
    """Times processes that import `meta_opt`, compared with `optax`."""

    def load(module: str) -> Callable[[], Any]:
        command = [sys.executable, "-c", f"import {module}"]
        return lambda: subprocess.run(command, check=True).returncode

    ms = medians({m: load(m) for m in ("optax", "meta_opt, optax")}, 7)
    ours, theirs = ms["meta_opt, optax"], ms["optax"]
    yield Ratio("import meta_opt / import optax", ours, theirs, "ms", 1.3)
