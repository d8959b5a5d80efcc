"""Clips of official video-text data sets, for tasks on video and text.

MSR-VTT, YouCook2, TGIF-QA, MSVD-QA, MSR-VTT-QA and CMU-MOSI out of their annotation
files and a folder of frames, features or animations, which
`meta_opt.data.sources.video_annotations` reads.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from meta_opt.data.records import SPLITS
from meta_opt.data.sources.clip_questions import Questions
from meta_opt.data.sources.clips import AskedQuestion, Clips
from meta_opt.data.sources.video_annotations import (
    VideoTextData,
    VideoTextSample,
    read_annotations,
)
from meta_opt.data.sources.video_annotations.clips import NAMED
from meta_opt.data.splits import held_out_split

HELD_OUT = "held_out"
"""Value of the validation split for a share of the training videos, by hash of their
ids."""

_FRAME_TYPES = ("object", "number", "color", "location")
"""Types of TGIF-QA's frame questions."""
_QUESTION_WORDS = ("what", "who", "how", "when", "where")
"""Question words by which accuracy on MSVD-QA and MSR-VTT-QA is reported."""


class AnnotatedSet(NamedTuple):
    """The tasks of a data set, and the use of its official splits.

    Attributes:
        tasks: names of `meta_opt.workloads.video_text_losses.TASKS`.
        train: the official split, or several joined by ``+``.
        validation: an official split, or `HELD_OUT`.
        test: the official split that results are reported on.
    """

    tasks: tuple[str, ...]
    train: str
    validation: str
    test: str


_CAPTIONS = ("retrieval", "captioning")
_QUESTIONS = ("question_answering",)
SETS: Mapping[str, AnnotatedSet] = MappingProxyType(
    {
        "msrvtt": AnnotatedSet(_CAPTIONS, "train", "validation", "test"),
        "msrvtt_7k": AnnotatedSet(_CAPTIONS, "train+validation", HELD_OUT, "test"),
        "msrvtt_9k": AnnotatedSet(_CAPTIONS, "train", HELD_OUT, "test"),
        # Captions of its test split were never published.
        "youcook2": AnnotatedSet(_CAPTIONS, "train", HELD_OUT, "validation"),
        **{
            f"tgif_qa_{task}": AnnotatedSet(_QUESTIONS, "train", HELD_OUT, "test")
            for task in ("action", "transition", "frame", "count")
        },
        "msvd_qa": AnnotatedSet(_QUESTIONS, "train", "validation", "test"),
        "msrvtt_qa": AnnotatedSet(_QUESTIONS, "train", "validation", "test"),
        "cmu_mosi": AnnotatedSet(("sentiment",), "train", "validation", "test"),
    }
)
"""Data sets by name, those of `meta_opt.data.sources.video_annotations.KINDS`."""


@dataclasses.dataclass(frozen=True)
class OfficialConfig:
    """The files of an official data set, and the use of its splits.

    Attributes:
        annotations: folder of the annotation files, or one of them.
        media: folder of the clips, each a folder of frames, a ``.npy`` file of features
            or an animation, see `meta_opt.data.sources.video_annotations.clips`.
        frames_per_second: sampling rate of frames or features, to cut segments out of
            whole videos; 0 if each segment is a clip of its own.
        train: training split, several joined by ``+``; "" for that of `SETS`.
        validation: validation split, or ``held_out`` for a share of the training
            videos; "" for that of `SETS`.
        test: test split; "" for that of `SETS`.
        held_out_share: share of the training videos if validation is ``held_out``.
    """

    annotations: str = ""
    media: str = ""
    frames_per_second: float = 0.0
    train: str = ""
    validation: str = ""
    test: str = ""
    held_out_share: float = 0.1

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
        if not self.frames_per_second >= 0:
            raise ValueError(
                f"clips.official.frames_per_second={self.frames_per_second} is below 0"
            )
        if not 0 < self.held_out_share < 1:
            raise ValueError(
                f"clips.official.held_out_share={self.held_out_share} must be above 0 "
                "and below 1"
            )

    def splits(self, source: str) -> dict[str, str]:
        """The official splits that are read as train, validation and test.

        Args:
            source: one of `SETS`.

        Raises:
            ValueError: if two of them overlap.

        >>> OfficialConfig(validation="validation").splits("msrvtt_7k")
        ... # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: clips.official.train='train+validation' and clips.official.val...
        >>> OfficialConfig(train="train", validation="validation").splits("msrvtt_7k")
        {'train': 'train', 'validation': 'validation', 'test': 'test'}
        """
        known = SETS[source]
        found = {s: getattr(self, s) or getattr(known, s) for s in SPLITS}
        for one, other in (
            *(("train", "validation"), ("train", "test"), ("validation", "test")),
        ):
            both = {*found[one].split("+")} & {*found[other].split("+")}
            if both:
                raise ValueError(
                    f"clips.official.{one}={found[one]!r} and clips.official.{other}="
                    f"{found[other]!r} have the split {min(both)!r} in common"
                )
        return found

    def check(self, source: str) -> None:
        """Raises ValueError if a path is not set, or splits overlap.

        Args:
            source: one of `SETS`.
        """
        for name, what in (
            ("annotations", "annotation files"),
            ("media", "clips"),
        ):
            if not getattr(self, name):
                raise ValueError(
                    f"clips.source={source!r} needs the folder of its {what}: "
                    f"--config.clips.official.{name}=FOLDER"
                )
        self.splits(source)


def check_task(source: str, task: str) -> None:
    """Raises ValueError if a data set has no labels for a task.

    Args:
        source: one of `SETS`.
        task: one of `meta_opt.workloads.video_text_losses.TASKS`.
    """
    tasks = SETS[source].tasks
    if task not in tasks:
        able = [name for name, other in SETS.items() if task in other.tasks]
        raise ValueError(
            f"clips.source={source!r} has no labels for task={task!r}: it can do "
            f"{', '.join(tasks)}, and {task} can be done on {', '.join(able)}"
        )


class AnnotatedClips:
    """An official data set as a `meta_opt.data.sources.clips.ClipSource`.

    Samples without a clip are skipped and counted (`describe`). A clip is a segment if
    the data set describes segments, else a whole video, with all its captions or
    questions.

    Args:
        source: one of `SETS`.
        config: files and splits of the data set.
        frames: T, largest number of frames of a clip.
        image_size: side of the frames in pixels.

    Raises:
        ValueError: as `OfficialConfig.check`.
    """

    def __init__(
        self, source: str, config: OfficialConfig, frames: int, image_size: int
    ) -> None:
        config.check(source)
        self._source, self._config = source, config
        self._frames, self._image_size = frames, image_size
        self._splits = config.splits(source)
        self._read: dict[str, VideoTextData] = {}
        self._wordless: dict[str, int] = {}

    def read(self, split: str) -> Clips:
        """Reads the clips of a split; frames are read on access.

        Args:
            split: ``train``, ``validation`` or ``test``.

        Raises:
            ValueError: see `read_annotations`; or if no clip is left.
            FileNotFoundError: if an annotation file is missing.
        """
        held = self._splits["validation"] == HELD_OUT
        shares = {"validation": 0.0, "test": self._config.held_out_share}
        part = "train" if held and split == "validation" else split
        data = self._annotations(part)
        clips = self._clips(part, data)
        if held and split != "test":
            # Meta-validation uses the other end of the hashes.
            ends = [held_out_split(g, shares) == "test" for g in clips.group]
            chosen = np.asarray(ends) == (split == "validation")
            clips = clips.at(np.flatnonzero(chosen))
        if not len(clips):
            raise ValueError(
                f"{self._source}: no clip in {split} of {len(data)} samples of the "
                f"official split {self._splits[part]!r}"
            )
        return clips

    def questions(
        self, clips: Clips, frames: np.ndarray, present: np.ndarray
    ) -> Questions:
        """The questions of the annotation files, about whole clips.

        Args:
            clips: B clips of a split.
            frames: frames of the clips, which are not used.
            present: bool [B, T], whether a frame exists.

        Raises:
            ValueError: if no clip has a question.
        """
        pairs = [(i, asked) for i, each in enumerate(clips.asked) for asked in each]
        if not pairs:
            raise ValueError(f"{self._source} has no questions about its clips")
        rows = np.asarray([i for i, _ in pairs])
        asked = [each for _, each in pairs]
        shown = np.where(present, np.arange(present.shape[1])[None], -1)
        return Questions(
            clip=rows,
            frames=shown[rows],
            kind=tuple(q.kind for q in asked),
            text=tuple(q.question for q in asked),
            question=tuple(q.question for q in asked),
            answer=tuple(q.answer for q in asked),
            choices=tuple(q.options for q in asked),
            offered=tuple(
                tuple(f"{q.question} {option}" for option in q.options) for q in asked
            ),
            choice=np.asarray([q.choice for q in asked], np.int32),
        )

    def describe(self) -> Mapping[str, Any]:
        """The official splits, and the number of samples with clips of those read."""
        read = {}
        for split, data in self._read.items():
            read[split] = {
                "split": data.split,
                "samples": len(data),
                "annotated": data.num_annotated,
                "missing_clips": len(data.missing),
                "missing": list(data.missing[:NAMED]),
            }
            if data.damaged:
                read[split]["clips_with_damaged_frames"] = len(data.damaged)
            if self._wordless.get(split):
                read[split]["captions_without_words"] = self._wordless[split]
        videos = {
            split: {sample.video_id for sample in data.samples}
            for split, data in self._read.items()
        }
        shared = {
            split: len(found & videos["train"])
            for split, found in videos.items()
            if split != "train" and "train" in videos
        }
        return {
            "source": self._source,
            "splits": dict(self._splits),
            "read": read,
            "videos_shared_with_train": shared,
        }

    def _annotations(self, split: str) -> VideoTextData:
        if split not in self._read:
            self._read[split] = read_annotations(
                self._source,
                self._config.annotations,
                split=self._splits[split],
                media=self._config.media,
                frames_per_second=self._config.frames_per_second or None,
            )
        return self._read[split]

    def _clips(self, split: str, data: VideoTextData) -> Clips:
        by_clip: dict[str, list[VideoTextSample]] = {}
        wordless = 0
        for sample in data.samples:
            if "captioning" in SETS[self._source].tasks:
                # Caption metrics ignore texts without letters, such as "...".
                kept = tuple(c for c in sample.captions if any(map(str.isalnum, c)))
                wordless += len(sample.captions) - len(kept)
                if not kept:
                    continue
                sample = dataclasses.replace(sample, captions=kept)
            by_clip.setdefault(sample.clip_id, []).append(sample)
        self._wordless[split] = wordless
        first = [samples[0] for samples in by_clip.values()]
        return Clips(
            video=_Videos(data, first, self._frames, self._image_size),
            name=[sample.text for sample in first],
            category=["" if s.category is None else str(s.category) for s in first],
            sentiment=np.asarray(
                [np.nan if s.score is None else s.score for s in first], np.float32
            ),
            key=list(by_clip),
            captions=[
                tuple(c for s in samples for c in (s.captions or (s.question,)))
                for samples in by_clip.values()
            ],
            group=[sample.video_id for sample in first],
            asked=[
                tuple(_asked(s, self._source) for s in samples if s.question)
                for samples in by_clip.values()
            ],
        )


class _Videos(Sequence[np.ndarray]):
    """Frames or features of clips, up to a largest number."""

    def __init__(
        self,
        data: VideoTextData,
        samples: Sequence[VideoTextSample],
        frames: int,
        image_size: int,
    ) -> None:
        self._data, self._samples = data, samples
        self._frames, self._image_size = frames, image_size

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        data, sample = self._data, self._samples[index]
        assert data.clips is not None
        if data.clips.form == "features":
            x, present = data.features(sample, self._frames)
        else:
            x, present = data.frames(sample, self._frames, self._image_size)
        return x[present]


def _asked(sample: VideoTextSample, source: str) -> AskedQuestion:
    if sample.options:
        assert isinstance(sample.answer, int)
        kind = source.removeprefix("tgif_qa_")
        return AskedQuestion(kind, sample.question, "", sample.options, sample.answer)
    if isinstance(sample.answer, float):
        return AskedQuestion("count", sample.question, str(int(sample.answer)))
    if sample.category is not None:
        kind = _FRAME_TYPES[sample.category]
    else:
        word = sample.question.split()[0].lower()
        kind = word if word in _QUESTION_WORDS else "other"
    return AskedQuestion(kind, sample.question, str(sample.answer))
