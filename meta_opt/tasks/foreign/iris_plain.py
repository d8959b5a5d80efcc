"""Iris with 60 training examples: a tutorial-style MLP, three matrices in a dict."""

import itertools

import jax
import jax.numpy as jnp

from meta_opt.tasks.foreign.data import deal
from meta_opt.tasks.task import Arrays, Task


def iris_mlp(folder: str | None) -> Task:
    """Fisher's iris; Xavier normal initialisation, tanh, batches of 8."""
    del folder
    from sklearn.datasets import load_iris

    X, y = load_iris(return_X_y=True)
    arrays = {"X": (X / 4 - 1).astype("float32"), "y": y.astype("int32")}

    def init(key: jax.Array) -> dict[str, jax.Array]:
        sizes, p = [4, 40, 20, 3], {}
        for i, (m, n) in enumerate(itertools.pairwise(sizes), 1):
            std = (2.0 / (m + n)) ** 0.5
            p[f"w{i}"] = std * jax.random.normal(jax.random.fold_in(key, i), (m, n))
            p[f"b{i}"] = jnp.zeros(n)
        return p

    def loss(p: dict[str, jax.Array], batch: Arrays) -> tuple[jax.Array, jax.Array]:
        a = jnp.tanh(batch["X"] @ p["w1"] + p["b1"][None])
        a = jnp.tanh(a @ p["w2"] + p["b2"][None])
        logits = a @ p["w3"] + p["b3"][None]
        logp = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
        hit = logits.argmax(1) == batch["y"]
        return -logp[jnp.arange(len(hit)), batch["y"]].mean(), 1 - hit.mean()

    return Task(
        name="iris_mlp",
        dataset="iris",
        init=init,
        loss=loss,
        splits=deal(arrays, 60, 30, 59, seed=1),
        batch_size=8,
        horizons=(50, 300),
        provides_loss=False,
    )
