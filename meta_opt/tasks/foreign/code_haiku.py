"""Library that a line of code is from: a pre-LN Haiku transformer, from scratch."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.tasks.foreign.data import deal, ids_of_characters, source_text
from meta_opt.tasks.task import Arrays, Task

LIBRARIES = ("scipy", "sklearn", "matplotlib", "flax", "optax", "absl")
LENGTH, DIM = 32, 64


class Block(hk.Module):
    """Pre-LN attention and MLP, initialised by variance scaling with 2 / L."""

    def __call__(self, h: jax.Array, mask: jax.Array, rate: float) -> jax.Array:
        """[B, S, D] to [B, S, D]."""
        w_init = hk.initializers.VarianceScaling(1.0)
        attention = hk.MultiHeadAttention(4, DIM // 4, model_size=DIM, w_init=w_init)
        y = hk.LayerNorm(-1, create_scale=True, create_offset=True)(h)
        y = attention(y, y, y, mask=mask)
        h = h + (hk.dropout(hk.next_rng_key(), rate, y) if rate else y)
        y = hk.LayerNorm(-1, create_scale=True, create_offset=True)(h)
        y = hk.Linear(2 * DIM, w_init=w_init)(y)
        y = hk.Linear(DIM, w_init=w_init)(jax.nn.gelu(y))
        return h + (hk.dropout(hk.next_rng_key(), rate, y) if rate else y)


def code_transformer(folder: str | None) -> Task:
    """Lines of six libraries, 3,000 for training."""
    del folder
    texts: list[str] = []
    labels: list[int] = []
    rng = np.random.default_rng(0)
    for k, library in enumerate(LIBRARIES):
        lines = [line.strip() for line in source_text(library, 600_000).splitlines()]
        lines = sorted({line for line in lines if len(line) >= 20})
        picked = [lines[i] for i in rng.permutation(len(lines))[:800]]
        texts += picked
        labels += [k] * len(picked)
    ids, vocabulary = ids_of_characters(texts, LENGTH)
    arrays = {"ids": ids, "library": np.asarray(labels, np.int32)}
    splits = deal(arrays, 3000, 300, 500)

    def forward(ids: jax.Array, is_training: bool) -> jax.Array:
        rate = 0.1 if is_training else 0.0
        mask = (ids > 0)[:, None, None, :]
        place = hk.get_parameter(
            "pos_embs", (LENGTH, DIM), init=hk.initializers.TruncatedNormal(0.02)
        )
        h = hk.Embed(vocabulary, DIM)(ids) + place[None]
        for _ in range(2):
            h = Block()(h, mask, rate)
        h = hk.LayerNorm(-1, create_scale=True, create_offset=True)(h)
        real = (ids > 0)[..., None]
        return hk.Linear(len(LIBRARIES))((h * real).sum(1) / real.sum(1))

    model = hk.transform(forward)

    def loss(
        params: Any, batch: Arrays, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(params, key, batch["ids"], key is not None)
        log_p = jax.nn.log_softmax(logits)
        y = batch["library"]
        nll = -jnp.mean(log_p[jnp.arange(len(y)), y])
        return nll, jnp.mean(jnp.argmax(logits, -1) != y)

    return Task(
        name="code_transformer",
        dataset="foreign",
        init=lambda key: model.init(key, splits.train["ids"][:2], False),
        loss=loss,
        splits=splits,
        batch_size=32,
        horizons=(100, 300),
        train_loss=loss,
    )
