"""Category of a title: LoRA on MiniLM's last two layers, with Hugging Face's names.

Parameters are a flat dict like a checkpoint: matrices [out, in], dotted names.
"""

import math

import jax
import jax.numpy as jnp

from meta_opt.tasks.foreign.data import (
    clipart_pictures,
    deal,
    minilm_below,
    minilm_tensors,
)
from meta_opt.tasks.task import Arrays, Task

RANK, ALPHA, LENGTH, CLASSES = 8, 16.0, 12, 16
FIRST, LAST = 4, 5
TARGETS = ("query", "value")

Tensors = dict[str, jax.Array]


def _adapted(i: int, target: str) -> str:
    return f"encoder.layer.{i}.attention.self.{target}"


def peft_parameters(key: jax.Array) -> Tensors:
    """Initialises LoRA factors (A uniform, B zero) and the classifier."""
    params = {}
    for i in range(FIRST, LAST + 1):
        for j, target in enumerate(TARGETS):
            k = jax.random.fold_in(key, 10 * i + j)
            name, bound = _adapted(i, target), 1 / math.sqrt(384)
            a = jax.random.uniform(k, (RANK, 384), minval=-bound, maxval=bound)
            params[f"{name}.lora_A.default.weight"] = a
            params[f"{name}.lora_B.default.weight"] = jnp.zeros((384, RANK))
    params["classifier.weight"] = 0.02 * jax.random.normal(key, (CLASSES, 384))
    params["classifier.bias"] = jnp.zeros(CLASSES)
    return params


def titles_minilm_lora(folder: str | None) -> Task:
    """Titles of Open Clip Art, 600 for training; lower four layers are precomputed."""
    _, labels, titles = clipart_pictures(24)
    arrays = minilm_below(titles, FIRST, LENGTH, folder)
    splits = deal({**arrays, "labels": labels}, 600, 150, 300, seed=2)
    base = {
        name: jnp.asarray(value)
        for name, value in minilm_tensors(folder).items()
        if name.startswith(tuple(f"encoder.layer.{i}." for i in (FIRST, LAST)))
    }

    def linear(x: jax.Array, name: str) -> jax.Array:
        return x @ base[f"{name}.weight"].T + base[f"{name}.bias"][None, None]

    def layer_norm(x: jax.Array, name: str) -> jax.Array:
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        y = (x - mean) / jnp.sqrt(var + 1e-12)
        return y * base[f"{name}.weight"][None, None] + base[f"{name}.bias"][None, None]

    def with_lora(
        params: Tensors, x: jax.Array, name: str, key: jax.Array | None
    ) -> jax.Array:
        out = linear(x, name)
        if f"{name}.lora_A.default.weight" not in params:
            return out
        if key is not None:
            x = jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x / 0.9, 0.0)
        low = x @ params[f"{name}.lora_A.default.weight"].T
        return out + ALPHA / RANK * (low @ params[f"{name}.lora_B.default.weight"].T)

    def model(params: Tensors, batch: Arrays, key: jax.Array | None) -> jax.Array:
        x, mask = batch["hidden"], batch["mask"]
        b, s, _ = x.shape
        bias = jnp.where(mask[:, None, None, :] > 0, 0.0, -1e9)
        for i in range(FIRST, LAST + 1):
            layer = f"encoder.layer.{i}"
            heads = {}
            for j, target in enumerate(("query", "key", "value")):
                own = None if key is None else jax.random.fold_in(key, 10 * i + j)
                y = with_lora(params, x, _adapted(i, target), own)
                heads[target] = y.reshape(b, s, 12, 32).transpose(0, 2, 1, 3)
            scores = heads["query"] @ heads["key"].swapaxes(2, 3) / math.sqrt(32)
            context = jax.nn.softmax(scores + bias) @ heads["value"]
            context = context.transpose(0, 2, 1, 3).reshape(b, s, 384)
            attended = linear(context, f"{layer}.attention.output.dense")
            x = layer_norm(x + attended, f"{layer}.attention.output.LayerNorm")
            up = jax.nn.gelu(
                linear(x, f"{layer}.intermediate.dense"), approximate=False
            )
            down = linear(up, f"{layer}.output.dense")
            x = layer_norm(x + down, f"{layer}.output.LayerNorm")
        weights = mask[:, :, None] / mask.sum(1)[:, None, None]
        pooled = (x * weights).sum(1)
        return pooled @ params["classifier.weight"].T + params["classifier.bias"][None]

    def loss(
        params: Tensors, batch: Arrays, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        logits = model(params, batch, key)
        log_probs = jax.nn.log_softmax(logits, axis=-1)
        rows = jnp.arange(len(logits))
        accuracy = jnp.mean(logits.argmax(-1) == batch["labels"])
        return -jnp.mean(log_probs[rows, batch["labels"]]), 1.0 - accuracy

    return Task(
        name="titles_minilm_lora",
        dataset="clipart",
        init=peft_parameters,
        loss=loss,
        splits=splits,
        batch_size=16,
        horizons=(50, 300),
        train_loss=loss,
    )
