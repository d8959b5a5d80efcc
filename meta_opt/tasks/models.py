"""Models of tasks: pure functions for initial parameters, features and the loss.

Losses return ``(loss, error)``. The value of ``error`` is the error rate; its
*derivative* is that of the expected error (one minus the probability of the correct
answer), so that meta-gradients depend on accuracy too.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meta_opt.tasks import nets
from meta_opt.tasks.task import Arrays
from meta_opt.types import PyTree

LossAndError = tuple[jax.Array, jax.Array]


class Model(NamedTuple):
    """A model as functions.

    Attributes:
        init: ``key -> params``; classifiers have their last layer under ``head``.
        loss: ``(params, arrays) -> (loss, error)``.
        features: ``(params, arrays) -> [B, D]``, the inputs of the head; for
            contrastive models the image features.
    """

    init: Callable[[jax.Array], PyTree]
    loss: Callable[[PyTree, Arrays], LossAndError]
    features: Callable[[PyTree, Arrays], jax.Array]


class Tower(NamedTuple):
    """An encoder of one modality, with features [B, D], D = ``width``."""

    init: Callable[[jax.Array], PyTree]
    encode: Callable[[PyTree, Arrays], jax.Array]
    width: int


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None
) -> LossAndError:
    """Returns the (weighted) mean cross entropy and error rate over all positions."""
    log_p = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    wrong = (jnp.argmax(logits, -1) != labels).astype(jnp.float32)
    expected = 1.0 - jnp.exp(own)
    error = expected + jax.lax.stop_gradient(wrong - expected)
    if weights is None:
        return -jnp.mean(own), jnp.mean(error)
    total = jnp.maximum(jnp.sum(weights), 1.0)
    return -jnp.sum(own * weights) / total, jnp.sum(error * weights) / total


def conv_tower(field: str, channels: int, widths: Sequence[int]) -> Tower:
    """A convolutional network on ``arrays[field]`` [B, h, w, c]."""
    return Tower(
        lambda key: nets.init_convnet(key, channels, widths),
        lambda p, x: nets.convnet(p, x[field]),
        widths[-1],
    )


def mlp_tower(field: str, widths: Sequence[int]) -> Tower:
    """A ReLU MLP on flattened ``arrays[field]``; ``widths[0]`` is the input size."""

    def encode(params: PyTree, x: Arrays) -> jax.Array:
        return jax.nn.relu(nets.mlp(params, x[field].reshape(len(x[field]), -1)))

    return Tower(lambda key: nets.init_mlp(key, widths), encode, widths[-1])


def patch_tower(
    field: str, shape: Sequence[int], patch: int, width: int, depth: int
) -> Tower:
    """A vision transformer on images ``[B, *shape]``."""
    h, w, c = shape
    positions = (h // patch) * (w // patch)
    return Tower(
        lambda key: nets.init_transformer(
            key, patch * patch * c, positions, width, depth
        ),
        lambda p, x: nets.pooled(nets.transformer(p, nets.patches(x[field], patch))),
        width,
    )


def sequence_tower(
    field: str, frames: int, inputs: int, width: int, depth: int, join: int = 1
) -> Tower:
    """A transformer on [B, frames, inputs]; ``join`` frames make one token."""

    def encode(params: PyTree, x: Arrays) -> jax.Array:
        tokens = x[field].reshape(len(x[field]), frames // join, join * inputs)
        return nets.pooled(nets.transformer(params, tokens))

    return Tower(
        lambda key: nets.init_transformer(
            key, join * inputs, frames // join, width, depth
        ),
        encode,
        width,
    )


def video_tower(
    field: str, shape: Sequence[int], widths: Sequence[int], width: int
) -> Tower:
    """A convolutional network on each frame of [B, F, h, w, c], then a transformer."""
    frames, _, _, channels = shape

    def init(key: jax.Array) -> PyTree:
        each, over = jax.random.split(key)
        return {
            "frames": nets.init_convnet(each, channels, widths),
            "temporal": nets.init_transformer(over, widths[-1], frames, width, 1),
        }

    def encode(params: PyTree, x: Arrays) -> jax.Array:
        clips = x[field]
        flat = clips.reshape(-1, *clips.shape[2:])
        seen = nets.convnet(params["frames"], flat).reshape(len(clips), frames, -1)
        return nets.pooled(nets.transformer(params["temporal"], seen))

    return Tower(init, encode, width)


def bag_tower(field: str, vocabulary: int, widths: Sequence[int]) -> Tower:
    """A bag of words: an MLP on the mean of token embeddings."""

    def init(key: jax.Array) -> PyTree:
        table, rest = jax.random.split(key)
        return {
            "tokens": nets.init_embedding(table, vocabulary, widths[0]),
            "mlp": nets.init_mlp(rest, widths),
        }

    def encode(params: PyTree, x: Arrays) -> jax.Array:
        mean = nets.pooled(nets.embed(params["tokens"], x[field]), x[field])
        return nets.mlp(params["mlp"], mean)

    return Tower(init, encode, widths[-1])


def text_tower(
    field: str, vocabulary: int, length: int, width: int, depth: int
) -> Tower:
    """A transformer encoder on token ids [B, L]; 0 is padding."""

    def init(key: jax.Array) -> PyTree:
        table, body = jax.random.split(key)
        return {
            "tokens": nets.init_embedding(table, vocabulary, width),
            "body": nets.init_transformer(body, width, length, width, depth),
        }

    def encode(params: PyTree, x: Arrays) -> jax.Array:
        tokens = 10.0 * nets.embed(params["tokens"], x[field])
        out = nets.transformer(params["body"], tokens, mask=x[field])
        return nets.pooled(out, x[field])

    return Tower(init, encode, width)


def classifier(name: str, tower: Tower, classes: int) -> Model:
    """A tower with its parameters under ``name``, and a linear classification head."""

    def init(key: jax.Array) -> PyTree:
        body, head = jax.random.split(key)
        return {
            name: tower.init(body),
            "head": nets.init_dense(head, tower.width, classes),
        }

    def features(params: PyTree, x: Arrays) -> jax.Array:
        return tower.encode(params[name], x)

    def loss(params: PyTree, x: Arrays) -> LossAndError:
        return cross_entropy(
            nets.dense(params["head"], features(params, x)), x["label"]
        )

    return Model(init, loss, features)


def fusion(towers: dict[str, Tower], width: int, classes: int) -> Model:
    """A classifier that fuses one token per modality with a transformer layer."""

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, len(towers) + 2)
        params = {}
        for k, (name, tower) in zip(keys, towers.items(), strict=False):
            body, out = jax.random.split(k)
            params[name] = {
                "tower": tower.init(body),
                "projection": nets.init_dense(out, tower.width, width),
            }
        params["fusion"] = nets.init_transformer(
            keys[-2], width, len(towers), width, depth=1
        )
        params["head"] = nets.init_dense(keys[-1], width, classes)
        return params

    def features(params: PyTree, x: Arrays) -> jax.Array:
        tokens = [
            nets.dense(
                params[name]["projection"], tower.encode(params[name]["tower"], x)
            )
            for name, tower in towers.items()
        ]
        return nets.pooled(nets.transformer(params["fusion"], jnp.stack(tokens, 1)))

    def loss(params: PyTree, x: Arrays) -> LossAndError:
        return cross_entropy(
            nets.dense(params["head"], features(params, x)), x["label"]
        )

    return Model(init, loss, features)


def contrastive(image: Tower, text: Tower, width: int) -> Model:
    """Two towers with the CLIP loss and a trained temperature."""

    def init(key: jax.Array) -> PyTree:
        a, b, c, d = jax.random.split(key, 4)
        return {
            "vision": image.init(a),
            "text": text.init(b),
            "image_projection": nets.init_dense(c, image.width, width),
            "text_projection": nets.init_dense(d, text.width, width),
            "log_scale": jnp.log(14.0),
        }

    def features(params: PyTree, x: Arrays) -> jax.Array:
        return image.encode(params["vision"], x)

    def loss(params: PyTree, x: Arrays) -> LossAndError:
        left = nets.l2_normalize(
            nets.dense(params["image_projection"], features(params, x))
        )
        words = text.encode(params["text"], x)
        right = nets.l2_normalize(nets.dense(params["text_projection"], words))
        scale = jnp.exp(jnp.clip(params["log_scale"], 0.0, 4.6))
        logits = scale * left @ right.T
        labels = jnp.arange(len(logits))
        forward, error = cross_entropy(logits, labels)
        backward, _ = cross_entropy(logits.T, labels)
        return 0.5 * (forward + backward), error

    return Model(init, loss, features)


def language_model(vocabulary: int, length: int, width: int, depth: int) -> Model:
    """A causal transformer on ``arrays["text"]`` [B, L]; 0 is end and padding."""

    def init(key: jax.Array) -> PyTree:
        table, body, head = jax.random.split(key, 3)
        return {
            "text": {
                "tokens": nets.init_embedding(table, vocabulary, width),
                "body": nets.init_transformer(body, width, length, width, depth),
            },
            "head": nets.init_dense(head, width, vocabulary),
        }

    def encode(params: PyTree, x: Arrays) -> jax.Array:
        # 0 is also the start token.
        before = jnp.pad(x["text"][:, :-1], ((0, 0), (1, 0)))
        tokens = 10.0 * nets.embed(params["text"]["tokens"], before)
        return nets.transformer(params["text"]["body"], tokens, causal=True)

    def loss(params: PyTree, x: Arrays) -> LossAndError:
        logits = nets.dense(params["head"], encode(params, x))
        ids = x["text"]
        # The loss covers all letters and the first padding token, which is the end.
        inside = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=1) != 0
        return cross_entropy(logits, ids, inside.astype(jnp.float32))

    return Model(init, loss, lambda p, x: nets.pooled(encode(p, x)))
