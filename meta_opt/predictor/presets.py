"""The presets ``fast``, ``good`` and ``best`` of `meta_opt.fit`."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from meta_opt.optimizers.weights import DEFAULT
from meta_opt.types import check_name


@dataclasses.dataclass(frozen=True)
class Preset:
    """Limits on the length of training and the sizes of inputs.

    Attributes:
        epochs: number of epochs, unless ``steps`` limits it.
        steps: minimum and maximum number of optimizer updates.
        image_size: maximum side of images, in pixels.
        text_length: maximum length of a text, in tokens.
        audio_seconds: maximum length of audio, in seconds.
        fusion_width: D, the width of the fusion transformer.
        evaluations: number of evaluations on validation samples in a run.
        patience: number of evaluations without improvement before the run stops.
        snapshots: maximum number of best snapshots to average if that helps; 1 for no
            averaging.
        early: fraction of a run; if the best evaluation is before it, a second run
            follows whose length is derived from the best step. 0 for never.
        weights: of the learned optimizer: a shipped name, or the path of a
            ``.safetensors`` file.

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
    weights: str = DEFAULT


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
    """Returns the preset with a name; raises ValueError for an unknown name."""
    if isinstance(preset, Preset):
        return preset
    check_name("preset", preset, PRESETS)
    return PRESETS[preset]
