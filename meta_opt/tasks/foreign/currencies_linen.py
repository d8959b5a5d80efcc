"""Currency of a name, in any language: a post-LN encoder in Flax linen."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from meta_opt.tasks.foreign.data import currency_names, deal, ids_of_characters
from meta_opt.tasks.task import Arrays, Task
from meta_opt.types import PyTree

INIT = nn.initializers.normal(0.02)
LENGTH = 24


class EncoderLayer(nn.Module):
    """Attention and a GELU MLP, each followed by dropout, residual and norm."""

    hidden: int
    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        """[B, S, D] to [B, S, D]."""
        a = nn.MultiHeadDotProductAttention(
            num_heads=self.heads, kernel_init=INIT, name="self_attention"
        )(x, x, mask=mask)
        a = nn.Dropout(self.dropout, deterministic=not train)(a)
        x = nn.LayerNorm(name="attention_ln")(x + a)
        h = nn.Dense(4 * self.hidden, kernel_init=INIT, name="intermediate")(x)
        h = nn.Dense(self.hidden, kernel_init=INIT, name="output")(nn.gelu(h))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return nn.LayerNorm(name="output_ln")(x + h)


class Bert(nn.Module):
    """Classifies character sequences from the output at the first position."""

    vocabulary: int
    classes: int
    hidden: int = 64
    depth: int = 2
    heads: int = 4
    dropout: float = 0.1

    @nn.compact
    def __call__(self, ids: jax.Array, train: bool = False) -> jax.Array:
        """Maps ids, int [B, S], to logits."""
        ids = jnp.pad(ids, ((0, 0), (1, 0)), constant_values=self.vocabulary)
        real = ids > 0
        mask = nn.make_attention_mask(real, real)
        x = nn.Embed(self.vocabulary + 1, self.hidden, embedding_init=INIT)(ids)
        place = self.param("position_embeddings", INIT, (1, LENGTH + 1, self.hidden))
        x = nn.LayerNorm(name="embeddings_ln")(x + place)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for i in range(self.depth):
            layer = EncoderLayer(self.hidden, self.heads, self.dropout, name=f"l_{i}")
            x = layer(x, mask, train)
        pooled = jnp.tanh(
            nn.Dense(self.hidden, kernel_init=INIT, name="pooler")(x[:, 0])
        )
        return nn.Dense(self.classes, kernel_init=INIT, name="classifier")(pooled)


def currencies_bert(folder: str | None) -> Task:
    """Names of 40 currencies in 67 languages, 1,600 for training."""
    del folder
    names, labels = currency_names()
    ids, vocabulary = ids_of_characters(names, LENGTH)
    splits = deal({"input_ids": ids, "labels": labels}, 1600, 260, 580, seed=4)
    model = Bert(vocabulary, int(labels.max()) + 1)

    def metrics(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return each.mean(), 1.0 - jnp.mean(logits.argmax(-1) == labels)

    def loss(params: PyTree, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        logits: Any = model.apply({"params": params}, arrays["input_ids"])
        return metrics(logits, arrays["labels"])

    def train_loss(
        params: PyTree, arrays: Arrays, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits: Any = model.apply(
            {"params": params}, arrays["input_ids"], train=True, rngs={"dropout": key}
        )
        return metrics(logits, arrays["labels"])

    return Task(
        name="currencies_bert",
        dataset="currencies",
        init=lambda key: model.init(key, splits.train["input_ids"][:1])["params"],
        loss=loss,
        splits=splits,
        batch_size=32,
        horizons=(100, 600),
        train_loss=train_loss,
    )
