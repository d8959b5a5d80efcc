"""Outputs of the frozen lower layers of encoders, computed once per sample.

The outputs can be cached in files.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.data.catalog.encoder_weights import encoder_folder
from meta_opt.data.preprocessing.augment import AugmentConfig, augment
from meta_opt.models.encoders import Divisible, load_encoder
from meta_opt.text_files import read_json
from meta_opt.types import PyTree, write_atomic

_ENCODED = 64
"""Number of samples in a batch of the lower layers."""
_VIEWS_FORMAT = 1
"""Version of stored views; raised when augmentation or networks change."""


class EncoderParts(NamedTuple):
    """An encoder, split into frozen and trained layers.

    Attributes:
        lower: the frozen layers; None if all layers are trained.
        upper: the trained layers.
    """

    lower: Callable[[Any], PyTree] | None
    upper: nnx.Module


def divide_encoder(name: str, trained: int, root: str | os.PathLike) -> EncoderParts:
    """Loads an encoder and splits it into frozen and trained layers.

    Args:
        name: name of an encoder in `meta_opt.models.encoders`.
        trained: number of last layers to train; 0 for all.
        root: folder of datasets and encoders.

    Raises:
        ValueError: the encoder cannot be split at this layer.
        MissingDataError: the encoder is not prepared.
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
    """Outputs of the lower layers for one modality, computed or read from a file.

    Args:
        folder: folder of the cached files; "" computes the outputs each time.
        name: prefix of the names of the files.
        encoder: name of the encoder.
        root: folder of datasets and encoders.
        settings: JSON values that the features depend on, apart from encoder and
            inputs.
    """

    def __init__(
        self,
        folder: str,
        name: str,
        encoder: str,
        root: str | os.PathLike,
        settings: Mapping[str, Any],
    ) -> None:
        about = read_json(encoder_folder(encoder, root) / "about.json")
        key = {"encoder": about, **settings}
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
        """Returns `features_of` the inputs; ``split`` is part of the file's name."""
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
        # Sequences have features and a padding mask, images a single grid.
        return leaves[0] if len(leaves) == 1 else tuple(leaves)


def features_of(
    inputs: PyTree,
    apply: Callable[[Any], PyTree],
    pool: int = 1,
    clips: bool | None = None,
) -> PyTree:
    """Applies a function to samples in batches, or to the frames of clips.

    Args:
        inputs: pytree of arrays [N, ...], or [N, T, ...] for clips.
        apply: function from [B, ...] to a pytree of [B, ...].
        pool: number of consecutive features to average, see `pooled`.
        clips: whether ``inputs`` are clips; None: clips are single arrays of rank 5.

    Returns:
        Outputs for all samples, [N, ...] or [N, T, ...], on the host.
    """
    first = jax.tree.leaves(inputs)[0]
    frames = first.shape[:2] if (first.ndim == 5 if clips is None else clips) else None
    if frames:
        inputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), inputs)
    count = len(jax.tree.leaves(inputs)[0])
    taken = (
        jax.tree.map(lambda x, at=start: x[at : at + _ENCODED], inputs)
        for start in range(0, count, _ENCODED)
    )
    whole = jax.tree.map(lambda *xs: np.concatenate(xs), *_applied(taken, apply))
    whole = pooled(whole, pool)
    if frames:
        whole = jax.tree.map(lambda x: x.reshape(*frames, *x.shape[1:]), whole)
    return whole


def feature_shapes(
    inputs: jax.ShapeDtypeStruct, apply: Callable[[Any], PyTree], pool: int = 1
) -> PyTree:
    """Returns the shapes of the results of `features_of`, without computing them.

    Args:
        inputs: shape of samples [N, ...] or clips [N, T, ...].
        apply: function from [B, ...] to a pytree of [B, ...].
        pool: number of consecutive features to average.
    """
    frames = inputs.shape[:2] if len(inputs.shape) == 5 else None
    if frames:
        rows = (frames[0] * frames[1], *inputs.shape[2:])
        inputs = jax.ShapeDtypeStruct(rows, inputs.dtype)
    found = jax.eval_shape(apply, inputs)

    def shaped(x: Any) -> jax.ShapeDtypeStruct:
        lead = frames or x.shape[:1]
        rest = x.shape[1:] if pool == 1 else (x.shape[1] // pool, *x.shape[2:])
        return jax.ShapeDtypeStruct((*lead, *rest), x.dtype)

    return jax.tree.map(shaped, found)


def _applied(
    parts: Iterable[PyTree], apply: Callable[[Any], PyTree]
) -> Iterator[PyTree]:
    """Applies a function to batches of `_ENCODED` samples, compiled only once."""
    apply = jax.jit(apply)
    for part in parts:
        size = len(jax.tree.leaves(part)[0])
        found = jax.device_get(apply(jax.tree.map(_filled, part)))
        # Drop the padding of the last batch.
        yield jax.tree.map(lambda x, size=size: x[:size], found)


class Views(NamedTuple):
    """Random augmented views of images, drawn in advance.

    Attributes:
        number: V, views per image; 1 without augmentation for evaluation.
        augment: the augmentation.
        seed: random seed; view v of image i is drawn with the seed (seed, i, v).
    """

    number: int = 1
    augment: AugmentConfig = AugmentConfig()
    seed: int = 0

    def draw(self, images: np.ndarray, first: int, view: int) -> np.ndarray:
        """Returns view ``view`` of images uint8 [B, h, w, 3] number ``first`` onwards.

        >>> image = np.zeros((1, 2, 2, 3), np.uint8)
        >>> Views().draw(image, 0, 0).shape
        (1, 2, 2, 3)
        """
        return np.stack(
            [
                augment(
                    image,
                    self.augment,
                    np.random.default_rng((self.seed, first + i, view)),
                )
                for i, image in enumerate(images)
            ]
        )


def view_features(
    images: np.ndarray,
    views: Views,
    lower: Callable[[Any], jax.Array],
    weights: Mapping[str, np.ndarray],
    folder: str = "",
    name: str = "views",
) -> np.ndarray:
    """Returns the outputs of frozen layers for each view of each image.

    They are stored in half precision. With a folder they are written to a ``.npy`` file
    that is memory-mapped. Its name has a hash of everything that the outputs depend on,
    so that a later call with the same images, views and weights reuses the file.

    Args:
        images: uint8 [N, h, w, 3].
        views: the views to compute.
        lower: function from images [B, h, w, 3] to a grid [B, h', w', C].
        weights: the arrays that ``lower`` depends on, by path.
        folder: folder of the file; "" computes the features each time and keeps them
            in memory.
        name: prefix of the file's name.

    Returns:
        float16 [N, V, h', w', C]; with a folder, a read-only memory map of the file.

    Raises:
        ValueError: features are not finite in half precision.
    """
    shape = jax.eval_shape(lower, images[:1]).shape[1:]
    whole = (len(images), views.number, *shape)

    def fill(into: np.ndarray) -> np.ndarray:
        places = [
            (start, view)
            for view in range(views.number)
            for start in range(0, len(images), _ENCODED)
        ]
        parts = (views.draw(images[i : i + _ENCODED], i, view) for i, view in places)
        for (start, view), part in zip(places, _applied(parts, lower), strict=True):
            half = _to_half(np.asarray(part, np.float32))
            into[start : start + len(half), view] = half
        return into

    if not folder:
        return fill(np.empty(whole, np.float16))
    digest = hashlib.sha256(repr((_VIEWS_FORMAT, views, whole)).encode())
    for path in sorted(weights):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(weights[path]).tobytes())
    digest.update(np.ascontiguousarray(images).tobytes())
    file = Path(folder) / f"{name}-{digest.hexdigest()[:12]}.npy"
    if not file.is_file():
        with write_atomic(file) as temporary:
            opened = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.float16, shape=whole
            )
            fill(opened)
            opened.flush()  # type: ignore[attr-defined]
    return np.load(file, mmap_mode="r", allow_pickle=False)


def _to_half(x: np.ndarray) -> np.ndarray:
    most = float(np.finfo(np.float16).max)
    largest = float(np.abs(x).max(initial=0))
    # Written so that NaN fails too.
    if not largest <= most:
        raise ValueError(
            f"features of the frozen stages reach {largest:g}, more than half "
            f"precision holds ({most:g}): set augmented_views to 0, which stores none"
        )
    return x.astype(np.float16)


def _filled(x: np.ndarray) -> jax.Array:
    rest = [(0, 0)] * (x.ndim - 1)
    return jnp.asarray(np.pad(x, [(0, _ENCODED - len(x)), *rest]))


def pooled(features: PyTree, size: int) -> PyTree:
    """Averages ``size`` consecutive features at a time, without padding.

    Args:
        features: features [B, S, D], and a mask bool [B, S] that is False for padding.
        size: number of features to average, a divisor of S.

    Raises:
        ValueError: features have other shapes, or ``size`` does not divide S.

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
