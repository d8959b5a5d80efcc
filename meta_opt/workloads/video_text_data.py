"""Converts clips and texts to the input arrays of a video-text model."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.preprocessing.folder_tokenizer import FolderTokenizer
from meta_opt.data.records import SPLITS
from meta_opt.data.shared_rows import share_rows
from meta_opt.data.sources.annotated_clips import (
    SETS,
    AnnotatedClips,
    OfficialConfig,
    check_task,
)
from meta_opt.data.sources.clip_questions import (
    Questions,
    answer_ids,
    answer_vocabulary,
)
from meta_opt.data.sources.clips import (
    CLIPS,
    Clips,
    ClipSource,
    PreparedClips,
    fit_frames,
    hold_out,
)
from meta_opt.data.sources.video_annotations.clips import NAMED
from meta_opt.types import PyTree, check_keys, check_least, check_name
from meta_opt.workloads.clip_reader import PRECOMPUTED, ClipReader, ClipReaderConfig
from meta_opt.workloads.frame_targets import centre_targets, make_codebook

META_VALIDATION = "meta_validation"


@dataclasses.dataclass(frozen=True)
class ClipsConfig:
    """The clips of a run, and how they become arrays.

    Attributes:
        source: one of `meta_opt.data.sources.clips.CLIPS`, or an official dataset, one
            of `meta_opt.data.sources.annotated_clips.SETS`.
        official: files and splits of an official dataset.
        data_dir: folder of datasets and encoders; "" for $META_OPT_DATA_DIR, else
            ``data``.
        max_examples: maximum number of clips per split; 0 for all of them.
        frames: T, frames per clip; longer clips are subsampled, shorter ones padded.
        image_size: side length of the frames in pixels.
        text_length: S, number of tokens of a clip's name or caption.
        question_length: S, number of tokens of a question or of an answer option.
        meta_validation: share of the training clips held out for meta-steps.
        codebook_size: K, number of visual tokens.
        encoders: names of `meta_opt.models.encoders` for ``image`` and ``text``;
            ``image`` may be ``precomputed`` for clips that are features of frames.
        trainable_layers: number of last layers to train, by modality; 0 for all.
            ``precomputed`` has no layers.
        feature_cache_dir: folder for the outputs of frozen layers; "" computes them for
            each run.
        seed: random seed of questions and codebook.
    """

    source: str = "animated_emoji"
    official: OfficialConfig = dataclasses.field(default_factory=OfficialConfig)
    data_dir: str = ""
    max_examples: int = 0
    frames: int = 8
    image_size: int = 64
    text_length: int = 12
    question_length: int = 16
    meta_validation: float = 0.15
    codebook_size: int = 64
    encoders: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"image": "efficientnet_lite0", "text": "minilm"}
    )
    trainable_layers: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"image": 1, "text": 1}
    )
    feature_cache_dir: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks names and ranges, and the paths of an official dataset."""
        check_name("clips.source", self.source, (*CLIPS, *SETS))
        if self.source in SETS:
            self.official.check(self.source)
        elif self.official != OfficialConfig():
            raise ValueError(
                f"clips.official is for official data sets ({', '.join(SETS)}), and "
                f"clips.source={self.source!r} is none"
            )
        check_keys("clips.encoders", self.encoders, ("image", "text"))
        for modality in ("image", "text"):
            if modality not in self.encoders:
                raise ValueError(f"clips.encoders has no encoder of {modality}")
        check_keys("clips.trainable_layers", self.trainable_layers, self.encoders)
        check_least("clips", self, frames=1, codebook_size=1, image_size=1)
        check_least("clips", self, max_examples=0)

    def check_task(self, task: str) -> None:
        """Raises ValueError if the source does not support a task."""
        if self.source in SETS:
            check_task(self.source, task)


class ClipInputs(NamedTuple):
    """The inputs of a run.

    Attributes:
        splits: dicts of arrays [N, ...] for ``train``, ``meta_validation``,
            ``validation`` and ``test``. ``frames`` and ``text_features`` are the inputs
            of the encoders' trained layers; ``present`` bool [N, T] marks frames that
            are not padding; ``targets`` [N, T, F] are those of masked frames; ``clip``
            int [N] is the row in `clips`; ``text`` int [N, S] has the tokenizer's ids
            and ``words`` those of `vocabulary`; ``score`` is the sentiment. Open-ended
            questions have ``question`` and ``answer`` (-1: not in `answers`),
            multiple-choice questions ``choices`` [N, C, ...] and ``choice``. A sample
            is a clip with a question or with a caption; validation and test samples
            have only the first caption of each clip.
        clips: clips by split.
        questions: questions by split; empty for other tasks.
        reader: reader with the encoders and the text tokenizer.
        vocabulary: int [K], tokenizer ids of the tokens of training texts. The first is
            padding, which also stands for unknown tokens.
        answers: answers of the training questions.
        codebook: float32 [K, F], centres of the targets of training frames; None if no
            loss uses visual tokens.
        short: number of clips with fewer than T frames, by split.
        about: JSON values that describe the source and what was left out of it.
    """

    splits: dict[str, dict[str, PyTree]]
    clips: dict[str, Clips]
    questions: dict[str, Questions]
    reader: ClipReader
    vocabulary: np.ndarray
    answers: tuple[str, ...]
    codebook: np.ndarray | None
    short: dict[str, int]
    about: dict[str, Any]

    @property
    def end_id(self) -> int:
        """Index in `vocabulary` of the token that ends a text."""
        end = self.reader.tokenizer.special_ids[-1]
        return int(np.flatnonzero(self.vocabulary == end)[0])

    def decode(self, words: np.ndarray) -> list[str]:
        """Decodes rows [N, S] of indices in `vocabulary` to texts."""
        return self.reader.tokenizer.decode(self.vocabulary[words])


def read_clip_inputs(
    config: ClipsConfig, task: str, visual_tokens: bool = True
) -> ClipInputs:
    """Reads the clips and runs the frozen layers on them.

    Args:
        config: configuration of the clips.
        task: ``question_answering`` reads questions; ``sentiment`` only reads clips
            with a known sentiment.
        visual_tokens: whether to make the codebook, which takes long for many clips.

    Raises:
        MissingDataError: a dataset or encoder is not prepared.
        FileNotFoundError: an annotation file is missing.
        ValueError: the source does not support the task; the clips are features but
            the encoder takes images, or vice versa; see also `ClipSource.read`,
            `hold_out`, `ClipReader` and `ClipSource.questions`.
    """
    root = config.data_dir or default_data_dir()
    config.check_task(task)
    source = clip_source(config, root)
    clips = _split_clips(config, task, source)
    reader = ClipReader(
        *(_reader_config(config, clips), root),
        config.feature_cache_dir,
        config.source,
    )
    fitted, without = {}, {}
    for split, x in clips.items():
        clips[split], fitted[split], empty = _fit(split, x, config.frames)
        if empty:
            without[split] = {"count": len(empty), "named": empty[:NAMED]}
    # Only after all frames are read does this count the damaged ones.
    about = dict(source.describe())
    if without:
        about["clips_without_frames"] = without
    by_clip = {s: _clip_arrays(reader, s, *x) for s, x in fitted.items()}
    centre_targets(by_clip)
    codebook = None
    if visual_tokens:
        train = by_clip["train"]
        codebook = make_codebook(
            train["targets"][train["present"]], config.codebook_size, config.seed
        )
    questions: dict[str, Questions] = {}
    answers: tuple[str, ...] = ()
    splits = {}
    if task == "question_answering":
        for split, x in clips.items():
            questions[split] = source.questions(x, *fitted[split])
        answers = answer_vocabulary(questions["train"])
    for split, x in clips.items():
        if split in questions:
            asked = questions[split]
            splits[split] = {
                **_text_arrays(reader, split, by_clip[split], asked.clip, asked.text),
                **_question_arrays(reader, split, by_clip[split], asked, answers),
            }
        else:
            training = split in ("train", META_VALIDATION)
            rows, texts = _pairs(x, first_only=not training or task == "sentiment")
            splits[split] = _text_arrays(reader, split, by_clip[split], rows, texts)
        splits[split]["score"] = x.sentiment[splits[split]["clip"]]
    vocabulary = _add_words(splits, reader.tokenizer)
    return ClipInputs(
        splits=splits,
        clips=clips,
        questions=questions,
        reader=reader,
        vocabulary=vocabulary,
        answers=answers,
        codebook=codebook,
        short={s: int((~x[1][:, -1]).sum()) for s, x in fitted.items()},
        about=about,
    )


def clip_source(config: ClipsConfig, root: str | os.PathLike) -> ClipSource:
    """Returns the source of a run's clips.

    Args:
        config: configuration of the clips.
        root: folder of datasets.
    """
    if config.source in SETS:
        return AnnotatedClips(
            config.source, config.official, config.frames, config.image_size
        )
    return PreparedClips(config.source, root, config.image_size, seed=config.seed)


def patches_of(inputs: ClipInputs) -> int:
    """Returns P, the number of patches of a frame in the image encoder."""
    frames = inputs.splits["train"]["frames"]
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x[0].shape, x.dtype), frames)
    upper: Any = inputs.reader.encoders["image"].upper
    return jax.eval_shape(lambda x: upper.tokens(x)[0], one).shape[1]


def _split_clips(
    config: ClipsConfig, task: str, source: ClipSource
) -> dict[str, Clips]:
    clips = {split: source.read(split) for split in SPLITS}
    if task == "sentiment":
        clips = {split: x.with_sentiment() for split, x in clips.items()}
        if empty := [split for split, x in clips.items() if not len(x)]:
            raise ValueError(f"no clip in {empty[0]} has a sentiment")
    train, held = hold_out(clips["train"], config.meta_validation)
    clips = {**clips, "train": train, META_VALIDATION: held}
    return {split: x.at_most(config.max_examples) for split, x in clips.items()}


def _fit(
    split: str, clips: Clips, frames: int
) -> tuple[Clips, tuple[np.ndarray, ...], list[str]]:
    """Returns clips that have frames, these fitted to T, and the keys of empty clips.

    Raises:
        ValueError: no clip has any frame.
    """
    video, present = fit_frames(clips.video, frames)
    there = present.any(axis=1)
    if there.all():
        return clips, (video, present), []
    if not there.any():
        raise ValueError(f"none of {len(clips)} clips in {split} has a frame")
    lost: list[int] = np.flatnonzero(~there).tolist()
    empty = [clips.key[i] for i in lost]
    return clips.at(np.flatnonzero(there)), (video[there], present[there]), empty


def _reader_config(config: ClipsConfig, clips: Mapping[str, Clips]) -> ClipReaderConfig:
    """Returns the reader's settings; frames must suit the image encoder."""
    shapes = {split: x.video[0].shape[1:] for split, x in clips.items()}
    features = len(shapes["train"]) == 1
    image = config.encoders["image"]
    if features != (image == PRECOMPUTED):
        raise ValueError(
            f"the clips of {config.source} are features of frames, and "
            f"clips.encoders.image={image!r} reads images: set it to {PRECOMPUTED!r}"
            if features
            else f"the clips of {config.source} are images, and clips.encoders.image="
            f"{image!r} takes features of frames: name an encoder of images"
        )
    for split, shape in shapes.items():
        if shape != shapes["train"]:
            raise ValueError(
                f"{config.source}: frames of shape {list(shape)} in {split} and of "
                f"{list(shapes['train'])} in train; all clips need the same"
            )
    return ClipReaderConfig(
        frames=config.frames,
        image_size=config.image_size,
        text_length=config.text_length,
        question_length=config.question_length,
        encoders=config.encoders,
        trainable_layers=config.trainable_layers,
        feature_width=shapes["train"][0] if features else 0,
    )


def _pairs(clips: Clips, first_only: bool) -> tuple[np.ndarray, list[str]]:
    """Returns clip-caption pairs, as N rows of clips and N texts."""
    texts = [(name,) for name in clips.name] if first_only else clips.captions
    rows = np.repeat(np.arange(len(clips)), [len(each) for each in texts])
    return rows, [text for each in texts for text in each]


def _clip_arrays(
    reader: ClipReader, split: str, frames: np.ndarray, present: np.ndarray
) -> dict[str, PyTree]:
    """Returns the arrays of clips without texts; ``targets`` are not yet centred."""
    read = reader.frames(frames, split)
    targets = reader.frame_targets(read)
    return {"frames": read, "present": present, "targets": targets}


def _text_arrays(
    reader: ClipReader,
    split: str,
    arrays: Mapping[str, PyTree],
    rows: np.ndarray,
    texts: Sequence[str],
) -> dict[str, PyTree]:
    """Returns the arrays of clips with texts; ``rows`` become ``clip``."""
    tokens = reader.tokenizer.encode(texts, reader.config.text_length)
    return {
        **share_rows(dict(arrays), rows),
        "clip": np.asarray(rows, np.int32),
        "text": tokens,
        "text_features": reader.tokens(tokens, split),
    }


def _question_arrays(
    reader: ClipReader,
    split: str,
    arrays: Mapping[str, PyTree],
    questions: Questions,
    answers: Sequence[str],
) -> dict[str, PyTree]:
    """Returns the arrays of questions, from the arrays of their clips."""
    length = reader.config.question_length
    found: dict[str, PyTree] = {}
    if answers:
        found["question"] = reader.texts(questions.question, length, split)
        found["answer"] = answer_ids(questions, answers)
    offered = [text for texts in questions.offered for text in texts]
    if offered:
        choices = reader.texts(offered, length, split)
        by_question = (len(questions.offered), -1)
        found["choices"] = jax.tree.map(
            lambda x: x.reshape(*by_question, *x.shape[1:]), choices
        )
        found["choice"] = questions.choice
    shown, rows = questions.frames, questions.clip
    there = shown >= 0
    in_order = np.where(there, np.arange(shown.shape[1])[None], -1)
    if not np.array_equal(shown, in_order):
        at = np.arange(len(shown))[:, None]
        for name in ("frames", "targets"):
            # The values of frames that are not shown are arbitrary: they are masked.
            found[name] = jax.tree.map(
                lambda x: x[rows][at, np.maximum(shown, 0)], arrays[name]
            )
        found["present"] = there
    return found


def _add_words(
    splits: dict[str, dict[str, PyTree]], tokenizer: FolderTokenizer
) -> np.ndarray:
    """Adds ``words`` and ``caption``, and returns the vocabulary."""
    found = np.setdiff1d(splits["train"]["text"], [tokenizer.pad_id])
    vocabulary = np.concatenate([[tokenizer.pad_id], found])
    place = np.zeros(tokenizer.vocab_size, np.int32)
    place[vocabulary] = np.arange(len(vocabulary))
    for arrays in splits.values():
        arrays["words"] = place[arrays["text"]]
        # Without the start token, but with the end token, which is predicted too.
        arrays["caption"] = arrays["words"][:, 1:]
    return vocabulary
