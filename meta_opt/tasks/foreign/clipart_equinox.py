"""Classification of drawings: a small Equinox ResNet with augmentation, soft labels."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from meta_opt.tasks.foreign.data import clipart_pictures, deal
from meta_opt.tasks.task import Arrays, Task

CLASSES = 16
SMOOTHING = 0.1


class Conv(eqx.Module):
    """A convolution of [C, h, w] with kernel [out, in, k, k], as a matrix product.

    It is initialised like `eqx.nn.Conv2d`. XLA's own convolution is many times slower
    in a loop on a CPU.
    """

    weight: jax.Array
    stride: int = eqx.field(static=True)

    def __init__(
        self, c_in: int, c_out: int, k: int, stride: int, *, key: jax.Array
    ) -> None:
        bound = 1.0 / (c_in * k * k) ** 0.5
        shape = (c_out, c_in, k, k)
        self.weight = jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """[in, h, w] to [out, h / stride, w / stride]."""
        k, (_, h, w) = self.weight.shape[-1], x.shape
        x = jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
        seen = [
            x[:, i : i + h : self.stride, j : j + w : self.stride]
            for i in range(k)
            for j in range(k)
        ]
        kernel = self.weight.reshape(*self.weight.shape[:2], k * k)
        return jnp.einsum("kchw,ock->ohw", jnp.stack(seen), kernel)


class BasicBlock(eqx.Module):
    """Two convolutions and a shortcut; group norm instead of batch norm."""

    conv1: Conv
    norm1: eqx.nn.GroupNorm
    conv2: Conv
    norm2: eqx.nn.GroupNorm
    downsample: Conv | None

    def __init__(self, c_in: int, c_out: int, stride: int, *, key: jax.Array) -> None:
        k1, k2, k3 = jax.random.split(key, 3)
        self.conv1 = Conv(c_in, c_out, 3, stride, key=k1)
        self.norm1 = eqx.nn.GroupNorm(4, c_out)
        self.conv2 = Conv(c_out, c_out, 3, 1, key=k2)
        self.norm2 = eqx.nn.GroupNorm(4, c_out)
        if stride == 1 and c_in == c_out:
            self.downsample = None
        else:
            self.downsample = Conv(c_in, c_out, 1, stride, key=k3)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps one image [C, h, w]."""
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return jax.nn.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(eqx.Module):
    """Stem of stride 2, three blocks, global average pooling, linear head."""

    stem: Conv
    blocks: list[BasicBlock]
    fc: eqx.nn.Linear

    def __init__(self, *, key: jax.Array) -> None:
        ks = jax.random.split(key, 5)
        self.stem = Conv(3, 16, 3, 2, key=ks[0])
        self.blocks = [
            BasicBlock(16, 16, 1, key=ks[1]),
            BasicBlock(16, 32, 2, key=ks[2]),
            BasicBlock(32, 64, 2, key=ks[3]),
        ]
        self.fc = eqx.nn.Linear(64, CLASSES, key=ks[4])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps an image [3, 24, 24] to logits."""
        x = jax.nn.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((1, 2)))


def augment(image: jax.Array, key: jax.Array) -> jax.Array:
    """Randomly crops the padded image [3, h, w], and flips it with probability 1/2."""
    where, side = jax.random.split(key)
    padded = jnp.pad(image, ((0, 0), (3, 3), (3, 3)), mode="edge")
    y, x = jax.random.randint(where, (2,), 0, 7)
    crop = jax.lax.dynamic_slice(padded, (0, y, x), image.shape)
    return jnp.where(jax.random.bernoulli(side), crop[:, :, ::-1], crop)


def clipart_resnet(folder: str | None) -> Task:
    """Open Clip Art at 24 pixels, 16 categories, 1,200 training images."""
    del folder
    pixels, labels, _ = clipart_pictures(24)
    x = pixels.transpose(0, 3, 1, 2).astype("float32") / 255.0
    mean, std = x.mean((0, 2, 3), keepdims=True), x.std((0, 2, 3), keepdims=True)
    splits = deal({"x": (x - mean) / std, "y": labels}, 1200, 200, 400)
    _, static = eqx.partition(ResNet(key=jax.random.key(0)), eqx.is_array)

    def init(key: jax.Array) -> Any:
        return eqx.filter(ResNet(key=key), eqx.is_array)

    def log_probs(params: Any, x: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(jax.vmap(eqx.combine(params, static))(x))

    def loss(params: Any, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        log_p, y = log_probs(params, arrays["x"]), arrays["y"]
        nll = -jnp.take_along_axis(log_p, y[:, None], 1).mean()
        return nll, (log_p.argmax(1) != y).mean()

    def train_loss(
        params: Any, arrays: Arrays, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        y = arrays["y"]
        x = jax.vmap(augment)(arrays["x"], jax.random.split(key, len(y)))
        log_p = log_probs(params, x)
        target = (1 - SMOOTHING) * jax.nn.one_hot(y, CLASSES) + SMOOTHING / CLASSES
        return -(target * log_p).sum(1).mean(), (log_p.argmax(1) != y).mean()

    return Task(
        name="clipart_resnet",
        dataset="clipart",
        init=init,
        loss=loss,
        splits=splits,
        batch_size=32,
        horizons=(80, 400),
        train_loss=train_loss,
    )
