"""A small network for the fine-tuning loop, which compiles in a second."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

BATCH_SIZE = 8
_WIDTH, _INPUTS, _OUTPUTS, _EXAMPLES = 64, 16, 4, 64


def small_workload(pace: float = 0.0) -> Any:
    """Returns two layers that learn a random function, sharded over the fsdp axis.

    Args:
        pace: minimum seconds per step.

    Returns:
        A `meta_opt.workloads.workload.Workload`.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from meta_opt.data.array_batches import array_batches
    from meta_opt.parallel.sharding import FSDP_RULES
    from meta_opt.workloads.workload import Workload

    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / shape[0] ** 0.5).astype(np.float32)

    data = {"x": normal(_EXAMPLES, _INPUTS), "y": normal(_EXAMPLES, _OUTPUTS)}

    def loss_fn(params: Any, frozen: Any, batch: Any, rng: Any) -> Any:
        noisy = batch["x"] + 0.01 * jax.random.normal(rng, batch["x"].shape)
        error = jnp.tanh(noisy @ params["in"]) @ params["out"] - batch["y"]
        return jnp.mean(error**2), {}

    @jax.jit
    def whole_loss(params: Any) -> jax.Array:
        error = jnp.tanh(data["x"] @ params["in"]) @ params["out"] - data["y"]
        return jnp.mean(error**2)

    def evaluate(params: Any, frozen: Any, split: str) -> Mapping[str, float]:
        return {"loss": float(whole_loss(params))}

    def batches(batch_size: int, seed: int, rows: Any) -> Any:
        return _Paced(array_batches(data, batch_size, seed, rows), pace)

    return Workload(
        params={"in": normal(_INPUTS, _WIDTH), "out": normal(_WIDTH, _OUTPUTS)},
        loss_fn=loss_fn,
        train_batches=batches,
        evaluate=evaluate,
        rules=FSDP_RULES,
    )


class _Paced:
    """Iterates over batches with a minimum time between them."""

    def __init__(self, batches: Any, seconds: float) -> None:
        self._batches, self._seconds = batches, seconds

    def __next__(self) -> Any:
        time.sleep(self._seconds)
        return next(self._batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)


def small_run(
    workdir: str | Path | None,
    steps: int,
    every: int,
    pace: float = 0.0,
    stop_when: Callable[[], bool] | None = None,
    **mesh: int,
) -> Any:
    """Trains the small network, see `meta_opt.finetuning.runs.run`.

    Args:
        workdir: folder for logs and checkpoints; None writes nothing.
        steps: number of optimizer updates.
        every: steps between checkpoints and evaluations.
        pace: minimum seconds per step.
        stop_when: called after each evaluation; the run ends if it returns true.
        **mesh: axes of `meta_opt.parallel.mesh.MeshConfig`.
    """
    import optax

    from meta_opt.finetuning.loop_config import LoopConfig
    from meta_opt.finetuning.runs import run
    from meta_opt.parallel.mesh import MeshConfig

    config = LoopConfig(
        *(steps, BATCH_SIZE),
        eval_every=every,
        evaluate_at_start=False,
        log_every=1,
        checkpoint_every=every,
        progress=False,
    )
    return run(
        *(small_workload(pace), optax.adamw(3e-3), config),
        mesh=MeshConfig(**mesh),
        workdir=workdir,
        stop_when=stop_when,
    )
