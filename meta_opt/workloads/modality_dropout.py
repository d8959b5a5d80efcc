"""Modality dropout: examples that lose one of their modalities while they train.

A model that is trained so cannot rely on its strongest modality alone, and knows what
to do without any one of them (ModDrop, Neverova et al. 2015, arXiv:1501.00102).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def drop_modalities(
    batch: Mapping[str, Any], modalities: Sequence[str], rate: float, key: jax.Array
) -> dict[str, Any]:
    """A batch of which a share of the examples lose one modality each.

    An example that has two modalities or more loses, with probability ``rate``, one of
    them, all equally likely. Others lose none, so that nothing is left without any.

    Args:
        batch: with ``<modality>_present`` bool [B] where examples lack a modality.
        modalities: that its examples may have, M of them.
        rate: probability, 0 to 1.
        key: of the draws.

    Returns:
        The batch with other ``<modality>_present``, of each of ``modalities``.

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
    # The largest of independent uniform draws is equally often any of them.
    draws = jnp.where(present, jax.random.uniform(which, present.shape), -1.0)
    chosen = jax.nn.one_hot(jnp.argmax(draws, axis=1), len(modalities), dtype=bool)
    left = present & ~(chosen & loses[:, None])
    return {**batch, **{f"{m}_present": left[:, i] for i, m in enumerate(modalities)}}
