"""Features of a frozen image tower, computed once per image."""

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
    """A data source whose images are replaced by the features of an image tower.

    An image is encoded when it is first read, and its features are kept in memory as
    float16: 2 P D bytes, 125 kB for EfficientNet-Lite0 at 224 pixels.

    Args:
        source: data source whose records have ``image`` uint8 [h, w, 3].
        encode: the image tower, from images to features.
    """

    def __init__(self, source: Source, encode: Encode) -> None:
        self._source, self._encode = source, encode
        self._known: dict[bytes, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        """Returns the record with its features as ``image``, float16 [P, D]."""
        record = self._source[index]
        image = record["image"]
        # Keyed by content: several rows may share an image, also as a replacement.
        key = hashlib.blake2b(np.ascontiguousarray(image).tobytes()).digest()
        # The lock keeps two threads from encoding the same image.
        with self._lock:
            if key not in self._known:
                features = self._encode(image[None])[0]
                self._known[key] = features.astype(np.float16)
            found: Record = {**record, "image": self._known[key]}
        return found


def check_frozen(tower: Mapping[str, PyTree]) -> None:
    """Checks that nothing of an image tower but its projection is trained.

    Args:
        tower: trainable parameters of the tower, a nested dict.

    Raises:
        ValueError: the tower has other trainable parameters.
    """
    if trained := sorted(str(name) for name in tower if name != "projection"):
        raise ValueError(
            "model.cache_features=True, and of the image tower "
            f"{', '.join(trained)} would train, so that its features change; take "
            "model.trainable='decoder', a model.lora.pattern that begins with "
            "'^decoder/', or model.cache_features=False"
        )


def tower_features(module: SplitModule) -> Encode:
    """Returns the compiled image tower of a model with its current arrays.

    Args:
        module: a generative model.

    Raises:
        ValueError: the tower is trained.
    """
    check_frozen(module.params.get("vision", {}))
    model: Generative = module.merge(module.params, module.frozen)
    graphdef, state = nnx.split(model.vision)
    # A copy, because training steps donate the model's own arrays.
    state = jax.tree.map(jnp.copy, state)

    @jax.jit
    def features(state: nnx.State, image: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).features(image)

    return lambda image: np.asarray(features(state, image), np.float32)
