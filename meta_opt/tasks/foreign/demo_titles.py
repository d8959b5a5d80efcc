"""A character-level language model of the titles of drawings, with plain dicts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.data import bundled_clipart
from meta_opt.tasks.foreign.data import windows
from meta_opt.tasks.task import Arrays, Splits, Task

SPAN = 32
WIDTH = 64
HEADS = 4
LAYERS = 2
SYMBOLS = 64


def titles_writer(folder: str | None) -> Task:
    """Titles of the bundled drawings as characters; trained from scratch."""
    del folder

    seen: set[bytes] = set()

    def arrays(split: str, stride: int) -> Arrays:
        """Returns windows that earlier splits lack: drawings may share a title."""
        captions = bundled_clipart(split).captions
        text = "\n".join(titles[0].upper() for titles in captions)
        # Printable ASCII without lower case; a line feed ends a title.
        codes = windows(text, SPAN + 1, stride).astype(np.int32)
        ids = np.where(codes < 32, 0, np.clip(codes - 31, 0, SYMBOLS - 1))
        ids = ids[[row.tobytes() not in seen for row in ids]]
        seen.update(row.tobytes() for row in ids)
        return {"ids": ids}

    splits = Splits(arrays("train", 3), arrays("validation", 11), arrays("test", 11))

    def init(key: jax.Array) -> Any:
        keys = iter(jax.random.split(key, 2 + 4 * LAYERS))

        def dense(fan_in: int, fan_out: int) -> jax.Array:
            scale = fan_in**-0.5
            return scale * jax.random.normal(next(keys), (fan_in, fan_out))

        return {
            "tok": 0.02 * jax.random.normal(next(keys), (SYMBOLS, WIDTH)),
            "pos": 0.02 * jax.random.normal(next(keys), (SPAN, WIDTH)),
            "blocks": [
                {
                    "g1": jnp.ones(WIDTH),
                    "qkv": dense(WIDTH, 3 * WIDTH),
                    "proj": dense(WIDTH, WIDTH),
                    "g2": jnp.ones(WIDTH),
                    "fc": dense(WIDTH, 4 * WIDTH),
                    "out": dense(4 * WIDTH, WIDTH),
                }
                for _ in range(LAYERS)
            ],
            "g": jnp.ones(WIDTH),
        }

    def rms(x: jax.Array, gain: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * gain

    def attend(block: Any, x: jax.Array) -> jax.Array:
        q, k, v = jnp.split(rms(x, block["g1"]) @ block["qkv"], 3, -1)
        split = (*x.shape[:2], HEADS, WIDTH // HEADS)
        y = jax.nn.dot_product_attention(
            q.reshape(split), k.reshape(split), v.reshape(split), is_causal=True
        )
        return y.reshape(x.shape) @ block["proj"]

    def loss(params: Any, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        ids = batch["ids"]
        x = params["tok"][ids[:, :-1]] + params["pos"]
        for block in params["blocks"]:
            x = x + attend(block, x)
            x = x + jax.nn.gelu(rms(x, block["g2"]) @ block["fc"]) @ block["out"]
        logits = rms(x, params["g"]) @ params["tok"].T
        log_p = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(log_p, ids[:, 1:, None], -1)
        wrong = jnp.argmax(logits, -1) != ids[:, 1:]
        return jnp.mean(nll), jnp.mean(wrong.astype(jnp.float32))

    return Task(
        name="titles_writer",
        dataset="titles",
        init=init,
        loss=loss,
        splits=splits,
        batch_size=16,
        horizons=(100, 300),
    )
