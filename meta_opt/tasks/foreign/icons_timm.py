"""Folder of an icon: a small ConvNeXt with timm's names, random crops and mixup."""

import jax
import jax.numpy as jnp

from meta_opt.tasks.foreign.data import deal, icons
from meta_opt.tasks.task import Arrays, Task

DIMS, DEPTHS, SCALE = (32, 64), (1, 2), 1e-2

Weights = dict[str, jax.Array]


def create_model(key: jax.Array, num_classes: int) -> Weights:
    """Initialises kernels [out, in, h, w] and [out, in] with std 0.02; zero biases."""
    shapes: dict[str, tuple[int, ...]] = {
        "stem.0.weight": (DIMS[0], 3, 4, 4),
        "stem.0.bias": (DIMS[0],),
        "head.fc.weight": (num_classes, DIMS[1]),
        "head.fc.bias": (num_classes,),
        "stages.1.downsample.1.weight": (DIMS[1], DIMS[0], 2, 2),
        "stages.1.downsample.1.bias": (DIMS[1],),
    }
    norms = {"stem.1": DIMS[0], "stages.1.downsample.0": DIMS[0], "head.norm": DIMS[1]}
    gammas = {}
    for s, (d, depth) in enumerate(zip(DIMS, DEPTHS, strict=True)):
        for b in range(depth):
            at = f"stages.{s}.blocks.{b}"
            shapes[f"{at}.conv_dw.weight"] = (d, 1, 3, 3)
            shapes[f"{at}.conv_dw.bias"] = (d,)
            shapes[f"{at}.mlp.fc1.weight"] = (4 * d, d)
            shapes[f"{at}.mlp.fc1.bias"] = (4 * d,)
            shapes[f"{at}.mlp.fc2.weight"] = (d, 4 * d)
            shapes[f"{at}.mlp.fc2.bias"] = (d,)
            norms[f"{at}.norm"] = d
            gammas[f"{at}.gamma"] = d
    w = {}
    for i, (name, shape) in enumerate(shapes.items()):
        draw = jax.random.truncated_normal(jax.random.fold_in(key, i), -2, 2, shape)
        w[name] = jnp.zeros(shape) if name.endswith("bias") else 0.02 * draw
    for name, d in norms.items():
        w |= {f"{name}.weight": jnp.ones(d), f"{name}.bias": jnp.zeros(d)}
    return w | {name: jnp.full(d, SCALE) for name, d in gammas.items()}


def _add(x: jax.Array, bias: jax.Array) -> jax.Array:
    return x + bias.reshape(*(1,) * (x.ndim - 1), -1)


def _norm(w: Weights, name: str, x: jax.Array) -> jax.Array:
    x = jax.nn.standardize(x, -1, epsilon=1e-6)
    return _add(
        x * w[f"{name}.weight"].reshape(*(1,) * (x.ndim - 1), -1), w[f"{name}.bias"]
    )


def _patchify(w: Weights, name: str, x: jax.Array) -> jax.Array:
    k = w[f"{name}.weight"].shape[-1]
    b, h, v, c = x.shape
    x = x.reshape(b, h // k, k, v // k, k, c)
    return _add(
        jnp.einsum("bhiwjc,ocij->bhwo", x, w[f"{name}.weight"]), w[f"{name}.bias"]
    )


def _block(w: Weights, at: str, x: jax.Array, keep: jax.Array | None) -> jax.Array:
    n, m = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = [padded[:, i : i + n, j : j + m] for i in range(3) for j in range(3)]
    kernel = w[f"{at}.conv_dw.weight"].reshape(-1, 9)
    y = jnp.einsum("kbhwc,ck->bhwc", jnp.stack(seen), kernel)
    y = _norm(w, f"{at}.norm", _add(y, w[f"{at}.conv_dw.bias"]))
    y = jax.nn.gelu(_add(y @ w[f"{at}.mlp.fc1.weight"].T, w[f"{at}.mlp.fc1.bias"]))
    y = _add(y @ w[f"{at}.mlp.fc2.weight"].T, w[f"{at}.mlp.fc2.bias"])
    y = y * w[f"{at}.gamma"].reshape(1, 1, 1, -1)
    return x + (y if keep is None else y * keep)


def convnext(w: Weights, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Maps [B, 32, 32, 3] to logits; with a ``key``, uses stochastic depth."""
    x = _norm(w, "stem.1", _patchify(w, "stem.0", x))
    for s, depth in enumerate(DEPTHS):
        if s:
            x = _norm(w, f"stages.{s}.downsample.0", x)
            x = _patchify(w, f"stages.{s}.downsample.1", x)
        for b in range(depth):
            keep = None
            if key is not None:
                own = jax.random.fold_in(key, 10 * s + b)
                keep = jax.random.bernoulli(own, 0.9, (len(x), 1, 1, 1)) / 0.9
            x = _block(w, f"stages.{s}.blocks.{b}", x, keep)
    x = _norm(w, "head.norm", x.mean((1, 2)))
    return _add(x @ w["head.fc.weight"].T, w["head.fc.bias"])


def _log_loss(
    w: Weights, x: jax.Array, target: jax.Array, key: jax.Array | None
) -> tuple:
    log_p = jax.nn.log_softmax(convnext(w, x, key))
    return -(target * log_p).sum(-1).mean(), (
        log_p.argmax(-1) != target.argmax(-1)
    ).mean()


def icons_convnext(folder: str | None) -> Task:
    """Oxygen's icons in seven folders, 700 for training."""
    found = icons(folder)
    classes = len(found.folders)
    x = (found.images / 255.0 - 0.5).astype("float32") / 0.25

    def loss(w: Weights, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        return _log_loss(w, arrays["x"], jax.nn.one_hot(arrays["y"], classes), None)

    def train_loss(
        w: Weights, arrays: Arrays, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        flip, roll, share, depth = jax.random.split(key, 4)
        x, y = arrays["x"], jax.nn.one_hot(arrays["y"], classes)
        mirrored = jax.random.bernoulli(flip, 0.5, (len(x), 1, 1, 1))
        x = jnp.where(mirrored, x[:, :, ::-1], x)
        steps = jax.random.randint(roll, (2,), -3, 4)
        x = jnp.roll(x, steps, (1, 2))
        lam = jax.random.beta(share, 0.2, 0.2)
        x, y = lam * x + (1 - lam) * x[::-1], lam * y + (1 - lam) * y[::-1]
        return _log_loss(w, x, y, depth)

    return Task(
        name="icons_convnext",
        dataset="foreign",
        init=lambda key: create_model(key, classes),
        loss=loss,
        splits=deal({"x": x, "y": found.labels}, 700, 150, 300),
        batch_size=32,
        horizons=(100, 400),
        train_loss=train_loss,
    )
