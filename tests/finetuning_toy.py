"""A model, data and loss small enough to train in a test, and a program around it.

As a program (``python finetuning_toy.py WORKDIR [--signal NAME --at STEP]``) it trains
in WORKDIR, resuming if it can, sends itself the signal while step STEP runs, and in the
end writes its parameters to ``WORKDIR/params.npz`` and their hash to ``params.sha256``.
With ``--processes`` and the rest it is one of several, and takes its rows of the data.
"""

import argparse
import hashlib
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_opt.finetuning.interruption import Interrupted
from meta_opt.finetuning.loop import LoopConfig, RunResult
from meta_opt.finetuning.run import run
from meta_opt.parallel.mesh import MeshConfig, local_rows, make_mesh
from meta_opt.parallel.placement import to_host
from meta_opt.parallel.processes import start_processes
from meta_opt.workloads.workload import Workload

CONFIG = LoopConfig(
    num_steps=30,
    batch_size=8,
    seed=3,
    eval_every=8,
    log_every=4,
    checkpoint_every=6,
    progress=False,
)


def make_params(seed=0, width=16):
    rng = np.random.default_rng(seed)

    def normal(scale, *shape):
        return (scale * rng.normal(size=shape)).astype(np.float32)

    return {
        "in": {"kernel": normal(0.3, 6, width)},
        "layers": {"kernel": normal(0.2, 2, width, width)},
        "out": {"kernel": normal(0.3, width, 4)},
    }


def forward(params, x):
    x = x @ params["in"]["kernel"]
    for kernel in params["layers"]["kernel"]:
        x = x + jnp.tanh(x) @ kernel
    return x @ params["out"]["kernel"]


def loss_fn(params, frozen, batch, rng):
    """Squared error under input noise, so that the step's randomness matters."""
    x = batch["x"]
    if frozen:
        x = x + frozen["noise"] * jax.random.uniform(rng, x.shape)
    error = jnp.sum((forward(params, x) - batch["y"]) ** 2, axis=-1)
    return jnp.mean(error), {"distance": jnp.mean(jnp.sqrt(error))}


def make_data(seed=0, count=40):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6)).astype(np.float32)
    w = rng.normal(size=(6, 4)).astype(np.float32)
    return {"x": x, "y": np.tanh(x @ w)}


def make_batches(data, batch_size, seed=0, rows=slice(None)):
    dataset = grain.MapDataset.range(len(data["x"])).shuffle(seed=seed).repeat()
    dataset = dataset.map(lambda i: {k: v[i] for k, v in data.items()})
    dataset = dataset.batch(batch_size)
    dataset = dataset.map(lambda batch: {k: v[rows] for k, v in batch.items()})
    return iter(dataset.to_iter_dataset())


@jax.jit
def _mean_error(params, x, y):
    return jnp.mean((forward(params, x) - y) ** 2)


def make_evaluate(data):
    return lambda params, frozen, split: {
        "loss": float(_mean_error(params, data["x"], data["y"]))
    }


def tuned():
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-3))


def train(workdir=None, config=CONFIG, batches=None, **kwargs) -> RunResult:
    """Runs the toy; of ``kwargs`` some are the workload's, the others the run's."""
    batches = batches or make_batches(make_data(), config.batch_size)
    parts = {
        "params": make_params(),
        "frozen": {"noise": jnp.float32(0.1)},
        "loss_fn": loss_fn,
        "evaluate": make_evaluate(make_data(seed=1)),
        "train_batches": lambda batch_size, seed, rows: batches,
    }
    parts |= {name: kwargs.pop(name) for name in parts.keys() & kwargs.keys()}
    tx = kwargs.pop("tx", None) or tuned()
    return run(Workload(**parts), tx, config, workdir=workdir, **kwargs)


def leaves_by_path(tree):
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def digest(tree) -> str:
    sha = hashlib.sha256()
    for path, leaf in leaves_by_path(tree):
        sha.update(jax.tree_util.keystr(path).encode())
        sha.update(np.asarray(leaf).tobytes())
    return sha.hexdigest()


class SignallingBatches:
    """Raises a signal in this process while the step after batch ``at`` runs."""

    def __init__(self, batches, signum, at, delay=0.0):
        self._batches, self._signum, self._at = batches, signum, at
        self._delay, self._count = delay, 0

    def __next__(self):
        self._count += 1
        if self._count == self._at:
            if self._delay:
                # From another thread: it strikes at any point of the loop.
                timer = threading.Timer(
                    self._delay, os.kill, (os.getpid(), self._signum)
                )
                timer.daemon = True
                timer.start()
            else:
                os.kill(os.getpid(), self._signum)
        return next(self._batches)

    def get_state(self):
        return self._batches.get_state()

    def set_state(self, state):
        self._batches.set_state(state)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--signal", default=None)
    parser.add_argument("--at", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--coordinator", default="")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--mesh", type=json.loads, default={})
    args = parser.parse_args()
    logging.getLogger("meta_opt").setLevel(logging.INFO)
    logging.getLogger("meta_opt").addHandler(logging.StreamHandler())
    start_processes(args.coordinator, args.processes, args.process)
    mesh = MeshConfig(**args.mesh)
    rows = local_rows(make_mesh(mesh), CONFIG.batch_size)
    batches = make_batches(make_data(), CONFIG.batch_size, rows=rows)
    if args.signal:
        signum = getattr(signal, args.signal)
        batches = SignallingBatches(batches, signum, args.at, args.delay)
    try:
        result = train(args.workdir, batches=batches, mesh=mesh)
    except Interrupted as interrupted:
        sys.exit(interrupted.exit_code)
    params = to_host(result.state.params)
    if jax.process_index() == 0:
        flat = {"/".join(k.key for k in path): x for path, x in leaves_by_path(params)}
        np.savez(args.workdir / "params.npz", **flat)
        (args.workdir / "params.sha256").write_text(digest(params))


if __name__ == "__main__":
    main()
