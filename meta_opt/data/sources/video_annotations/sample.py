"""The common form of a sample of a video-text data set."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class VideoTextSample:
    """A caption, question or sentiment label of a video or of a segment of one.

    Fields that a data set does not have keep their defaults.

    Attributes:
        video_id: the video, as the annotation file names it.
        key: key of the sample, unique within the data set.
        split: ``train``, ``validation`` or ``test``.
        captions: texts that describe the clip, or its transcript.
        question: question about the clip.
        options: answers to choose from.
        answer: an index into ``options`` (int), a text, or a count (float).
        score: sentiment, in [-3, 3].
        start_seconds: start of the segment in the video.
        end_seconds: end of the segment in the video.
        category: MSR-VTT's category of the video, 0 to 19, or TGIF-QA's type of a
            frame question (0 object, 1 number, 2 color, 3 location).
        clip_names: possible names of the clip's file, in order of preference; a name
            other than ``video_id`` is that of the segment alone.

    >>> sample = VideoTextSample("video0", "video0", "train", captions=("a car", "it"))
    >>> sample.text, sample.clip_names
    ('a car', ('video0',))
    """

    video_id: str
    key: str
    split: str
    captions: tuple[str, ...] = ()
    question: str = ""
    options: tuple[str, ...] = ()
    answer: int | float | str | None = None
    score: float | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    category: int | None = None
    clip_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.clip_names:
            object.__setattr__(self, "clip_names", (self.video_id,))

    @property
    def text(self) -> str:
        """The first caption, or the question of a sample without captions."""
        return self.captions[0] if self.captions else self.question

    @property
    def clip_id(self) -> str:
        """Identifier of its clip: the key if clips are segments, else the video."""
        return self.key if self.key in self.clip_names else self.video_id
