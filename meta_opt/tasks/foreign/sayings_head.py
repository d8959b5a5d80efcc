"""Subject of a saying: a linear probe on frozen MiniLM embeddings."""

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.tasks.foreign.data import deal, minilm_below, sayings
from meta_opt.tasks.task import Arrays, Task

SUBJECTS = (
    *("people", "definitions", "computers", "songs-poems", "politics", "work"),
    *("science", "men-women", "knghtbrd", "zippy", "platitudes", "art", "wisdom"),
    *("linux", "law", "food", "medicine", "education", "sports", "pets"),
)


def sayings_head(folder: str | None) -> Task:
    """Twenty subjects, 800 sayings for training, 384-dimensional unit vectors."""
    rows = [row for row in sayings(folder) if row[1] in SUBJECTS]
    rows = [rows[i] for i in np.random.default_rng(7).permutation(len(rows))[:1650]]
    below = minilm_below([text for text, _ in rows], 6, 24, folder)
    mask = below["mask"][..., None]
    v = (below["hidden"] * mask).sum(1) / mask.sum(1)
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    t = np.asarray([SUBJECTS.index(subject) for _, subject in rows], np.int32)

    def loss(W: dict[str, jax.Array], batch: Arrays) -> tuple[jax.Array, jax.Array]:
        s = 10.0 * (batch["v"] @ W["W"].T) + W["b"][None]
        s = s - s.max(1, keepdims=True)
        nll = jnp.log(jnp.exp(s).sum(1)) - s[jnp.arange(len(s)), batch["t"]]
        return nll.mean(), (s.argmax(1) != batch["t"]).mean()

    return Task(
        name="sayings_head",
        dataset="foreign",
        init=lambda key: {
            "W": 0.01 * jax.random.normal(key, (len(SUBJECTS), 384)),
            "b": jnp.zeros(len(SUBJECTS)),
        },
        loss=loss,
        splits=deal({"v": v, "t": t}, 800, 200, 500),
        batch_size=128,
        horizons=(100, 600),
    )
