"""The presets ``fast``, ``good`` and ``best`` of `meta_opt.fit`."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from meta_opt.types import check_name


@dataclasses.dataclass(frozen=True)
class Preset:
    """Limits on the length of training and the sizes of inputs.

    Attributes:
        epochs: passes over the training samples, subject to ``steps``.
        steps: minimum and maximum number of optimizer updates.
        image_size: maximum side length of images in pixels.
        text_length: maximum number of tokens of a text.
        audio_seconds: maximum length of audio in seconds.
        fusion_width: D, width of the fusion.
        evaluations: number of evaluations on validation samples per run.
        patience: evaluations without improvement after which the run stops.
        snapshots: maximum number of best snapshots to average; 1 for no averaging.
        early: if validation is best before this share of a run, a shorter second run
            follows, with a length chosen from the best step. 0: never.

    >>> find_preset("good").epochs
    20
    """

    epochs: int
    steps: tuple[int, int]
    image_size: int
    text_length: int
    audio_seconds: float
    fusion_width: int = 128
    evaluations: int = 20
    patience: int = 8
    snapshots: int = 1
    early: float = 0.4


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "fast": Preset(
            *(8, (50, 400)),
            image_size=128,
            text_length=64,
            audio_seconds=4.0,
            patience=6,
            early=0.0,
        ),
        "good": Preset(
            20, (100, 2000), image_size=192, text_length=128, audio_seconds=10.0
        ),
        "best": Preset(
            *(30, (200, 6000)),
            image_size=224,
            text_length=256,
            audio_seconds=30.0,
            fusion_width=256,
            evaluations=30,
            patience=12,
            snapshots=5,
        ),
    }
)


def find_preset(preset: str | Preset) -> Preset:
    """Returns the preset of that name; raises ValueError if there is none."""
    if isinstance(preset, Preset):
        return preset
    check_name("preset", preset, PRESETS)
    return PRESETS[preset]
