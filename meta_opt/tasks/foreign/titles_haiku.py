"""Category of a drawing from its title: a recurrent network in Haiku."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.tasks.foreign.data import clipart_pictures, deal, ids_of_characters
from meta_opt.tasks.task import Arrays, Task

CLASSES = 16
LENGTH = 20


def titles_gru(folder: str | None) -> Task:
    """Titles of Open Clip Art as characters; a GRU with dropout before the output."""
    del folder
    _, labels, titles = clipart_pictures(24)
    lower = [title.lower() for title in titles]
    chars, vocabulary = ids_of_characters(lower, LENGTH)
    lengths = (chars > 0).sum(1).clip(1).astype(np.int32)
    splits = deal({"chars": chars, "length": lengths, "label": labels}, 900, 200, 450)

    def net(batch: Arrays, is_training: bool) -> jax.Array:
        embedded = hk.Embed(vocabulary, 32)(batch["chars"])
        core = hk.GRU(64)
        start = core.initial_state(embedded.shape[0])
        outputs, _ = hk.dynamic_unroll(core, embedded.transpose(1, 0, 2), start)
        last = batch["length"] - 1
        h = outputs[last, jnp.arange(len(last))]
        h = jax.nn.relu(hk.Linear(64)(h))
        if is_training:
            h = hk.dropout(hk.next_rng_key(), 0.3, h)
        return hk.Linear(CLASSES)(h)

    model = hk.transform(net)
    example = jax.tree.map(lambda a: a[:2], splits.train)

    def scored(
        params: Any, batch: Arrays, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(params, key, batch, key is not None)
        one_hot = jax.nn.one_hot(batch["label"], CLASSES)
        xent = -jnp.mean(jnp.sum(one_hot * jax.nn.log_softmax(logits), -1))
        wrong = jnp.argmax(logits, -1) != batch["label"]
        return xent, jnp.mean(wrong.astype(jnp.float32))

    return Task(
        name="titles_gru",
        dataset="clipart",
        init=lambda key: model.init(key, example, False),
        loss=lambda params, batch: scored(params, batch, None),
        splits=splits,
        batch_size=64,
        horizons=(100, 500),
        train_loss=scored,
    )
