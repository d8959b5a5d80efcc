"""Features of a frozen image tower, computed once for each picture."""

import hashlib
import threading
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.data.records import Record, Source
from meta_opt.models.generative import Generative
from meta_opt.types import PyTree
from meta_opt.workloads.workload import SplitModule

Encode = Callable[[np.ndarray], np.ndarray]
"""From pictures uint8 [B, h, w, 3] to features float [B, P, D]."""


class FeatureSource:
    """A source with the features of an image tower in place of its pictures.

    A picture is encoded when it is first read, and its features are kept in memory as
    float16: 2 P D bytes, 125 kB for EfficientNet-Lite0 at 224 pixels.

    Args:
        source: of records with ``image`` uint8 [h, w, 3].
        encode: the tower.
    """

    def __init__(self, source: Source, encode: Encode) -> None:
        self._source, self._encode = source, encode
        self._known: dict[bytes, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        """The record with ``image`` float16 [P, D]."""
        record = self._source[index]
        image = record["image"]
        # By content: a picture may be in several rows, or replace an unreadable one.
        key = hashlib.blake2b(np.ascontiguousarray(image).tobytes()).digest()
        # One thread encodes; others would do the same work again.
        with self._lock:
            if key not in self._known:
                features = self._encode(image[None])[0]
                self._known[key] = features.astype(np.float16)
            found: Record = {**record, "image": self._known[key]}
        return found


def check_frozen(tower: Mapping[str, PyTree]) -> None:
    """Checks that only the projection of an image tower trains.

    Args:
        tower: its trainable parameters, nested dict.

    Raises:
        ValueError: other trainable parameters.
    """
    if trained := sorted(str(name) for name in tower if name != "projection"):
        raise ValueError(
            "model.cache_features=True, and of the image tower "
            f"{', '.join(trained)} would train, so that its features change; take "
            "model.trainable='decoder', a model.lora.pattern that begins with "
            "'^decoder/', or model.cache_features=False"
        )


def tower_features(module: SplitModule) -> Encode:
    """The image tower of a model with its current arrays, compiled.

    Args:
        module: a generative model.

    Raises:
        ValueError: if the tower trains.
    """
    check_frozen(module.params.get("vision", {}))
    model: Generative = module.merge(module.params, module.frozen)
    graphdef, state = nnx.split(model.vision)
    # A training step donates the model's own arrays.
    state = jax.tree.map(jnp.copy, state)

    @jax.jit
    def features(state: nnx.State, image: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).features(image)

    return lambda image: np.asarray(features(state, image), np.float32)
