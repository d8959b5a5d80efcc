"""Converts samples to the input arrays of a multimodal model.

If only the upper layers of the encoders are trained, the outputs of the frozen lower
layers are computed once per sample, and can be cached in files.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
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
from meta_opt.data.token_counts import count_tokens
from meta_opt.types import PyTree, check_keys, check_least, check_name
from meta_opt.workloads.lower_features import (
    FeatureCache,
    divide_encoder,
    feature_shapes,
)

_END, _PAD = 3, 0
"""End token of captions in this package's vocabulary, and padding of all texts."""


@dataclasses.dataclass(frozen=True)
class InputsConfig:
    """A task, and how its samples become arrays.

    Attributes:
        task: one of `meta_opt.data.sources.multimodal.TASKS`, or the path of a JSONL
            file or of tar files; see `meta_opt.data.sources.jsonl_samples`.
        data_dir: folder of datasets and encoders; "" for $META_OPT_DATA_DIR, else
            ``data``.
        max_examples: maximum number of samples per split; 0 for all of them.
        max_unreadable: number of the user's files that may be skipped as unreadable.
        image_size: side length of images and video frames in pixels.
        audio_seconds: length of audio clips in seconds.
        text_length: S, number of input tokens of the text encoder.
        caption_length: S, number of tokens of a generated caption.
        encoders: names in `meta_opt.models.encoders` by modality; video is encoded by
            the image encoder.
        trainable_layers: number of last layers to train, by modality; 0 for all.
        pool_size: number of consecutive features to average before the trained layers,
            by modality; 1 for no pooling. Pooling requires frozen layers.
        feature_cache_dir: folder for the outputs of frozen layers; "" computes them for
            each run.
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
        check_least("inputs", self, image_size=1, max_examples=0, max_unreadable=0)


class Inputs(NamedTuple):
    """The inputs of a run.

    Attributes:
        kind: kind of task, one of `meta_opt.data.samples.KINDS`.
        modalities: modalities of the samples.
        splits: pytrees of arrays [N, ...] by split name: the input of each modality's
            encoder, ``<modality>_present``, and ``label``, ``score`` or ``caption``.
        encoders: trained layers of the encoders by modality.
        class_names: K class names of a classification task.
        captions: texts to retrieve or to generate, by split.
        tokenizer: tokenizer of generated captions.
        missing: number of samples that lack a modality, by split and modality.
        skipped: number of unreadable samples by split.
        readout: kernel [W, K] and bias [K] of a linear readout of the pretrained
            encoders, or None. See `meta_opt.workloads.readout.with_readout`.
        text_pool: number of tokens of a text that each of its features stands for.
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
    readout: tuple[np.ndarray, np.ndarray] | None = None
    text_pool: int = 1

    def count_text_tokens(self, arrays: Mapping[str, PyTree]) -> int:
        """Returns the number of tokens of texts and captions, without padding.

        Args:
            arrays: a split or a batch, on the host. Texts whose features are pooled
                count as multiples of the pool size.
        """
        count = 0
        if "text" in self.modalities:
            there = np.asarray(arrays["text_present"], bool)
            texts = jax.tree.map(lambda x: np.asarray(x)[there], arrays["text"])
            count += self.text_pool * count_tokens(texts, _PAD)
        if "caption" in arrays:
            count += count_tokens(arrays["caption"], self.tokenizer.pad_id)
        return count


def read_inputs(config: InputsConfig) -> Inputs:
    """Reads the samples and runs the encoders' frozen lower layers on them.

    Raises:
        MissingDataError: a dataset or encoder is not prepared.
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
    return inputs_of(InputReader(config, task.kind, task.modalities), samples)


def inputs_of(reader: "InputReader", samples: Mapping[str, Samples]) -> Inputs:
    """Runs the encoders' frozen lower layers on samples.

    Args:
        reader: input reader of the task.
        samples: samples by split.
    """
    return reader.without_samples(samples["train"].class_names)._replace(
        splits={split: reader(x, split) for split, x in samples.items()},
        captions={split: tuple(x.caption) for split, x in samples.items()},
        missing={
            split: {m: int(np.sum(~there)) for m, there in x.present().items()}
            for split, x in samples.items()
        },
        skipped={split: x.skipped for split, x in samples.items()},
    )


class InputReader:
    """Converts samples to the input arrays of the encoders' trained layers.

    Args:
        config: configuration of the inputs; its task is only used as a name.
        kind: kind of task, one of `meta_opt.data.samples.KINDS`.
        modalities: modalities of the samples.

    Attributes:
        kind: kind of task.
        modalities: modalities of the samples.
        encoders: trained layers of the encoders by modality.
        tokenizer: tokenizer of generated captions.

    Raises:
        MissingDataError: an encoder is not prepared.
        ValueError: see `divide_encoder`.
    """

    def __init__(
        self, config: InputsConfig, kind: str, modalities: tuple[str, ...]
    ) -> None:
        self.kind, self.modalities = kind, modalities
        self.tokenizer = AnswerTokenizer(load_tokenizer(), _END, _PAD, prompt_length=2)
        self._config = config
        self._root = config.data_dir or default_data_dir()
        self._halves = {
            m: divide_encoder(
                config.encoders[m], config.trainable_layers.get(m, 0), self._root
            )
            for m in dict.fromkeys(map(self._encoder_of, modalities))
        }
        self.encoders = {m: upper for m, (_, upper) in self._halves.items()}

    def __call__(
        self, samples: Samples, split: str = "", *, asked: bool = True
    ) -> dict[str, PyTree]:
        """Returns arrays [N, ...] in the format of `Inputs.splits`.

        Args:
            samples: samples with all of the modalities.
            split: name of the split, for the names of files in ``feature_cache_dir``.
            asked: whether the samples have targets.
        """
        found = self._arrays(samples)
        if asked:
            found |= self._asked(samples)
        config = self._config
        for modality in self.modalities:
            lower, _ = self._halves[self._encoder_of(modality)]
            if lower is None:
                continue
            cache = FeatureCache(
                config.feature_cache_dir,
                f"{Path(config.task).stem}-{modality}",
                config.encoders[self._encoder_of(modality)],
                self._root,
                {"trained": config.trainable_layers, "pool": config.pool_size},
            )
            pool = self._pool(modality)
            found[modality] = cache(split, found[modality], lower, pool)
        return found

    def without_samples(self, class_names: tuple[str, ...]) -> Inputs:
        """Returns `Inputs` without samples, from which a model can be built.

        Args:
            class_names: K class names of a classification task.
        """
        return Inputs(
            kind=self.kind,
            modalities=self.modalities,
            splits={},
            encoders=self.encoders,
            class_names=class_names,
            captions={},
            tokenizer=self.tokenizer,
            missing={},
            skipped={},
            text_pool=self._pool("text"),
        )

    def shapes(self, samples: Samples) -> dict[str, PyTree]:
        """Returns the abstract arrays of a call, without running any layer.

        Args:
            samples: samples with all of the modalities, and targets.
        """
        found = self._arrays(samples) | self._asked(samples)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found)
        for modality in self.modalities:
            lower, _ = self._halves[self._encoder_of(modality)]
            if lower is not None:
                shapes[modality] = feature_shapes(
                    shapes[modality], lower, self._pool(modality)
                )
        return shapes

    def _encoder_of(self, modality: str) -> str:
        alone = modality == "video" and "video" not in self._config.encoders
        return "image" if alone else modality

    def _pool(self, modality: str) -> int:
        return 1 if modality == "video" else self._config.pool_size.get(modality, 1)

    def _arrays(self, samples: Samples) -> dict[str, PyTree]:
        config = self._config
        found: dict[str, PyTree] = dict(samples.inputs())
        if "text" in found:
            folder = encoder_folder(config.encoders["text"], self._root)
            reader = FolderTokenizer(folder, _PAD)
            found["text"] = reader.encode(found["text"], config.text_length)
        if "audio" in found:
            found["audio"] = spectrograms(
                found["audio"], config.audio_seconds, samples.rate
            )
        return found | {f"{m}_present": there for m, there in samples.present().items()}

    def _asked(self, samples: Samples) -> dict[str, PyTree]:
        if self.kind == "classify":
            return {"label": samples.label}
        if self.kind == "score":
            return {"score": samples.score}
        if self.kind == "caption":
            texts = list(samples.caption)
            return {
                "caption": self.tokenizer.encode(texts, self._config.caption_length)
            }
        return {}
