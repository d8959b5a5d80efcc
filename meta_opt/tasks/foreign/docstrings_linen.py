"""Package of a docstring: MiniLM's last layer and a new head, in Flax linen."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_opt.tasks.foreign.data import deal, docstrings, minilm_below, minilm_tensors
from meta_opt.tasks.task import Arrays, Task
from meta_opt.types import PyTree

LABELS = tuple(
    [f"scipy.{x}" for x in ("stats", "optimize", "signal", "sparse", "interpolate")]
    + [f"sklearn.{x}" for x in ("linear_model", "metrics", "ensemble", "cluster")]
    + ["scipy.linalg"]
)
LENGTH = 20


class SelfAttention(nn.Module):
    """Self-attention with twelve heads and the names of Flax BERT."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, S, D] to [B, S, D]."""
        shape = (*x.shape[:2], 12, 32)
        query = nn.Dense(384, name="query")(x).reshape(shape)
        key = nn.Dense(384, name="key")(x).reshape(shape)
        value = nn.Dense(384, name="value")(x).reshape(shape)
        mask = mask[:, None, None, :] > 0
        return nn.dot_product_attention(query, key, value, mask=mask).reshape(x.shape)


class FlaxBertLayer(nn.Module):
    """Post-LN attention and MLP."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, S, D] to [B, S, D]."""
        a = nn.Dense(384, name="attention_output")(SelfAttention(name="self")(x, mask))
        x = nn.LayerNorm(1e-12, name="attention_LayerNorm")(x + a)
        h = nn.gelu(nn.Dense(1536, name="intermediate")(x), approximate=False)
        h = nn.Dense(384, name="output")(h)
        return nn.LayerNorm(1e-12, name="output_LayerNorm")(x + h)


class ForSequenceClassification(nn.Module):
    """The layer, mean over tokens, dropout, and a zero-initialised linear head."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, train: bool = False) -> jax.Array:
        """[B, S, D] to logits."""
        x = FlaxBertLayer(name="layer_5")(x, mask)
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1)[:, None]
        pooled = nn.Dropout(0.2, deterministic=not train)(pooled)
        zeros = nn.initializers.zeros
        return nn.Dense(len(LABELS), kernel_init=zeros, name="classifier")(pooled)


def pretrained(tensors: dict[str, np.ndarray]) -> PyTree:
    """Converts MiniLM's last layer to the names above, with kernels [in, out]."""
    at = "encoder.layer.5"

    def dense(name: str) -> dict[str, jax.Array]:
        kernel = np.ascontiguousarray(tensors[f"{at}.{name}.weight"].T)
        return {
            "kernel": jnp.asarray(kernel),
            "bias": jnp.asarray(tensors[f"{at}.{name}.bias"]),
        }

    def norm(name: str) -> dict[str, jax.Array]:
        return {
            "scale": jnp.asarray(tensors[f"{at}.{name}.weight"]),
            "bias": jnp.asarray(tensors[f"{at}.{name}.bias"]),
        }

    return {
        "self": {n: dense(f"attention.self.{n}") for n in ("query", "key", "value")},
        "attention_output": dense("attention.output.dense"),
        "attention_LayerNorm": norm("attention.output.LayerNorm"),
        "intermediate": dense("intermediate.dense"),
        "output": dense("output.dense"),
        "output_LayerNorm": norm("output.LayerNorm"),
    }


def docstrings_minilm(folder: str | None) -> Task:
    """Docstrings of ten subpackages of SciPy and scikit-learn, 700 for training."""
    rows = [row for row in docstrings(("scipy", "sklearn")) if row[1] in LABELS]
    order = np.random.default_rng(0).permutation(len(rows))[:1300]
    rows = [rows[i] for i in order]
    arrays = minilm_below([text for text, _ in rows], 5, LENGTH, folder)
    labels = np.asarray([LABELS.index(label) for _, label in rows], np.int32)
    splits = deal({**arrays, "labels": labels}, 700, 150, 300)
    model, layer = ForSequenceClassification(), pretrained(minilm_tensors(folder))

    def init(key: jax.Array) -> PyTree:
        del key  # the head is initialised with zeros
        head = {"kernel": jnp.zeros((384, len(LABELS))), "bias": jnp.zeros(len(LABELS))}
        return {"layer_5": layer, "classifier": head}

    def loss(
        params: PyTree, arrays: Arrays, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        logits: Any = model.apply(
            {"params": params},
            arrays["hidden"],
            arrays["mask"],
            train=key is not None,
            rngs={} if key is None else {"dropout": key},
        )
        labels = arrays["labels"]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return each.mean(), (logits.argmax(-1) != labels).mean()

    return Task(
        name="docstrings_minilm",
        dataset="foreign",
        init=init,
        loss=loss,
        splits=splits,
        batch_size=16,
        horizons=(50, 300),
        train_loss=loss,
    )
