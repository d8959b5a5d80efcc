"""Families of tasks by name, each on real data.

============================  ==========================================  ==========
family                        what is trained                             data
============================  ==========================================  ==========
``digits_mlp``                MLP from scratch                            digits
``emoji_mlp``                 MLP from scratch, category                  emoji
``emoji_vit``                 transformer from scratch, category          emoji
``emoji_clip``                image and text towers from scratch          emoji
``emoji_clip_finetune``       the same, pretrained on another artist      emoji
``emoji_clip_lora``           LoRA factors on the pretrained towers       emoji
``emoji_head``                a linear head on pretrained features        emoji
============================  ==========================================  ==========
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_opt.data import emoji_arrays, load_tokenizer, tfds_source
from meta_opt.optimizers.hand_designed import hand_designed
from meta_opt.tasks import nets
from meta_opt.tasks.task import Arrays, Splits, Task
from meta_opt.types import PyTree, near_match

_SIDE = 16
_PATCH = 4
_TEXT = 6
_VOCABULARY = 512
"""Token ids are folded to this many: updates of a large table would cost most."""


def make_task(family: str, data_dir: str | None = None) -> Task:
    """Builds a task of a family.

    Args:
        family: a name in `FAMILIES`.
        data_dir: where prepared datasets are; None for the default.

    Returns:
        The task, its data in memory.

    Raises:
        ValueError: an unknown family.
        MissingDataError: its data has not been prepared; names the command.
    """
    if family not in FAMILIES:
        raise ValueError(
            f"no task family {family!r}{near_match(family, FAMILIES)}; there are "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[family](data_dir)


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(loss), jnp.mean((jnp.argmax(logits, -1) != labels) * 1.0)


def _contrast(
    image: jax.Array, text: jax.Array, log_scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """CLIP loss, and the error of finding the text."""

    def unit(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-8)

    scale = jnp.exp(jnp.clip(log_scale, 0.0, 4.6))
    logits = scale * unit(image) @ unit(text).T
    labels = jnp.arange(len(logits))
    forward, error = _cross_entropy(logits, labels)
    backward, _ = _cross_entropy(logits.T, labels)
    return 0.5 * (forward + backward), error


def _split(arrays: dict[str, np.ndarray], parts: tuple[int, ...], seed: int) -> Splits:
    """Random disjoint parts; the first may be all that is left (-1)."""
    order = np.random.default_rng(seed).permutation(len(next(iter(arrays.values()))))
    train, feedback, target = parts
    ends = np.cumsum([target, feedback])
    picks = (order[ends[1] :], order[ends[0] : ends[1]], order[: ends[0]])
    if train > 0:
        picks = (picks[0][:train], *picks[1:])
    return Splits(*({k: jnp.asarray(v[i]) for k, v in arrays.items()} for i in picks))


@functools.cache
def _emoji(artist: str, data_dir: str | None) -> dict[str, np.ndarray]:
    """Images float32 [B, 16, 16, 3] about in [-1, 1], labels, tokens of the names."""
    pixels, labels, _ = emoji_arrays("train", artist, data_dir, _SIDE)
    source = tfds_source("emoji", "train", data_dir, artists=(artist,))
    texts = [captions[0] for captions in source.captions]
    tokens = load_tokenizer().encode(texts, _TEXT)
    images = pixels.astype(np.float32) / 127.5 - 1.0
    return {
        "image": images,
        "label": labels.astype(np.int32),
        "text": tokens % _VOCABULARY,
    }


def _digits_mlp(data_dir: str | None) -> Task:
    del data_dir
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    arrays = {
        "image": (images / 8.0 - 1.0).astype(np.float32),
        "label": labels.astype(np.int32),
    }
    return Task(
        name="digits_mlp",
        dataset="digits",
        init=lambda key: nets.init_mlp(key, (64, 32, 32, 10)),
        loss=lambda p, x: _cross_entropy(nets.mlp(p, x["image"]), x["label"]),
        splits=_split(arrays, (400, 100, 500), seed=1),
        batch_size=16,
        gives_value=False,
        horizons=(40, 500),
    )


def _emoji_mlp(data_dir: str | None) -> Task:
    def loss(params: PyTree, x: Arrays) -> tuple[jax.Array, jax.Array]:
        cells = nets.patches(x["image"], 2).reshape(len(x["image"]), -1, 4, 3)
        small = jnp.mean(cells, axis=2).reshape(len(x["image"]), -1)
        return _cross_entropy(nets.mlp(params, small), x["label"])

    return Task(
        name="emoji_mlp",
        dataset="emoji",
        init=lambda key: nets.init_mlp(key, (_SIDE**2 // 4 * 3, 48, 32, 10)),
        loss=loss,
        splits=_split(_emoji("twitter", data_dir), (-1, 150, 400), seed=2),
        feedback_every=10,
    )


def _emoji_vit(data_dir: str | None) -> Task:
    def init(key: jax.Array) -> PyTree:
        body, head = jax.random.split(key)
        return {
            "vision": nets.init_transformer(body, _PATCH**2 * 3, 16, 32, 1),
            "head": nets.init_mlp(head, (32, 10))["head"],
        }

    def loss(params: PyTree, x: Arrays) -> tuple[jax.Array, jax.Array]:
        features = nets.transformer(params["vision"], nets.patches(x["image"], _PATCH))
        return _cross_entropy(nets.dense(params["head"], features), x["label"])

    return Task(
        name="emoji_vit",
        dataset="emoji",
        init=init,
        loss=loss,
        splits=_split(_emoji("google", data_dir), (-1, 150, 300), seed=3),
        batch_size=24,
        horizons=(40, 160),
    )


def _init_clip(key: jax.Array) -> PyTree:
    vision, text, image_out, text_out = jax.random.split(key, 4)
    return {
        "vision": nets.init_transformer(vision, _PATCH**2 * 3, 16, 32, 1),
        "text": {"embedding": 0.1 * jax.random.normal(text, (_VOCABULARY, 24))},
        "image_projection": nets.init_mlp(image_out, (32, 24))["head"],
        "text_projection": nets.init_mlp(text_out, (24, 32, 24)),
        # Trained as in CLIP: confidence is what overfits first.
        "log_scale": jnp.log(14.0),
    }


def _clip_features(params: PyTree, x: Arrays) -> tuple[jax.Array, jax.Array]:
    image = nets.transformer(params["vision"], nets.patches(x["image"], _PATCH))
    tokens = params["text"]["embedding"][x["text"]]
    mask = (x["text"] != 0)[..., None].astype(jnp.float32)
    pooled = jnp.sum(tokens * mask, 1) / jnp.maximum(jnp.sum(mask, 1), 1.0)
    return (
        nets.dense(params["image_projection"], image),
        nets.mlp(params["text_projection"], pooled),
    )


def _clip_loss(params: PyTree, x: Arrays) -> tuple[jax.Array, jax.Array]:
    return _contrast(*_clip_features(params, x), params["log_scale"])


@functools.cache
def _pretrained_clip(data_dir: str | None) -> PyTree:
    """Towers after 400 steps on another artist's emoji, by the hand-designed rule."""
    arrays = {k: jnp.asarray(v) for k, v in _emoji("google", data_dir).items()}
    steps = 400
    tx = hand_designed(steps)
    params = _init_clip(jax.random.key(0))

    def step(i: jax.Array, carry: tuple) -> tuple:
        params, state = carry
        key = jax.random.fold_in(jax.random.key(1), i)
        picks = jax.random.randint(key, (64,), 0, len(arrays["label"]))
        batch = {k: v[picks] for k, v in arrays.items()}
        grads = jax.grad(lambda p: _clip_loss(p, batch)[0])(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    run = jax.jit(lambda p: jax.lax.fori_loop(0, steps, step, (p, tx.init(p)))[0])
    return jax.block_until_ready(run(params))


def _emoji_clip(data_dir: str | None) -> Task:
    return Task(
        name="emoji_clip",
        dataset="emoji",
        init=_init_clip,
        loss=_clip_loss,
        splits=_split(_emoji("fluent", data_dir), (-1, 64, 128), seed=4),
        batch_size=24,
        horizons=(40, 160),
    )


def _emoji_clip_finetune(data_dir: str | None) -> Task:
    start = _pretrained_clip(data_dir)
    return Task(
        name="emoji_clip_finetune",
        dataset="emoji",
        init=lambda key: start,
        loss=_clip_loss,
        splits=_split(_emoji("openmoji", data_dir), (400, 64, 192), seed=5),
        feedback_every=10,
        batch_size=24,
        horizons=(30, 160),
    )


def _emoji_clip_lora(data_dir: str | None) -> Task:
    start = _pretrained_clip(data_dir)
    return Task(
        name="emoji_clip_lora",
        dataset="emoji",
        init=lambda key: nets.add_lora(key, start, rank=4),
        loss=lambda p, x: _clip_loss(nets.with_lora(start, p), x),
        splits=_split(_emoji("twitter", data_dir), (600, 64, 128), seed=6),
        batch_size=24,
        horizons=(30, 160),
    )


def _emoji_head(data_dir: str | None) -> Task:
    start = _pretrained_clip(data_dir)
    arrays = _emoji("openmoji", data_dir)
    features = jax.jit(lambda x: _clip_features(start, x)[0])(
        {k: jnp.asarray(v) for k, v in arrays.items()}
    )
    arrays = {"feature": np.asarray(features), "label": arrays["label"]}
    return Task(
        name="emoji_head",
        dataset="emoji",
        init=lambda key: nets.init_mlp(key, (24, 10)),
        loss=lambda p, x: _cross_entropy(nets.mlp(p, x["feature"]), x["label"]),
        splits=_split(arrays, (300, 100, 500), seed=7),
        batch_size=16,
        horizons=(40, 800),
    )


FAMILIES: dict[str, Callable[[str | None], Task]] = {
    "digits_mlp": _digits_mlp,
    "emoji_mlp": _emoji_mlp,
    "emoji_vit": _emoji_vit,
    "emoji_clip": _emoji_clip,
    "emoji_clip_finetune": _emoji_clip_finetune,
    "emoji_clip_lora": _emoji_clip_lora,
    "emoji_head": _emoji_head,
}
