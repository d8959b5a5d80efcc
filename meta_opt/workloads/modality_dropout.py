"""Modality dropout: training examples lose one of their modalities at random.

The model can then not rely on its strongest modality alone, and learns to predict
without any one of them (ModDrop, Neverova et al. 2015, arXiv:1501.00102).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def drop_modalities(
    batch: Mapping[str, Any], modalities: Sequence[str], rate: float, key: jax.Array
) -> dict[str, Any]:
    """Drops one modality from a random share of the examples.

    With probability ``rate`` an example with two or more modalities loses one of them,
    all equally likely. Examples with a single modality keep it.

    Args:
        batch: a batch, with ``<modality>_present`` bool [B] if examples may lack it.
        modalities: the M modalities that examples may have.
        rate: probability that an example loses a modality, 0 to 1.
        key: random key.

    Returns:
        The batch with new ``<modality>_present`` for each of ``modalities``.

    >>> batch = {"text": jnp.zeros((4, 2)), "image": jnp.zeros((4, 3))}
    >>> dropped = drop_modalities(batch, ("text", "image"), 1.0, jax.random.key(0))
    >>> (dropped["text_present"] ^ dropped["image_present"]).tolist()
    [True, True, True, True]
    """
    size = len(jax.tree.leaves(batch[modalities[0]])[0])
    everywhere = jnp.ones(size, bool)
    present = jnp.stack(
        [jnp.asarray(batch.get(f"{m}_present", everywhere)) for m in modalities], axis=1
    )
    whether, which = jax.random.split(key)
    loses = jax.random.bernoulli(whether, rate, (size,))
    loses &= jnp.sum(present, axis=1) > 1
    # The argmax of i.i.d. uniform draws is uniform over the present modalities.
    draws = jnp.where(present, jax.random.uniform(which, present.shape), -1.0)
    chosen = jax.nn.one_hot(jnp.argmax(draws, axis=1), len(modalities), dtype=bool)
    left = present & ~(chosen & loses[:, None])
    return {**batch, **{f"{m}_present": left[:, i] for i, m in enumerate(modalities)}}
