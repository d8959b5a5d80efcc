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
from meta_opt.types import PyTree, check_keys, check_name
from meta_opt.workloads.clip_reader import PRECOMPUTED, ClipReader, ClipReaderConfig
from meta_opt.workloads.frame_targets import centre_targets, make_codebook

META_VALIDATION = "meta_validation"


@dataclasses.dataclass(frozen=True)
class ClipsConfig:
    """The clips, and how they become arrays.

    Attributes:
        source: one of `meta_opt.data.sources.clips.CLIPS`, or an official data set, one
            of `meta_opt.data.sources.annotated_clips.SETS`.
        official: the files and the splits of an official data set.
        data_dir: the folder of datasets and encoders; "" for $META_OPT_DATA_DIR, else
            ``data``.
        max_examples: most clips of a split; 0: all of them.
        frames: T, frames of a clip; longer clips are subsampled, shorter ones padded.
        image_size: side of the frames in pixels.
        text_length: S, tokens of a clip's name or caption.
        question_length: S, tokens of a question or of an answer option.
        meta_validation: share of the training clips that is held out for meta-steps.
        codebook_size: K, number of visual tokens.
        encoders: names of `meta_opt.models.encoders` for ``image`` and ``text``;
            ``image`` may be ``precomputed`` for clips that are features of frames.
        trainable_layers: by modality, number of last layers that train; 0: all.
            ``precomputed`` has no layers.
        feature_cache_dir: folder for the outputs of frozen layers; "" computes them for
            each run.
        seed: of questions and codebook.
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
        """Checks names and ranges, and the paths of an official data set."""
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
        for name in ("frames", "codebook_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"clips.{name}={getattr(self, name)} must be positive")

    def check_task(self, task: str) -> None:
        """Raises ValueError if the source does not support a task."""
        if self.source in SETS:
            check_task(self.source, task)


class ClipInputs(NamedTuple):
    """The inputs of a run.

    Attributes:
        splits: ``train``, ``meta_validation``, ``validation`` and ``test``, dicts of
            arrays [N, ...]: ``frames`` and ``text_features``, what the encoders read,
            ``present`` bool [N, T], ``targets`` [N, T, F] of masked frames, ``clip``
            int [N], the row in `clips`, ``text`` int [N, S], ``words``, the same by
            `vocabulary`, ``score``. Where questions have answers in words ``question``
            and ``answer`` (-1: not in `answers`), where they have options ``choices``
            [N, C, ...] and ``choice``. A sample is a clip with a caption, the first
            alone in validation and test, or with a question.
        clips: by split.
        questions: by split; of other tasks none.
        reader: with the encoders and the tokenizer of texts.
        vocabulary: int [K], its ids of the tokens that training texts have; the first
            is the padding's, and stands for all others too.
        answers: of training questions.
        codebook: float32 [K, F], centres of the targets of training frames; None where
            no loss reads visual tokens.
        short: by split, how many clips have fewer than T frames.
        about: JSON values on what the source has and what was left out of it.
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
        """Of the token that ends a text, by `vocabulary`."""
        end = self.reader.tokenizer.special_ids[-1]
        return int(np.flatnonzero(self.vocabulary == end)[0])

    def decode(self, words: np.ndarray) -> list[str]:
        """The texts of rows [N, S] by `vocabulary`."""
        return self.reader.tokenizer.decode(self.vocabulary[words])


def read_clip_inputs(
    config: ClipsConfig, task: str, visual_tokens: bool = True
) -> ClipInputs:
    """Reads the clips and runs the frozen layers on them.

    Args:
        config: the clips.
        task: ``question_answering`` reads questions, ``sentiment`` only clips with a
            known sentiment.
        visual_tokens: whether to make the codebook, which takes long for many clips.

    Raises:
        MissingDataError: a dataset or encoder that is not prepared.
        FileNotFoundError: an annotation file that is missing.
        ValueError: a source that cannot do the task; clips that are features where
            pictures are encoded, or the other way round; see also `ClipSource.read`,
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
    # Now that all frames were read: those that are damaged are counted.
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
    """The source of a run's clips.

    Args:
        config: the clips.
        root: the folder of datasets.
    """
    if config.source in SETS:
        return AnnotatedClips(
            config.source, config.official, config.frames, config.image_size
        )
    return PreparedClips(config.source, root, config.image_size, seed=config.seed)


def patches_of(inputs: ClipInputs) -> int:
    """P, number of patches of a frame in the image encoder."""
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
    """The clips with frames, their fitted frames, and the keys of clips without any.

    Raises:
        ValueError: no clip has a frame.
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
    """How clips are read; their frames must fit the encoder of images."""
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
    """Clips with their captions, N rows of clips and N texts."""
    texts = [(name,) for name in clips.name] if first_only else clips.captions
    rows = np.repeat(np.arange(len(clips)), [len(each) for each in texts])
    return rows, [text for each in texts for text in each]


def _clip_arrays(
    reader: ClipReader, split: str, frames: np.ndarray, present: np.ndarray
) -> dict[str, PyTree]:
    """Of clips without texts; ``targets`` are not centred yet."""
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
    """Of clips with texts; ``clip`` are the rows."""
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
    """Of questions, from those of their clips."""
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
            # Of what is not shown anything will do: it is not present.
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
        # Without the start token, but with the end token, which is generated.
        arrays["caption"] = arrays["words"][:, 1:]
    return vocabulary
