"""Encodes frames and texts into the inputs of a video-text model's trained layers."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from meta_opt.data.catalog.encoder_weights import encoder_folder
from meta_opt.data.preprocessing.folder_tokenizer import FolderTokenizer
from meta_opt.models.encoders.precomputed import Precomputed, PrecomputedConfig
from meta_opt.types import PyTree
from meta_opt.workloads.lower_features import (
    EncoderParts,
    FeatureCache,
    divide_encoder,
    features_of,
)

PRECOMPUTED = "precomputed"
"""As the encoder of images: clips have features of frames, which it takes as they are.
"""


@dataclasses.dataclass(frozen=True)
class ClipReaderConfig:
    """How clips and texts become arrays; exported models store this.

    Attributes:
        frames: T, frames per clip; longer clips are subsampled, shorter ones padded.
        image_size: side length of the frames in pixels.
        text_length: S, number of tokens of a clip's name or caption.
        question_length: S, number of tokens of a question or of an answer option.
        encoders: encoder names for ``image`` and ``text``; ``image`` may also be
            `PRECOMPUTED`.
        trainable_layers: number of last layers to train, by modality; 0 for all.
        feature_width: D, width of precomputed frame features; 0 if clips are images.
    """

    frames: int
    image_size: int
    text_length: int
    question_length: int
    encoders: Mapping[str, str]
    trainable_layers: Mapping[str, int]
    feature_width: int = 0


class ClipReader:
    """Runs frames and texts through the frozen layers of the encoders.

    Args:
        config: frames per clip, text lengths and encoders.
        root: folder of datasets and encoders.
        cache_folder: folder for cached features; "" computes them each time.
        cache_name: prefix of the names of cached files.

    Attributes:
        config: the configuration.
        encoders: encoders of ``image`` and ``text``, split into frozen and trained
            layers.
        tokenizer: tokenizer of the text encoder.

    Raises:
        MissingDataError: an encoder is not prepared.
        ValueError: an encoder cannot be split, its lower layers cannot read masked
            texts, or its tokenizer has no mask token.
    """

    def __init__(
        self,
        config: ClipReaderConfig,
        root: str | os.PathLike,
        cache_folder: str = "",
        cache_name: str = "",
    ) -> None:
        self.config = config
        self.encoders = _encoders(config, root)
        self.tokenizer = _tokenizer(config, root, self.encoders["text"].lower)
        self._caches = {
            m: FeatureCache(
                cache_folder,
                f"{cache_name}-{m}",
                name,
                root,
                {"trained": config.trainable_layers},
            )
            for m, name in config.encoders.items()
            if self.encoders[m].lower is not None
        }

    def frames(self, frames: np.ndarray, split: str = "") -> PyTree:
        """Encodes frames [N, T, ...] into the model's input, a pytree of [N, T, ...].

        Args:
            frames: uint8 [N, T, h, w, 3], or float features [N, T, D].
            split: name of the split, for the names of cached files.
        """
        return self._read(split, "image", frames)

    def texts(self, texts: Sequence[str], length: int, split: str = "") -> PyTree:
        """Tokenizes and encodes N texts; see `tokens`."""
        return self.tokens(self.tokenizer.encode(texts, length), split)

    def tokens(self, tokens: np.ndarray, split: str = "") -> PyTree:
        """Encodes token ids [N, S] into the model's input; equal texts only once.

        Args:
            tokens: token ids, int [N, S].
            split: name of the split, for the names of cached files.
        """
        different, places = np.unique(tokens, axis=0, return_inverse=True)
        read = self._read(split, "text", different)
        return jax.tree.map(lambda x: x[places.reshape(-1)], read)

    def frame_targets(self, read: PyTree) -> np.ndarray:
        """Returns the mean features of each frame, float32 [N, T, F].

        Args:
            read: result of `frames`.
        """
        upper: Any = self.encoders["image"].upper
        found = features_of(read, lambda x: upper.tokens(x)[0].mean(axis=1), clips=True)
        return found.astype(np.float32)

    def _read(self, split: str, modality: str, inputs: np.ndarray) -> PyTree:
        lower = self.encoders[modality].lower
        if lower is None:
            return inputs
        return self._caches[modality](split, inputs, lower)


def _encoders(
    config: ClipReaderConfig, root: str | os.PathLike
) -> dict[str, EncoderParts]:
    parts = {
        modality: divide_encoder(name, config.trainable_layers.get(modality, 0), root)
        for modality, name in config.encoders.items()
        if name != PRECOMPUTED
    }
    if config.encoders["image"] == PRECOMPUTED:
        upper = Precomputed(PrecomputedConfig(config.feature_width))
        parts["image"] = EncoderParts(None, upper)
    return {modality: parts[modality] for modality in config.encoders}


def _tokenizer(
    config: ClipReaderConfig, root: str | os.PathLike, lower: Any
) -> FolderTokenizer:
    name = config.encoders["text"]
    tokenizer = FolderTokenizer(encoder_folder(name, root), 0)
    if lower is not None and not isinstance(lower, nnx.Module):
        raise ValueError(
            f"masked texts go through all layers of the encoder {name!r}, and its "
            "lower ones are not a module; train all of them "
            "(clips.trainable_layers.text=0)"
        )
    if tokenizer.mask_id is None or len(tokenizer.special_ids) != 2:
        raise ValueError(
            f"the tokenizer of the encoder {name!r} must have a mask, and tokens that "
            "begin and end a text"
        )
    return tokenizer
