"""Task families that train the last layer of a real pretrained encoder.

Kernels of models with long pre-training differ from new ones in their spectra and in
the spread of their rows and columns, unlike kernels of models trained for seconds. The
names and layouts are those of checkpoints: ``[out, in]`` kernels in a flat dict with
dotted names.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.tasks import sources
from meta_opt.tasks.models import cross_entropy
from meta_opt.tasks.splits import split_examples
from meta_opt.tasks.task import Arrays, BuildTask, Task
from meta_opt.types import PyTree

Encode = Callable[[dict[str, jax.Array], Arrays], jax.Array]
"""``(weights of the layer, batch) -> features [B, D]``."""

_HEADS = 12
_WHISPER_HEADS = 6
_EPSILON = 1e-3


def _linear(w: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    y = x @ w[f"{name}.weight"].T
    if f"{name}.lora_down" in w:
        y = y + 2.0 * (x @ w[f"{name}.lora_down"].T) @ w[f"{name}.lora_up"].T
    return y + w[f"{name}.bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def _norm(
    w: dict[str, jax.Array], name: str, x: jax.Array, epsilon: float
) -> jax.Array:
    shape = (1,) * (x.ndim - 1) + (-1,)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    spread = jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + epsilon)
    scale, shift = w[f"{name}.weight"], w[f"{name}.bias"]
    return centred * spread * scale.reshape(shape) + shift.reshape(shape)


def _attention(
    w: dict[str, jax.Array], x: jax.Array, real: jax.Array, heads: int
) -> jax.Array:
    batch, length, width = x.shape
    q, k, v = (
        _linear(w, name, x).reshape(batch, length, heads, width // heads)
        for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(width / heads)
    scores = jnp.where(real[:, None, None, :], scores, -1e9)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
    return _linear(w, "out", mixed.reshape(batch, length, width))


def _mean(x: jax.Array, real: jax.Array) -> jax.Array:
    weight = real[..., None].astype(x.dtype)
    return jnp.sum(x * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1.0)


def minilm(w: dict[str, jax.Array], arrays: Arrays) -> jax.Array:
    """Post-LN layer of BERT and mean over tokens: [B, S, 384] to [B, 384]."""
    x, real = arrays["x"], arrays["real"]
    x = _norm(w, "attention_norm", x + _attention(w, x, real, _HEADS), 1e-12)
    up = jax.nn.gelu(_linear(w, "up", x), approximate=False)
    return _mean(_norm(w, "mlp_norm", x + _linear(w, "down", up), 1e-12), real)


def whisper(w: dict[str, jax.Array], arrays: Arrays) -> jax.Array:
    """Pre-LN layer of Whisper, final norm and mean: [B, S, 384] to [B, 384]."""
    x, real = arrays["x"], arrays["real"]
    attended = _attention(w, _norm(w, "attention_norm", x, 1e-5), real, _WHISPER_HEADS)
    x = x + attended
    up = jax.nn.gelu(_linear(w, "up", _norm(w, "mlp_norm", x, 1e-5)), approximate=False)
    return _mean(_norm(w, "norm", x + _linear(w, "down", up), 1e-5), real)


def efficientnet(w: dict[str, jax.Array], arrays: Arrays) -> jax.Array:
    """Last inverted bottleneck and final convolution: [B, 2, 2, 192] to [B, 1280]."""

    def batch_norm(x: jax.Array, name: str) -> jax.Array:
        a = w[f"{name}.weight"] * jax.lax.rsqrt(w[f"{name}.var"] + _EPSILON)
        shape = (1, 1, 1, -1)
        return (x - w[f"{name}.mean"].reshape(shape)) * a.reshape(shape) + w[
            f"{name}.bias"
        ].reshape(shape)

    def pointwise(name: str, x: jax.Array) -> jax.Array:
        y = x @ w[f"{name}.weight"].T
        if f"{name}.lora_down" in w:
            y = y + 2.0 * (x @ w[f"{name}.lora_down"].T) @ w[f"{name}.lora_up"].T
        return batch_norm(y, f"{name}_bn")

    x = jnp.clip(pointwise("expand", arrays["x"]), 0.0, 6.0)
    h, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = w["depthwise"]
    shifted = [
        padded[:, i : i + h, j : j + width] * kernel[i, j, 0].reshape(1, 1, 1, -1)
        for i in range(3)
        for j in range(3)
    ]
    x = jnp.sum(jnp.stack(shifted), axis=0)
    x = pointwise("project", jnp.clip(batch_norm(x, "depthwise_bn"), 0.0, 6.0))
    return jnp.mean(jnp.clip(pointwise("head", x), 0.0, 6.0), axis=(1, 2))


_ENCODE: dict[str, Encode] = {
    "minilm": minilm,
    "whisper": whisper,
    "efficientnet": efficientnet,
}
_FROZEN = ("depthwise", ".mean", ".var")


def _trainable(name: str) -> bool:
    return not name.endswith(_FROZEN) and not name.startswith("depthwise")


def _with_factors(
    key: jax.Array, weights: dict[str, jax.Array], targets: tuple[str, ...], rank: int
) -> dict[str, jax.Array]:
    """Initialises LoRA factors of the named kernels as in PEFT: A uniform, B zero."""
    factors = {}
    for i, name in enumerate(targets):
        outputs, inputs = weights[f"{name}.weight"].shape
        bound = 1.0 / np.sqrt(inputs)
        here = jax.random.fold_in(key, i)
        factors[f"{name}.lora_down"] = jax.random.uniform(
            here, (rank, inputs), minval=-bound, maxval=bound
        )
        factors[f"{name}.lora_up"] = jnp.zeros((outputs, rank))
    return factors


def layer_task(
    encoder: str,
    data_dir: str | None,
    *,
    adapt: str = "all",
    rank: int = 8,
    targets: tuple[str, ...] = ("query", "value"),
    train: int = 600,
    batch: int = 32,
    horizons: tuple[int, int] = (30, 150),
    value: bool = True,
) -> Task:
    """Returns a classification task on the last layer of an encoder.

    Args:
        encoder: ``minilm``, ``whisper`` or ``efficientnet``.
        data_dir: folder of prepared datasets and encoders; None for the default.
        adapt: trained parameters besides the new head: ``all`` for the whole layer,
            ``lora`` for LoRA factors, ``head`` for none.
        rank: rank of the LoRA factors.
        targets: names of the kernels with LoRA factors.
        train: maximum number of training examples.
        batch: B, batch size.
        horizons: smallest and largest number of inner steps.
        value: whether the loss is passed to the optimizer.

    Raises:
        MissingDataError: a dataset or encoder that is not prepared.
    """
    parts, pretrained = sources.encoder_layer(encoder, data_dir)
    weights = {k: jnp.asarray(v) for k, v in pretrained.items()}
    encode = _ENCODE[encoder]
    classes = int(parts[0]["label"].max()) + 1
    features = jax.eval_shape(
        encode, weights, {k: jnp.asarray(v[:1]) for k, v in parts[0].items()}
    )
    width = features.shape[1]

    def init(key: jax.Array) -> PyTree:
        head_key, factor_key = jax.random.split(key)
        bound = 1.0 / np.sqrt(width)
        head = {
            "classifier.weight": jax.random.uniform(
                head_key, (classes, width), minval=-bound, maxval=bound
            ),
            "classifier.bias": jnp.zeros(classes),
        }
        if adapt == "head":
            return head
        if adapt == "lora":
            return {**head, **_with_factors(factor_key, weights, targets, rank)}
        return {**head, **{k: v for k, v in weights.items() if _trainable(k)}}

    def loss(params: PyTree, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        logits = _linear(params, "classifier", encode({**weights, **params}, arrays))
        return cross_entropy(logits, arrays["label"])

    return Task(
        name=encoder,
        dataset=sources.ENCODER_DATASET[encoder],
        init=init,
        loss=loss,
        splits=split_examples(parts, train, 400),
        batch_size=batch,
        provides_loss=value,
        horizons=horizons,
    )


_ATTENTION = ("query", "key", "value", "out")

LAYER_FAMILIES: dict[str, BuildTask] = {
    "minilm_layer": functools.partial(layer_task, "minilm"),
    "minilm_layer_few": functools.partial(
        layer_task, "minilm", train=90, batch=16, horizons=(30, 120)
    ),
    "minilm_lora": functools.partial(layer_task, "minilm", adapt="lora"),
    "minilm_lora_wide": functools.partial(
        layer_task,
        "minilm",
        adapt="lora",
        rank=16,
        targets=(*_ATTENTION, "up", "down"),
        train=300,
    ),
    "minilm_head": functools.partial(
        layer_task, "minilm", adapt="head", horizons=(30, 600)
    ),
    "whisper_layer": functools.partial(layer_task, "whisper", batch=16),
    "whisper_lora": functools.partial(
        layer_task, "whisper", adapt="lora", rank=4, targets=_ATTENTION, value=False
    ),
    "whisper_head": functools.partial(
        layer_task, "whisper", adapt="head", batch=64, horizons=(30, 600)
    ),
    "efficientnet_layer": functools.partial(
        layer_task, "efficientnet", batch=24, value=False
    ),
    "efficientnet_lora": functools.partial(
        layer_task,
        "efficientnet",
        adapt="lora",
        targets=("expand", "project", "head"),
        train=300,
    ),
}
"""Functions from a data folder to a task, by family name."""
