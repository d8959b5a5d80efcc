"""Speaker identification by dilated convolutions, in PyTorch's conventions."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.data import asterisk_arrays
from meta_opt.tasks.task import Arrays, Splits, Task

LAYERS = (
    # name, in, out, kernel, dilation
    ("features.0", 24, 48, 5, 1),
    ("features.3", 48, 48, 3, 2),
    ("features.6", 48, 64, 3, 4),
)
HIDDEN = 64


def kaiming_uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Default of nn.Linear and nn.Conv1d: uniform in +-1 / sqrt(fan_in)."""
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def state_dict(key: jax.Array, classes: int) -> dict[str, jax.Array]:
    """Returns all parameters by dotted name; kernels are [out, in, width]."""
    params = {}
    for i, (name, c_in, c_out, width, _) in enumerate(LAYERS):
        kw, kb = jax.random.split(jax.random.fold_in(key, i))
        params[f"{name}.weight"] = kaiming_uniform(kw, (c_out, c_in, width))
        bound = 1.0 / math.sqrt(c_in * width)
        params[f"{name}.bias"] = jax.random.uniform(kb, (c_out,), minval=-1) * bound
    sizes = (("classifier.0", 64, HIDDEN), ("classifier.3", HIDDEN, classes))
    for i, (name, n_in, n_out) in enumerate(sizes):
        kw, kb = jax.random.split(jax.random.fold_in(key, 10 + i))
        params[f"{name}.weight"] = kaiming_uniform(kw, (n_out, n_in))
        params[f"{name}.bias"] = jax.random.uniform(kb, (n_out,), minval=-1) / n_in**0.5
    return params


def forward(
    sd: dict[str, jax.Array], x: jax.Array, key: jax.Array | None = None
) -> jax.Array:
    """Maps [B, C, T] to logits; with a ``key``, uses dropout."""
    for name, _, _, width, dilation in LAYERS:
        # A matrix product, since XLA's own convolution is slow in a loop on a CPU.
        pad, frames = dilation * (width - 1) // 2, x.shape[2]
        x = jnp.pad(x, ((0, 0), (0, 0), (pad, pad)))
        seen = [x[:, :, i * dilation :][:, :, :frames] for i in range(width)]
        x = jnp.einsum("kbit,oik->bot", jnp.stack(seen), sd[f"{name}.weight"])
        x = jax.nn.relu(x + sd[f"{name}.bias"].reshape(1, -1, 1))
    x = x.max(2)
    x = x @ sd["classifier.0.weight"].T + sd["classifier.0.bias"].reshape(1, -1)
    x = jax.nn.relu(x)
    if key is not None:
        x = jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2.0 * x, 0.0)
    return x @ sd["classifier.3.weight"].T + sd["classifier.3.bias"].reshape(1, -1)


def spec_augment(mel: jax.Array, key: jax.Array) -> jax.Array:
    """Masks a band of up to 6 frequencies and one of up to 8 frames of [C, T]."""
    for axis, most in ((0, 6), (1, 8)):
        key, k1, k2 = jax.random.split(key, 3)
        size = mel.shape[axis]
        width = jax.random.randint(k1, (), 0, most + 1)
        start = jax.random.randint(k2, (), 0, size - width)
        at = jnp.arange(size)
        blank = (at >= start) & (at < start + width)
        mel = jnp.where(jnp.expand_dims(blank, 1 - axis), 0.0, mel)
    return mel


def prompts_tcn(folder: str | None) -> Task:
    """Asterisk's prompts by five speakers, 250 for training."""
    parts, sizes = [], (250, 120, 100)
    moments = None
    for split, size in zip(("train", "validation", "test"), sizes, strict=True):
        found = asterisk_arrays(split, folder)
        order = np.random.default_rng(3).permutation(len(found.mel))[:size]
        mel = found.mel[order].transpose(0, 2, 1)
        if moments is None:
            moments = mel.mean((0, 2), keepdims=True), mel.std((0, 2), keepdims=True)
        mel = (mel - moments[0]) / moments[1]
        target = found.voice[order].astype(np.int32)
        parts.append({"mel": jnp.asarray(mel), "target": jnp.asarray(target)})
    classes = 5

    def criterion(logits: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        picked = jnp.take_along_axis(logits, target[:, None], 1)[:, 0]
        nll = jax.nn.logsumexp(logits, 1) - picked
        return nll.mean(), jnp.mean(logits.argmax(1) != target)

    def train_loss(
        sd: Any, arrays: Arrays, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        drop, blank = jax.random.split(key)
        keys = jax.random.split(blank, len(arrays["mel"]))
        x = jax.vmap(spec_augment)(arrays["mel"], keys)
        return criterion(forward(sd, x, drop), arrays["target"])

    return Task(
        name="prompts_tcn",
        dataset="asterisk",
        init=lambda key: state_dict(key, classes),
        loss=lambda sd, arrays: criterion(forward(sd, arrays["mel"]), arrays["target"]),
        splits=Splits(*parts),
        batch_size=16,
        horizons=(100, 500),
        train_loss=train_loss,
    )
