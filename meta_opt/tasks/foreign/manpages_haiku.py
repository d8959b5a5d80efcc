"""A byte-level language model of German manual pages: an LSTM in Haiku."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.tasks.foreign.data import in_turn, manual_pages, windows
from meta_opt.tasks.task import Arrays, Task

SEQ, VOCAB = 48, 128


def manpages_lstm(folder: str | None) -> Task:
    """Shuffled pages; 60,000 windows, of which a run sees a few thousand."""
    pages = manual_pages(folder)
    order = np.random.default_rng(1).permutation(len(pages))
    text = "\n".join(pages[i].text for i in order)
    tokens = np.minimum(windows(text, SEQ + 1, SEQ + 1), VOCAB - 1)

    def unrolled(batch: Arrays) -> jax.Array:
        tokens = batch["tokens"].astype(jnp.int32)
        # Haiku's recurrent cores expect the time axis first.
        inputs = hk.Embed(VOCAB, 48, name="bytes")(tokens[:, :-1].T)
        core = hk.LSTM(128)
        outputs, _ = hk.dynamic_unroll(core, inputs, core.initial_state(len(tokens)))
        return hk.Linear(VOCAB, name="readout")(outputs)

    model: Any = hk.without_apply_rng(hk.transform(unrolled))
    splits = in_turn({"tokens": tokens}, 60_000, 150, 300)

    def loss(params: Any, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(params, batch)
        target = batch["tokens"][:, 1:].T.astype(jnp.int32)
        log_p = jnp.sum(jax.nn.one_hot(target, VOCAB) * jax.nn.log_softmax(logits), -1)
        return -jnp.mean(log_p), jnp.mean(jnp.argmax(logits, -1) != target)

    return Task(
        name="manpages_lstm",
        dataset="foreign",
        init=lambda key: model.init(key, {"tokens": splits.train["tokens"][:2]}),
        loss=loss,
        splits=splits,
        batch_size=16,
        horizons=(100, 400),
    )
