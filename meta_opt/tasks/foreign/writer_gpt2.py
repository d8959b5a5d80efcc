"""A small byte-level GPT-2, pre-trained on German manual pages, then adapted.

`sayings_writer_lora` adapts it to English sayings by LoRA; `kinds_few_shot` fine-tunes
it to classify texts, with 120 examples. Names and layouts are GPT-2's: ``Conv1D``
matrices [in, out], and ``c_attn`` for queries, keys and values together.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from meta_opt.tasks.foreign.data import (
    deal,
    docstrings,
    in_turn,
    manual_pages,
    sayings,
    source_text,
    windows,
)
from meta_opt.tasks.task import Arrays, Task

N_VOCAB, N_CTX, N_EMBD, N_HEAD, N_LAYER = 128, 64, 96, 4, 2

Params = dict[str, jax.Array]


def from_scratch(key: jax.Array) -> Params:
    """Initialises with std 0.02; residual projections are scaled down by the depth."""
    d, p = N_EMBD, {}
    shapes = {"wte": (N_VOCAB, d), "wpe": (N_CTX, d)}
    for i in range(N_LAYER):
        shapes[f"h{i}.attn.c_attn.w"] = (d, 3 * d)
        shapes[f"h{i}.attn.c_proj.w"] = (d, d)
        shapes[f"h{i}.mlp.c_fc.w"] = (d, 4 * d)
        shapes[f"h{i}.mlp.c_proj.w"] = (4 * d, d)
    for j, (name, shape) in enumerate(shapes.items()):
        std = 0.02 / (2 * N_LAYER) ** 0.5 if "c_proj" in name else 0.02
        p[name] = std * jax.random.normal(jax.random.fold_in(key, j), shape)
        if name.endswith(".w"):
            p[f"{name[:-2]}.b"] = jnp.zeros(shape[1])
    for name in [f"h{i}.ln_{k}" for i in range(N_LAYER) for k in (1, 2)] + ["ln_f"]:
        p[f"{name}.g"], p[f"{name}.b"] = jnp.ones(d), jnp.zeros(d)
    return p


def hidden(p: Params, tokens: jax.Array, lora: Params | None = None) -> jax.Array:
    """Maps bytes, int [B, S], to hidden states [B, S, D]."""

    def norm(x: jax.Array, name: str) -> jax.Array:
        x = jax.nn.standardize(x, -1, epsilon=1e-5)
        return x * p[f"{name}.g"][None, None] + p[f"{name}.b"][None, None]

    def conv1d(x: jax.Array, name: str) -> jax.Array:
        y = x @ p[f"{name}.w"] + p[f"{name}.b"][None, None]
        if lora is not None and f"{name}.A" in lora:
            y = y + (x @ lora[f"{name}.A"]) @ lora[f"{name}.B"]
        return y

    b, s = tokens.shape
    x = p["wte"][tokens] + p["wpe"][None, :s]
    for i in range(N_LAYER):
        qkv = conv1d(norm(x, f"h{i}.ln_1"), f"h{i}.attn.c_attn")
        q, k, v = (a.reshape(b, s, N_HEAD, -1) for a in jnp.split(qkv, 3, -1))
        a = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + conv1d(a.reshape(b, s, -1), f"h{i}.attn.c_proj")
        h = jax.nn.gelu(conv1d(norm(x, f"h{i}.ln_2"), f"h{i}.mlp.c_fc"))
        x = x + conv1d(h, f"h{i}.mlp.c_proj")
    return norm(x, "ln_f")


def lm_loss(
    p: Params, tokens: jax.Array, lora: Params | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns next-byte cross entropy and error; the output is tied to ``wte``."""
    tokens = tokens.astype(jnp.int32)
    logits = hidden(p, tokens[:, :-1], lora) @ p["wte"].T
    each = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return each.mean(), (logits.argmax(-1) != tokens[:, 1:]).mean()


def _bytes(text: str) -> np.ndarray:
    return np.minimum(windows(text, N_CTX + 1, N_CTX + 1), N_VOCAB - 1)


@functools.cache
def checkpoint(folder: str | None, steps: int = 600) -> Params:
    """Returns the model after a few hundred steps of Adam on manual pages."""
    pages = manual_pages(folder)
    order = np.random.default_rng(2).permutation(len(pages))
    data = jnp.asarray(_bytes("\n".join(pages[i].text for i in order[:500])))
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

    def step(i: jax.Array, carry: tuple) -> tuple:
        p, state = carry
        picks = jax.random.randint(
            jax.random.fold_in(jax.random.key(2), i), (16,), 0, len(data)
        )
        grads = jax.grad(lambda p: lm_loss(p, data[picks])[0])(p)
        updates, state = tx.update(grads, state, p)
        return optax.apply_updates(p, updates), state

    @jax.jit
    def run(p: Params) -> Params:
        return jax.lax.fori_loop(0, steps, step, (p, tx.init(p)))[0]

    return run(from_scratch(jax.random.key(1)))


def sayings_writer_lora(folder: str | None) -> Task:
    """English sayings; LoRA of rank 8 on ``c_attn`` and ``c_fc``."""
    texts = [text for text, _ in sayings(folder)]
    order = np.random.default_rng(0).permutation(len(texts))
    tokens = _bytes("\n".join(texts[i] for i in order))
    base = checkpoint(folder)
    names = [f"h{i}.{n}" for i in range(N_LAYER) for n in ("attn.c_attn", "mlp.c_fc")]

    def init(key: jax.Array) -> Params:
        lora = {}
        for name in names:
            n_in, n_out = base[f"{name}.w"].shape
            key, own = jax.random.split(key)
            lora[f"{name}.A"] = jax.random.normal(own, (n_in, 8)) / n_in**0.5
            lora[f"{name}.B"] = jnp.zeros((8, n_out))
        return lora

    def loss(lora: Params, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        return lm_loss(base, arrays["tokens"], lora)

    return Task(
        name="sayings_writer_lora",
        dataset="foreign",
        init=init,
        loss=loss,
        splits=in_turn({"tokens": tokens}, 4000, 150, 300),
        batch_size=8,
        horizons=(80, 300),
    )


def kinds_few_shot(folder: str | None) -> Task:
    """Six kinds of text, in pieces of 64 characters; 120 pieces for training."""
    said = sayings(folder)
    pages = manual_pages(folder)
    kinds = [
        *(
            "\n".join(text for text, subject in said if subject == name)
            for name in ("songs-poems", "definitions", "zippy")
        ),
        "\n".join(page.text for page in pages),
        source_text("scipy", 400_000),
        "\n".join(text for text, _ in docstrings(("sklearn",))),
    ]
    rng, rows, labels = np.random.default_rng(0), [], []
    for k, text in enumerate(kinds):
        pieces = np.minimum(windows(text, N_CTX, 2 * N_CTX), N_VOCAB - 1)
        rows.append(pieces[rng.permutation(len(pieces))[:80]])
        labels += [k] * len(rows[-1])
    arrays = {"tokens": np.concatenate(rows), "label": np.asarray(labels, np.int32)}
    base = checkpoint(folder)

    def init(key: jax.Array) -> Params:
        head = 0.02 * jax.random.normal(key, (N_EMBD, len(kinds)))
        return {**base, "score.w": head}

    def loss(
        p: Params, arrays: Arrays, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        x = hidden(p, arrays["tokens"].astype(jnp.int32)).mean(1)
        if key is not None:
            x = jnp.where(jax.random.bernoulli(key, 0.9, x.shape), x / 0.9, 0.0)
        logits = x @ p["score.w"]
        each = optax.softmax_cross_entropy_with_integer_labels(logits, arrays["label"])
        return each.mean(), (logits.argmax(-1) != arrays["label"]).mean()

    return Task(
        name="kinds_few_shot",
        dataset="foreign",
        init=init,
        loss=loss,
        splits=deal(arrays, 120, 120, 220),
        batch_size=16,
        horizons=(40, 200),
        train_loss=loss,
    )
