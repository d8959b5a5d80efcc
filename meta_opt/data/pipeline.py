"""Input pipeline for training: shuffled batches that resume from checkpoints.

Shuffling is Grain's. Indices are shuffled and batched first and then converted to
arrays, a whole batch at a time, so that a batch from memory takes about a millisecond.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import grain
import numpy as np

from meta_opt.data.preprocessing.tokenizer import TextTokenizer
from meta_opt.data.records import MemorySource, Source, source_arrays
from meta_opt.types import Batch

CAPTIONS = ("first", "random")
EncodePrompts: TypeAlias = Callable[[Sequence[str]], np.ndarray]
"""Encodes B prompts as int32 [B, P]."""


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """Settings of the input pipeline.

    Attributes:
        shuffle: whether to reshuffle in each epoch, instead of the source's order.
        num_epochs: passes over the source, each dropping its remainder; None for
            unlimited.
        text_length: S, number of tokens of a caption; None stands for the model's
            context length, which the caller fills in.
        prompt_length: P, number of tokens of a generative model's prompt.
        captions: ``first`` takes a record's main caption; ``random`` samples one of its
            captions each time (of sources with several).
        flip: whether to flip images horizontally with probability 1/2.
        crop_pixels: largest random shift of an image in pixels, padded with white; 0
            disables it.
        num_threads: number of threads that prefetch batches; 0 makes batches on demand.
            The batches are the same.
    """

    shuffle: bool = True
    num_epochs: int | None = None
    text_length: int | None = 16
    prompt_length: int = 32
    captions: str = "first"
    flip: bool = False
    crop_pixels: int = 0
    num_threads: int = 0

    def __post_init__(self) -> None:
        least = {
            "text_length": 2,
            "prompt_length": 1,
            "crop_pixels": 0,
            "num_threads": 0,
        }
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name} must be at least {bound}, not {value}")
        if self.num_epochs is not None and self.num_epochs < 1:
            raise ValueError(
                f"num_epochs must be at least 1, or None for ever, not "
                f"{self.num_epochs}"
            )
        if self.captions not in CAPTIONS:
            raise ValueError(
                f"captions must be one of {', '.join(CAPTIONS)}, not {self.captions!r}"
            )


def make_iterator(
    source: Source,
    tokenizer: TextTokenizer,
    config: PipelineConfig,
    batch_size: int,
    seed: int = 0,
    rows: np.ndarray | None = None,
    prompts: EncodePrompts | None = None,
) -> grain.DatasetIterator[Batch]:
    """Returns an iterator of batches, with ``get_state`` and ``set_state``.

    A state is a small dict of JSON values; an iterator over the same source with the
    same settings resumes from it with exactly the same batches. Grain's Orbax handlers
    save and restore the iterator as well.

    Each of several processes reads and prepares only its own rows of the global batch.
    The global batch and the state do not depend on the number of processes.

    Args:
        source: source of records; a :class:`~meta_opt.data.records.MemorySource` is
            read a batch at a time, other sources record by record.
        tokenizer: of the captions.
        config: settings of the pipeline.
        batch_size: B, global batch size over all processes.
        seed: random seed of order and augmentation, 0 to 2**32 - 1.
        rows: int [B], indices of the rows of the global batch to make
            (`meta_opt.parallel.mesh.local_rows`); None for all.
        prompts: encoder of the records' prompts, such as
            `meta_opt.data.preprocessing.answers.AnswerTokenizer.encode_prompts`; None
            omits prompts.

    Returns:
        An iterator of ``image`` uint8 [B, h, w, 3], ``text`` int32 [B, S], ``label``
        int32 [B] and, with ``prompts``, ``prompt`` int32 [B, P].

    Raises:
        ValueError: if the source has fewer records than a batch, or rows or seed are
            out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be at least 0 and below 2**32, not {seed}")
    if len(source) < batch_size:
        raise ValueError(
            f"a batch of {batch_size} needs as many records and the source has "
            f"{len(source)}: lower batch_size or use a larger split"
        )
    rows = np.arange(batch_size) if rows is None else np.asarray(rows)
    if not len(rows) or rows.min() < 0 or rows.max() >= batch_size:
        raise ValueError(
            f"rows of a batch of {batch_size} are 0 to {batch_size - 1}, not {rows}"
        )
    dataset = grain.MapDataset.range(len(source)).seed(seed)
    if config.shuffle:
        dataset = dataset.shuffle()
    dataset = dataset.batch(batch_size, drop_remainder=True, batch_fn=np.asarray)
    dataset = dataset.repeat(config.num_epochs)
    dataset = dataset.random_map(_Loader(source, tokenizer, config, rows, prompts))
    options = grain.ReadOptions(
        num_threads=config.num_threads,
        prefetch_buffer_size=2 * config.num_threads,
    )
    return iter(dataset.to_iter_dataset(options))


def as_arrays(
    source: Source,
    tokenizer: TextTokenizer,
    length: int = 16,
    prompts: EncodePrompts | None = None,
) -> Batch:
    """Returns a whole source as one batch, in the source's order, for evaluation.

    Args:
        source: any source whose images have the same shape.
        tokenizer: of the captions.
        length: S, number of tokens of a caption.
        prompts: see `make_iterator`.

    Returns:
        A batch as of `make_iterator`, with the main captions. For in-memory sources,
        images and labels are read-only views.

    Raises:
        ValueError: if the source is empty.
    """
    if isinstance(source, MemorySource):
        texts = [captions[0] for captions in source.captions]
    else:
        texts = [source[i]["text"] for i in range(len(source))]
    images, labels = source_arrays(source)
    batch = {
        "image": images,
        "text": tokenizer.encode(texts, length),
        "label": labels,
    }
    if prompts is not None:
        batch["prompt"] = prompts(_asked(source, range(len(source))))
    return batch


def _asked(source: Source, indices: Iterable[int]) -> list[str]:
    """The records' prompts, "" for those without."""
    if isinstance(source, MemorySource):
        asked = source.prompts
        return ["" if asked is None else asked[i] for i in indices]
    return [source[i].get("prompt", "") for i in indices]


class _Loader:
    """Maps the indices of a batch to the arrays of the requested rows."""

    def __init__(
        self,
        source: Source,
        tokenizer: TextTokenizer,
        config: PipelineConfig,
        rows: np.ndarray,
        prompts: EncodePrompts | None,
    ):
        self._source = source
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._config = config
        if config.text_length is None:
            raise ValueError("text_length=None: batches need a length")
        self._length = config.text_length
        self._rows = rows
        if isinstance(source, MemorySource):
            # Encode every caption once; `first` is the offset of a record's captions.
            texts = [text for captions in source.captions for text in captions]
            self._tokens = tokenizer.encode(texts, self._length)
            self._counts = np.asarray([len(c) for c in source.captions])
            self._first = np.cumsum(self._counts) - self._counts

    def __call__(self, indices: np.ndarray, rng: np.random.Generator) -> Batch:
        config, rows = self._config, self._rows
        size = len(indices)
        # Sampled for the whole batch, so that a row does not depend on which others are
        # requested.
        variant = rng.random(size)
        flipped = rng.random(size) < 0.5
        shifts = rng.integers(0, 2 * config.crop_pixels + 1, (size, 2))
        if config.captions == "first":
            variant = np.zeros(size)
        batch = self._read(indices[rows], variant[rows])
        if config.flip:
            batch["image"] = np.where(
                flipped[rows, None, None, None],
                batch["image"][:, :, ::-1],
                batch["image"],
            )
        if config.crop_pixels:
            batch["image"] = _shifted(batch["image"], shifts[rows], config.crop_pixels)
        return batch

    def _read(self, indices: np.ndarray, variant: np.ndarray) -> Batch:
        source = self._source
        if isinstance(source, MemorySource):
            chosen = (variant * self._counts[indices]).astype(np.int64)
            batch = {
                "image": source.images(indices),
                "text": self._tokens[self._first[indices] + chosen],
                "label": source.labels[indices],
            }
            if self._prompts is not None:
                batch["prompt"] = self._prompts(_asked(source, indices))
            return batch
        records = [source[int(i)] for i in indices]
        texts = [
            _drawn(record.get("captions", (record["text"],)), place)
            for record, place in zip(records, variant, strict=True)
        ]
        batch = {
            "image": np.stack([record["image"] for record in records]),
            "text": self._tokenizer.encode(texts, self._length),
            "label": np.asarray([record["label"] for record in records], np.int32),
        }
        if self._prompts is not None:
            asked = [record.get("prompt", "") for record in records]
            batch["prompt"] = self._prompts(asked)
        return batch


def _drawn(captions: Sequence[str], place: float) -> str:
    """Picks the caption at the relative position ``place`` in [0, 1)."""
    return captions[int(place * len(captions))]


def _shifted(images: np.ndarray, shifts: np.ndarray, margin: int) -> np.ndarray:
    """Returns windows of images [B, h, w, 3] padded with a white margin in pixels."""
    height, width = images.shape[1:3]
    pad = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    padded = np.pad(images, pad, constant_values=255)
    return np.stack(
        [
            image[top : top + height, left : left + width]
            for image, (top, left) in zip(padded, shifts, strict=True)
        ]
    )
