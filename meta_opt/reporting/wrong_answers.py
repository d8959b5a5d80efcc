"""Wrong answers of a model for HTML pages, with images, audio and texts."""

import io
import wave
from collections.abc import Iterable
from typing import Protocol, TypedDict, TypeVar

import numpy as np
from PIL import Image

from meta_opt.data.preprocessing.images import encode_png, shrink
from meta_opt.data.splits import unit_hash
from meta_opt.reporting.page import data_uri

_SHOWN_PIXELS = 120


class Judged(Protocol):
    """An answer that is known to be right or wrong."""

    @property
    def example(self) -> str:
        """Key of the example."""

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""

    @property
    def confidence(self) -> float | None:
        """Probability of the answer; None if the model gives none."""


J = TypeVar("J", bound=Judged)


class ShownAnswer(TypedDict):
    """The fields of an answer that the macro of ``answers.html`` shows.

    ``picture`` and ``sound`` are data URIs, see `picture_uri` and `sound_uri`, "" where
    there is none; ``prediction`` is None where none was read.
    """

    example: str
    label: str
    prediction: str | None
    confidence: float | None
    text: str
    picture: str
    sound: str


def choose_wrong(answers: Iterable[J], most: int) -> list[J]:
    """Chooses wrong answers of one model under one condition.

    The most confident ones come first; without confidences a hash of the example
    decides.

    Args:
        answers: answers of one model, seed and condition.
        most: maximum number of answers to select.
    """
    wrong = [one for one in answers if not one.correct]
    return sorted(
        wrong, key=lambda one: (-(one.confidence or 0.0), unit_hash(one.example))
    )[:most]


def picture_uri(picture: np.ndarray | None) -> str:
    """Returns a thumbnail of an image, uint8 [H, W, 3], as a data URI; "" for None."""
    if picture is None:
        return ""
    image = Image.fromarray(np.ascontiguousarray(picture))
    return data_uri(encode_png(shrink(image, _SHOWN_PIXELS)))


def sound_uri(clip: np.ndarray, rate: int) -> str:
    """A clip, int16 [T] at ``rate`` samples per second, as the address of a WAV file.

    >>> sound_uri(np.zeros(2, np.int16), 8000)[:20]
    'data:audio/wav;base6'
    """
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(clip.astype("<i2").tobytes())
    return data_uri(buffer.getvalue(), "audio/wav")
