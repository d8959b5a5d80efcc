"""What the layers of encoders that do not train give, computed once for each sample.

It may be kept in files.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.data.catalog.encoder_weights import encoder_folder
from meta_opt.models.encoders import Divisible, load_encoder
from meta_opt.types import PyTree, write_atomic

_ENCODED = 64
"""Samples that go through the lower layers at once."""


class EncoderParts(NamedTuple):
    """An encoder, divided by what trains.

    Attributes:
        lower: the layers that do not train; None if all do.
        upper: those that train.
    """

    lower: Callable[[Any], PyTree] | None
    upper: nnx.Module


def divide_encoder(name: str, trained: int, root: str | os.PathLike) -> EncoderParts:
    """Loads an encoder and divides it.

    Args:
        name: of `meta_opt.models.encoders`.
        trained: how many of its last layers train; 0: all.
        root: the folder of datasets and encoders.

    Raises:
        ValueError: an encoder that cannot be divided so.
        MissingDataError: one that is not prepared.
    """
    encoder = load_encoder(name, encoder_folder(name, root))
    if not trained:
        return EncoderParts(None, encoder)
    if not isinstance(encoder, Divisible):
        raise ValueError(
            f"trainable_layers: the encoder {name!r} cannot be divided; train "
            "all of it (0)"
        )
    return EncoderParts(*encoder.halves(trained))


class FeatureCache:
    """What the lower layers give for a modality, computed or out of a file.

    Args:
        folder: of the files; "" computes each time.
        name: begins the names of files.
        encoder: whose layers they are.
        root: the folder of datasets and encoders.
        settings: JSON values that the features depend on beside encoder and inputs.
    """

    def __init__(
        self,
        folder: str,
        name: str,
        encoder: str,
        root: str | os.PathLike,
        settings: Mapping[str, Any],
    ) -> None:
        about = (encoder_folder(encoder, root) / "about.json").read_text("utf-8")
        key = {"encoder": json.loads(about), **settings}
        self._key = json.dumps(key, sort_keys=True).encode()
        self._folder = Path(folder) if folder else None
        self._name = name

    def __call__(
        self,
        split: str,
        inputs: np.ndarray,
        lower: Callable[[Any], PyTree],
        pool: int = 1,
    ) -> PyTree:
        """See `features_of`; ``split`` is a part of the file's name."""
        if self._folder is None:
            return features_of(inputs, lower, pool)
        digest = hashlib.sha256(self._key + np.ascontiguousarray(inputs).tobytes())
        file = self._folder / f"{self._name}-{split}-{digest.hexdigest()[:12]}.npz"
        if not file.is_file():
            leaves = jax.tree.leaves(features_of(inputs, lower, pool))
            with write_atomic(file) as temporary, open(temporary, "wb") as opened:
                np.savez(opened, *leaves)
        with np.load(file, allow_pickle=False) as stored:
            leaves = [stored[f"arr_{i}"] for i in range(len(stored.files))]
        # Sequences are features and which of them are real, images one grid.
        return leaves[0] if len(leaves) == 1 else tuple(leaves)


def features_of(
    inputs: PyTree,
    apply: Callable[[Any], PyTree],
    pool: int = 1,
    clips: bool | None = None,
) -> PyTree:
    """Applies a function to samples, some at a time; to the frames of clips one by one.

    Args:
        inputs: pytree of [N, ...], of clips [N, T, ...].
        apply: from [B, ...] to a pytree of [B, ...].
        pool: consecutive features that are averaged, see `pooled`.
        clips: whether ``inputs`` are clips; None: if they are one array of rank 5.

    Returns:
        What ``apply`` gives for all samples, [N, ...] or [N, T, ...], on the host.
    """
    first = jax.tree.leaves(inputs)[0]
    frames = first.shape[:2] if (first.ndim == 5 if clips is None else clips) else None
    if frames:
        inputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs)
    count = len(jax.tree.leaves(inputs)[0])
    apply = jax.jit(apply)
    parts = []
    for start in range(0, count, _ENCODED):
        part = jax.tree.map(lambda x, at=start: _filled(x[at : at + _ENCODED]), inputs)
        parts.append(jax.device_get(apply(part)))
    # What filled the last part up is cut off.
    whole = jax.tree.map(lambda *xs: np.concatenate(xs)[:count], *parts)
    whole = pooled(whole, pool)
    if frames:
        whole = jax.tree.map(lambda x: x.reshape(*frames, *x.shape[1:]), whole)
    return whole


def _filled(x: np.ndarray) -> jax.Array:
    rest = [(0, 0)] * (x.ndim - 1)
    return jnp.asarray(np.pad(x, [(0, _ENCODED - len(x)), *rest]))


def pooled(features: PyTree, size: int) -> PyTree:
    """Averages features in rows of ``size``, those that are real.

    Args:
        features: x [B, S, D] and real, bool [B, S].
        size: divides S.

    Raises:
        ValueError: features of another form, or of another length.

    >>> x, real = pooled((np.arange(4.0).reshape(1, 4, 1), np.ones((1, 4), bool)), 2)
    >>> x.ravel().tolist(), real.tolist()
    ([0.5, 2.5], [[True, True]])
    """
    if size == 1:
        return features
    if not isinstance(features, tuple) or features[0].shape[1] % size:
        shapes = jax.tree.map(np.shape, features)
        raise ValueError(f"features of shapes {shapes} cannot be averaged by {size}")
    x, real = (a.reshape(len(a), -1, size, *a.shape[2:]) for a in features)
    count = np.maximum(real.sum(axis=2, dtype=x.dtype), 1)[..., None]
    return (x * real[..., None]).sum(axis=2) / count, real.any(axis=2)
