"""From samples to arrays that a multimodal model reads.

The lower layers of the encoders do not change while only the upper ones train: what
they give is computed once for each sample, and may be kept in a file.
"""

import dataclasses
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

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.catalog.encoder_weights import encoder_folder
from meta_opt.data.preprocessing.answers import AnswerTokenizer
from meta_opt.data.preprocessing.folder_tokenizer import FolderTokenizer
from meta_opt.data.preprocessing.tokenizer import load_tokenizer
from meta_opt.data.records import SPLITS
from meta_opt.data.samples import Samples, spectrograms
from meta_opt.data.sources.jsonl_samples import is_path
from meta_opt.data.sources.multimodal import TASKS, find_task, read_split
from meta_opt.models.encoders import Divisible, load_encoder
from meta_opt.types import PyTree, check_keys, check_name, write_atomic

_ENCODED = 64
"""Samples that go through the lower layers at once."""
_END, _PAD = 3, 0
"""Of captions, in the vocabulary that ships here."""


@dataclasses.dataclass(frozen=True)
class InputsConfig:
    """Which task, and how its samples become arrays.

    Attributes:
        task: one of `meta_opt.data.sources.multimodal.TASKS`, or the path of a JSONL
            file or of tar files; see `meta_opt.data.sources.jsonl_samples`.
        data_dir: the folder of datasets and encoders; "" for $META_OPT_DATA_DIR, else
            ``data``.
        max_examples: samples of a split at most; 0: all of them.
        max_unreadable: files of the user's that may be skipped as unreadable.
        image_size: of pictures and frames in pixels.
        audio_seconds: of sound.
        text_length: S, tokens that an encoder reads.
        caption_length: S, tokens of a caption that is written.
        encoders: by modality, names of `meta_opt.models.encoders`; video is seen by
            that of images.
        trainable_layers: by modality, how many of the last layers train; 0: all.
        pool_size: by modality, consecutive features that are averaged before the layers
            that train; 1: none. Only where some layers do not train.
        feature_cache_dir: folder for the features of the layers that do not train; ""
            computes them for each run.
    """

    task: str
    data_dir: str = ""
    max_examples: int = 0
    max_unreadable: int = 100
    image_size: int = 64
    audio_seconds: float = 1.6
    text_length: int = 16
    caption_length: int = 12
    encoders: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {
            "image": "efficientnet_lite0",
            "text": "minilm",
            "audio": "whisper_tiny",
        }
    )
    trainable_layers: Mapping[str, int] = dataclasses.field(default_factory=dict)
    pool_size: Mapping[str, int] = dataclasses.field(default_factory=dict)
    feature_cache_dir: str = ""

    def __post_init__(self) -> None:
        """Checks the names and ranges."""
        if not is_path(self.task):
            check_name("inputs.task", self.task, TASKS)
        for field in ("trainable_layers", "pool_size"):
            check_keys(f"inputs.{field}", getattr(self, field), self.encoders)
        if self.max_unreadable < 0:
            raise ValueError(
                f"inputs.max_unreadable={self.max_unreadable} must be at least 0"
            )


class Inputs(NamedTuple):
    """What a run reads.

    Attributes:
        kind: what is asked for, one of `meta_opt.data.samples.KINDS`.
        modalities: of the samples.
        splits: by name, pytrees of arrays [B, ...]: of each modality what its encoder
            reads, ``<modality>_present``, and ``label``, ``score`` or ``caption``.
        encoders: the parts of them that train, by modality.
        class_names: of a classification.
        captions: by split, the texts that are to be found or written.
        tokenizer: of captions that are written.
        missing: by split and modality, how many samples lack it.
        skipped: by split, how many could not be read.
    """

    kind: str
    modalities: tuple[str, ...]
    splits: dict[str, dict[str, PyTree]]
    encoders: dict[str, nnx.Module]
    class_names: tuple[str, ...]
    captions: dict[str, tuple[str, ...]]
    tokenizer: AnswerTokenizer
    missing: dict[str, dict[str, int]]
    skipped: dict[str, int]


def read_inputs(config: InputsConfig) -> Inputs:
    """Reads the samples and runs the encoders' frozen lower layers on them.

    Raises:
        MissingDataError: a dataset or encoder that is not prepared.
        ValueError: see `find_task`, `read_split` and `Divisible`.
    """
    root = config.data_dir or default_data_dir()
    task = find_task(config.task, config.max_unreadable)
    samples = {
        split: read_split(task, config.task, split, root, config.image_size).at_most(
            config.max_examples
        )
        for split in SPLITS
    }
    tokenizer = AnswerTokenizer(load_tokenizer(), _END, _PAD, prompt_length=2)
    raw = {
        s: _arrays(x, task.kind, config, tokenizer, root) for s, x in samples.items()
    }
    needed = dict.fromkeys(_encoder_of(config, m) for m in task.modalities)
    halves = {modality: _halves(config, modality, root) for modality in needed}
    for reader in task.modalities:
        lower, _ = halves[_encoder_of(config, reader)]
        if lower is None:
            continue
        kept = _Kept(config, reader, root)
        pool = 1 if reader == "video" else config.pool_size.get(reader, 1)
        for split, arrays in raw.items():
            arrays[reader] = kept(split, arrays[reader], lower, pool)
    return Inputs(
        kind=task.kind,
        modalities=task.modalities,
        splits=raw,
        encoders={modality: upper for modality, (_, upper) in halves.items()},
        class_names=samples["train"].class_names,
        captions={split: tuple(x.caption) for split, x in samples.items()},
        tokenizer=tokenizer,
        missing={
            split: {m: int(np.sum(~there)) for m, there in x.present().items()}
            for split, x in samples.items()
        },
        skipped={split: x.skipped for split, x in samples.items()},
    )


def _halves(
    config: InputsConfig, modality: str, root: str | os.PathLike
) -> tuple[Callable[[Any], PyTree] | None, nnx.Module]:
    """The frozen lower part of an encoder (None if all of it trains), and the upper."""
    name, trained = config.encoders[modality], config.trainable_layers.get(modality, 0)
    encoder = load_encoder(name, encoder_folder(name, root))
    if not trained:
        return None, encoder
    if not isinstance(encoder, Divisible):
        raise ValueError(
            f"inputs.trainable_layers: the encoder {name!r} cannot be divided; train "
            "all of it (0)"
        )
    return encoder.halves(trained)


def _encoder_of(config: InputsConfig, modality: str) -> str:
    return (
        "image" if modality == "video" and "video" not in config.encoders else modality
    )


def _arrays(
    samples: Samples,
    kind: str,
    config: InputsConfig,
    tokenizer: AnswerTokenizer,
    root: str | os.PathLike,
) -> dict[str, PyTree]:
    found: dict[str, PyTree] = dict(samples.inputs())
    if "text" in found:
        folder = encoder_folder(config.encoders["text"], root)
        reader = FolderTokenizer(folder, 0)
        found["text"] = reader.encode(found["text"], config.text_length)
    if "audio" in found:
        found["audio"] = spectrograms(
            found["audio"], config.audio_seconds, samples.rate
        )
    found |= {f"{m}_present": there for m, there in samples.present().items()}
    if kind == "classify":
        found["label"] = samples.label
    elif kind == "score":
        found["score"] = samples.score
    elif kind == "caption":
        found["caption"] = tokenizer.encode(
            list(samples.caption), config.caption_length
        )
    return found


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


class _Kept:
    """What the lower layers give for a modality, computed or out of a file."""

    def __init__(
        self, config: InputsConfig, modality: str, root: str | os.PathLike
    ) -> None:
        encoder = config.encoders[_encoder_of(config, modality)]
        about = (encoder_folder(encoder, root) / "about.json").read_text("utf-8")
        settings = {
            "encoder": json.loads(about),
            "trained": config.trainable_layers,
            "pool": config.pool_size,
        }
        self._key = json.dumps(settings, sort_keys=True).encode()
        self._folder = (
            Path(config.feature_cache_dir) if config.feature_cache_dir else None
        )
        self._name = f"{Path(config.task).stem}-{modality}"

    def __call__(
        self,
        split: str,
        inputs: np.ndarray,
        lower: Callable[[Any], PyTree],
        pool: int,
    ) -> PyTree:
        if self._folder is None:
            return _through(inputs, lower, pool)
        digest = hashlib.sha256(self._key + np.ascontiguousarray(inputs).tobytes())
        file = self._folder / f"{self._name}-{split}-{digest.hexdigest()[:12]}.npz"
        if not file.is_file():
            leaves = jax.tree.leaves(_through(inputs, lower, pool))
            with write_atomic(file) as temporary, open(temporary, "wb") as opened:
                np.savez(opened, *leaves)
        with np.load(file, allow_pickle=False) as stored:
            leaves = [stored[f"arr_{i}"] for i in range(len(stored.files))]
        # Sequences are features and which of them are real, images one grid.
        return leaves[0] if len(leaves) == 1 else tuple(leaves)


def _through(inputs: np.ndarray, lower: Callable[[Any], PyTree], pool: int) -> PyTree:
    """Takes inputs through the lower layers; frames of clips one by one."""
    frames = inputs.shape[:2] if inputs.ndim == 5 else None
    flat = inputs.reshape(-1, *inputs.shape[2:]) if frames else inputs
    apply = jax.jit(lower)
    parts = []
    for start in range(0, len(flat), _ENCODED):
        part = flat[start : start + _ENCODED]
        rest = [(0, 0)] * (part.ndim - 1)
        padded = np.pad(part, [(0, _ENCODED - len(part)), *rest])
        parts.append(jax.device_get(apply(jnp.asarray(padded))))
    # What filled the last part up is cut off.
    whole = jax.tree.map(lambda *xs: np.concatenate(xs)[: len(flat)], *parts)
    whole = pooled(whole, pool)
    if frames:
        whole = jax.tree.map(lambda x: x.reshape(*frames, *x.shape[1:]), whole)
    return whole
