"""Subject of a saying: LoRA on MiniLM's last two layers, in Equinox."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.tasks.foreign.data import deal, minilm_below, minilm_tensors, sayings
from meta_opt.tasks.task import Arrays, Task

SUBJECTS = (
    *("computers", "definitions", "songs-poems", "politics", "science", "art"),
    *("men-women", "zippy", "law", "food", "sports", "pets"),
)
LENGTH, RANK = 16, 4


class LoRALinear(eqx.Module):
    """A frozen linear layer plus trained LoRA factors."""

    base: eqx.nn.Linear
    down: jax.Array
    up: jax.Array

    def __init__(self, base: eqx.nn.Linear, key: jax.Array) -> None:
        self.base = base
        n_out, n_in = base.weight.shape
        self.down = jax.random.normal(key, (RANK, n_in)) / RANK
        self.up = jnp.zeros((n_out, RANK))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[in] to [out]."""
        return self.base(x) + 2.0 * (self.up @ (self.down @ x))


class Layer(eqx.Module):
    """A layer of BERT, on one sentence [S, D]."""

    q: LoRALinear
    k: LoRALinear
    v: LoRALinear
    o: eqx.nn.Linear
    norm1: eqx.nn.LayerNorm
    fc1: LoRALinear
    fc2: LoRALinear
    norm2: eqx.nn.LayerNorm

    def __init__(self, tensors: dict[str, Any], at: str, key: jax.Array) -> None:
        def linear(name: str) -> eqx.nn.Linear:
            w = jnp.asarray(tensors[f"{at}.{name}.weight"])
            b = jnp.asarray(tensors[f"{at}.{name}.bias"])
            made = eqx.nn.Linear(w.shape[1], w.shape[0], key=jax.random.key(0))
            return eqx.tree_at(lambda m: (m.weight, m.bias), made, (w, b))

        def norm(name: str) -> eqx.nn.LayerNorm:
            w = jnp.asarray(tensors[f"{at}.{name}.weight"])
            b = jnp.asarray(tensors[f"{at}.{name}.bias"])
            made = eqx.nn.LayerNorm(384, eps=1e-12)
            return eqx.tree_at(lambda m: (m.weight, m.bias), made, (w, b))

        ks = jax.random.split(key, 5)
        self.q = LoRALinear(linear("attention.self.query"), ks[0])
        self.k = LoRALinear(linear("attention.self.key"), ks[1])
        self.v = LoRALinear(linear("attention.self.value"), ks[2])
        self.o = linear("attention.output.dense")
        self.norm1 = norm("attention.output.LayerNorm")
        self.fc1 = LoRALinear(linear("intermediate.dense"), ks[3])
        self.fc2 = LoRALinear(linear("output.dense"), ks[4])
        self.norm2 = norm("output.LayerNorm")

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps [S, D] to [S, D]; ``mask`` is 0 for padding."""
        q, k, v = (jax.vmap(f)(x).reshape(-1, 12, 32) for f in (self.q, self.k, self.v))
        keep = jnp.broadcast_to(mask[None, None] > 0, (1, len(mask), len(mask)))
        a = jax.nn.dot_product_attention(q, k, v, mask=keep)
        x = jax.vmap(self.norm1)(x + jax.vmap(self.o)(a.reshape(-1, 384)))
        h = jax.nn.gelu(jax.vmap(self.fc1)(x), approximate=False)
        return jax.vmap(self.norm2)(x + jax.vmap(self.fc2)(h))


class Classifier(eqx.Module):
    """Two layers, mean over tokens, dropout, linear head."""

    layers: list[Layer]
    head: eqx.nn.Linear

    def __init__(self, tensors: dict[str, Any], key: jax.Array) -> None:
        k1, k2, k3 = jax.random.split(key, 3)
        self.layers = [
            Layer(tensors, "encoder.layer.4", k1),
            Layer(tensors, "encoder.layer.5", k2),
        ]
        self.head = eqx.nn.Linear(384, len(SUBJECTS), key=k3)

    def __call__(
        self, x: jax.Array, mask: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """[S, D] to logits."""
        for layer in self.layers:
            x = layer(x, mask)
        mean = (x * mask[:, None]).sum(0) / mask.sum()
        return self.head(eqx.nn.Dropout(0.1, inference=key is None)(mean, key=key))


def trained(model: Classifier) -> Any:
    """Returns a filter that is True for the LoRA factors and the head."""
    frozen = jax.tree.map(lambda _: False, model)
    frozen = eqx.tree_at(
        lambda m: m.head, frozen, jax.tree.map(lambda _: True, model.head)
    )

    def factors(m: Classifier) -> list[Any]:
        maps = [x for f in m.layers for x in (f.q, f.k, f.v, f.fc1, f.fc2)]
        return [x for f in maps for x in (f.down, f.up)]

    return eqx.tree_at(factors, frozen, [True] * len(factors(model)))


def sayings_minilm_lora(folder: str | None) -> Task:
    """Sayings of twelve subjects, 480 for training; lower layers are precomputed."""
    rows = [row for row in sayings(folder) if row[1] in SUBJECTS]
    order = np.random.default_rng(0).permutation(len(rows))[:1000]
    rows = [rows[i] for i in order]
    arrays = minilm_below([text for text, _ in rows], 4, LENGTH, folder)
    y = np.asarray([SUBJECTS.index(subject) for _, subject in rows], np.int32)
    tensors = minilm_tensors(folder)
    model = Classifier(tensors, jax.random.key(0))
    _, static = eqx.partition(model, trained(model))

    def init(key: jax.Array) -> Any:
        fresh = Classifier(tensors, key)
        return eqx.filter(fresh, trained(fresh))

    def loss(
        params: Any, arrays: Arrays, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        net, y = eqx.combine(params, static), arrays["y"]
        keys = None if key is None else jax.random.split(key, len(y))
        axes = (0, 0, None if key is None else 0)
        logits = jax.vmap(net, axes)(arrays["hidden"], arrays["mask"], keys)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)
        return -picked.mean(), jnp.mean(logits.argmax(1) != y)

    return Task(
        name="sayings_minilm_lora",
        dataset="foreign",
        init=init,
        loss=loss,
        splits=deal({**arrays, "y": y}, 480, 120, 300),
        batch_size=12,
        horizons=(50, 200),
        train_loss=loss,
    )
