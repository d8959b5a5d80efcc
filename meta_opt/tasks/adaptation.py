"""Ways to adapt a pre-trained model: full fine-tuning, LoRA, or a linear probe."""

import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_opt.tasks import nets
from meta_opt.tasks.models import LossAndError, Model, cross_entropy
from meta_opt.tasks.task import Arrays
from meta_opt.types import PyTree

_PRETRAIN_BATCH = 64
_PRETRAIN_RATE = 2e-3


class Trainable(Protocol):
    """Interface of models for pre-training, such as `Model`."""

    @property
    def init(self) -> Callable[[jax.Array], PyTree]:
        """``key -> params``."""

    @property
    def loss(self) -> Callable[[PyTree, Arrays], LossAndError]:
        """``(params, arrays) -> (loss, error)``."""

    @property
    def features(self) -> Callable[[PyTree, Arrays], jax.Array]:
        """``(params, arrays) -> [B, D]``."""


def _adamw(schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(schedule, weight_decay=0.05)


def pretrain(
    model: Trainable,
    arrays: dict[str, np.ndarray],
    steps: int = 500,
    peak_rate: float = _PRETRAIN_RATE,
    make_tx: Callable[[optax.Schedule], optax.GradientTransformation] = _adamw,
) -> PyTree:
    """Pre-trains a model with warm-up and cosine decay, by default with AdamW.

    Args:
        model: model to train.
        arrays: examples, all used for training.
        steps: number of steps on batches of 64 examples.
        peak_rate: peak learning rate.
        make_tx: function from the learning rate schedule to an optimizer; by default
            AdamW with weight decay 0.05.

    Returns:
        The parameters, the same in every call.

    Raises:
        FloatingPointError: the final loss is not finite.
    """
    data = {k: jnp.asarray(v) for k, v in arrays.items()}
    size = len(next(iter(data.values())))
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak_rate, steps // 20, steps)
    tx = make_tx(schedule)

    def step(i: jax.Array, carry: tuple) -> tuple:
        params, state = carry
        key = jax.random.fold_in(jax.random.key(1), i)
        picks = jax.random.randint(key, (min(_PRETRAIN_BATCH, size),), 0, size)
        batch = {k: v[picks] for k, v in data.items()}
        grads = jax.grad(lambda p: model.loss(p, batch)[0])(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def run(params: PyTree) -> PyTree:
        return jax.lax.fori_loop(0, steps, step, (params, tx.init(params)))[0]

    params = run(model.init(jax.random.key(0)))
    loss, _ = model.loss(params, {k: v[:_PRETRAIN_BATCH] for k, v in data.items()})
    if not jnp.isfinite(loss):
        raise FloatingPointError(f"pre-training ended with a loss of {loss}")
    return params


def finetuning(model: Model, start: PyTree) -> Model:
    """Full fine-tuning; a head whose shape differs is initialised from scratch."""

    def init(key: jax.Array) -> PyTree:
        fresh = model.init(key)
        shapes = [jax.tree.map(jnp.shape, p.get("head")) for p in (fresh, start)]
        if shapes[0] == shapes[1]:
            return start
        return {**start, "head": fresh["head"]}

    return model._replace(init=init)


def lora(model: Model, start: PyTree, rank: int = 4) -> Model:
    """LoRA factors for the kernels of the encoder, and a fully trained head."""

    def body() -> PyTree:
        return {name: value for name, value in start.items() if name != "head"}

    def init(key: jax.Array) -> PyTree:
        adapters = nets.add_lora(key, body(), rank)
        fresh = finetuning(model, start).init(key)
        if "head" in fresh:
            adapters["head"] = fresh["head"]
        return adapters

    def whole(params: PyTree) -> PyTree:
        return nets.overlay(body(), params)

    return Model(
        init,
        lambda p, x: model.loss(whole(p), x),
        lambda p, x: model.features(whole(p), x),
    )


def head(width: int, classes: int) -> Model:
    """A linear head on precomputed features ``arrays["feature"]`` [B, width]."""

    def loss(params: PyTree, x: Arrays) -> LossAndError:
        return cross_entropy(nets.dense(params["head"], x["feature"]), x["label"])

    return Model(
        lambda key: {"head": nets.init_dense(key, width, classes)},
        loss,
        lambda p, x: x["feature"],
    )


def frozen_features(
    model: Trainable, start: PyTree, arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns features of a pre-trained model [B, D] and the labels.

    Features are standardised over the examples, as usual for linear probes.
    """
    encode: Callable = jax.jit(functools.partial(model.features, start))
    found = np.asarray(encode({k: jnp.asarray(v) for k, v in arrays.items()}))
    scaled = (found - found.mean(0)) / (found.std(0) + 1e-3)
    return {"feature": scaled.astype(np.float32), "label": arrays["label"]}
