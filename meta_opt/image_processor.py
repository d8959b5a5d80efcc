"""Image preprocessing settings of Hugging Face folders.

Transformers resizes, centre-crops, rescales and normalises, depending on the settings.
Here normalisation is part of the model and resizing part of the data pipeline, so these
settings are used by both. Every setting is applied, known to have no effect, or
rejected by name.

The settings are those of CLIP's, SigLIP's and ConvNeXt's image processors (ResNet's is
ConvNeXt's). They are in
``preprocessor_config.json``, or under ``image_processor`` in ``processor_config.json``,
where version 5 of Transformers writes them and which is read first, as it does.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from meta_opt.text_files import read_json

_OWN_FILE = "preprocessor_config.json"
_JOINT_FILE = "processor_config.json"
_TYPES = ("image_processor_type", "feature_extractor_type")
_FLAGS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad")
_APPLIED = (
    *_TYPES,
    *_FLAGS,
    "size",
    "crop_size",
    "crop_pct",
    "resample",
    "rescale_factor",
    "image_mean",
    "image_std",
)
# Images are always RGB; the others do not affect the result.
_WITHOUT_EFFECT = (
    "_name_or_path",
    "_valid_processor_keys",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "image_seq_length",
    "input_data_format",
    "processor_class",
    "return_tensors",
    "transformers_version",
)
BILINEAR, BICUBIC = 2, 3
"""Pillow's numbers of filters: ConvNeXt's, and that of CLIP and SigLIP."""
_ENDINGS = ("FeatureExtractor", "ImageProcessor", "ImageProcessorFast")
_KINDS = {
    f"{kind}{end}": kind for kind in ("CLIP", "Siglip", "ConvNext") for end in _ENDINGS
}
_CROP_PCT, _NO_CROP = 0.875, 384
"""ConvNeXt's default crop ratio, and the size below which images are cropped."""
_MAX_PIXEL = 255
MAX_SIDE = 2**14
"""Largest side in pixels that images are resized to."""

Channels = tuple[float, ...]


class Geometry(NamedTuple):
    """Resizing of images to squares.

    Attributes:
        crop: whether to resize the shorter side and centre-crop; otherwise the image is
            stretched to a square.
        resized: side in pixels before the centre crop to the model's size.
        resample: Pillow's number of the filter.
    """

    crop: bool
    resized: int
    resample: int


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """Settings of an image processor; defaults are those of the model.

    Attributes:
        settings: settings of the file.
        file: path of the file, for messages.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    file: str = _OWN_FILE

    def __post_init__(self) -> None:
        """Raises ValueError for unknown or invalid settings."""
        for name, value in self.settings.items():
            if name not in (*_APPLIED, *_WITHOUT_EFFECT) and value is not None:
                raise self._error(
                    name, f"is not known; known are {', '.join(_APPLIED)}"
                )
        for name in _FLAGS:
            if not isinstance(self._get(name, False), bool):
                raise self._error(name, "must be true or false")
        for name in _TYPES:
            kind = self._get(name, "CLIPImageProcessor")
            if not isinstance(kind, str) or kind not in _KINDS:
                raise self._error(name, f"must be one of {', '.join(_KINDS)}")
        if self._get("do_pad", False):
            raise self._error("do_pad", "is not applied here; set it to false")

    def channels(self, mean: Channels, std: Channels) -> tuple[Channels, Channels]:
        """Mean and deviation of the equivalent normalisation of pixels in [0, 1].

        With f = ``rescale_factor``, or 1 without rescaling, Transformers computes
        (f x - mean) / std of pixels x in 0..255, which is (x / 255 - mean / 255f) /
        (std / 255f).

        Args:
            mean: default mean of the channels of f x.
            std: default standard deviation of the channels of f x.

        Raises:
            ValueError: invalid numbers, or numbers outside of the range of f x.
        """
        unit = 1.0
        if self._get("do_rescale", True):
            factor = self._get("rescale_factor", 1 / _MAX_PIXEL)
            if not is_number(factor) or factor <= 0:
                raise self._error("rescale_factor", "must be a number above 0")
            unit = factor * _MAX_PIXEL
            # Snap to 1, since decimals of 1 / 255 may differ in the last digits.
            unit = 1.0 if math.isclose(unit, 1, rel_tol=1e-6) else unit
        else:
            unit = float(_MAX_PIXEL)
        if not self._get("do_normalize", True):
            return (0.0,) * 3, (1 / unit,) * 3
        means, stds = self._numbers("image_mean", mean), self._numbers("image_std", std)
        if not all(0 <= m <= unit for m in means):
            raise self._error(
                "image_mean",
                f"is not in the range 0 to {unit:g} that pixels are rescaled to; for "
                "statistics of pixels in 0..255 set do_rescale to false",
            )
        if not all(s > 0 for s in stds):
            raise self._error("image_std", "must be above 0")
        return tuple(m / unit for m in means), tuple(s / unit for s in stds)

    def geometry(self, size: int, crop: bool, *, adapt: bool = False) -> Geometry:
        """The resizing of images to ``size`` x ``size`` pixels.

        Args:
            size: input size of the model.
            crop: default for whether images are cropped, as in CLIP.
            adapt: whether sizes may be those of another model, and are scaled to this
                one.

        Raises:
            ValueError: settings that do not result in a square of the model's size.
        """
        if not self._get("do_resize", True):
            raise self._error(
                "do_resize",
                f"is not applied here: images come in all sizes, and the model takes "
                f"{size} x {size}; set it to true",
            )
        kind = next((_KINDS[k] for t in _TYPES if (k := self._get(t, None))), None)
        if kind == "ConvNext":
            return self._convnext(size, adapt)
        is_clip = kind == "CLIP" if kind else crop or self._get("do_center_crop", False)
        resized, by_shorter = self._size(is_clip)
        name, final = "size", resized
        if crops := self._get("do_center_crop", is_clip):
            name, final = "crop_size", self._square("crop_size")
        elif by_shorter:
            raise self._error("size", "leaves no square without do_center_crop")
        if final not in (None, size) and not adapt:
            raise self._error(name, f"is not the {size} pixels that the model takes")
        if resized is None or not crops:
            resized = size
        elif final not in (None, size):
            resized = self._side(name, round(resized * size / final))
        resample = self._get("resample", BICUBIC)
        if not isinstance(resample, int) or not 0 <= resample <= 5:
            raise self._error("resample", "must be one of Pillow's filters, 0 to 5")
        return Geometry(by_shorter, resized, resample)

    def _convnext(self, size: int, adapt: bool) -> Geometry:
        """`geometry` by ConvNeXt's rules: cropped below 384 pixels, else stretched."""
        given = self._get("size", {"shortest_edge": _NO_CROP})
        edge = given
        if isinstance(given, Mapping):
            edge = _set(given).get("shortest_edge")
        if not isinstance(edge, int):
            raise self._error("size", "has no shortest_edge")
        edge = self._side("size", edge)
        if edge != size and not adapt:
            raise self._error("size", f"is not the {size} pixels that the model takes")
        share = self._get("crop_pct", _CROP_PCT)
        if not is_number(share) or not 0 < share <= 1:
            raise self._error("crop_pct", "must be above 0 and at most 1")
        resample = self._get("resample", BILINEAR)
        if not isinstance(resample, int) or not 0 <= resample <= 5:
            raise self._error("resample", "must be one of Pillow's filters, 0 to 5")
        if edge >= _NO_CROP:
            return Geometry(False, size, resample)
        return Geometry(True, self._side("crop_pct", int(size / share)), resample)

    def _size(self, is_clip: bool) -> tuple[int | None, bool]:
        """Size to resize images to, and whether it is that of the shorter side."""
        given = self._get("size", None)
        if given is None:
            return None, is_clip
        if is_clip and isinstance(given, int):
            return self._side("size", given), True
        if isinstance(given, Mapping) and _set(given).keys() == {"shortest_edge"}:
            return self._side("size", given["shortest_edge"]), True
        return self._square("size"), False

    def _square(self, name: str) -> int | None:
        given = self._get(name, None)
        sides = given
        if isinstance(given, Mapping):
            sides = _set(given)
            sides = sides.values() if sides.keys() == {"height", "width"} else ()
        elif not isinstance(given, list):
            return None if given is None else self._side(name, given)
        first, *others = (*sides,) or (None,)
        if first is None or any(side != first for side in others):
            raise self._error(name, "is not square")
        return self._side(name, first)

    def _side(self, name: str, given: Any) -> int:
        is_whole = isinstance(given, int) and not isinstance(given, bool)
        if not is_whole or not 1 <= given <= MAX_SIDE:
            raise self._error(name, f"must be pixels, 1 to {MAX_SIDE}")
        return given

    def _numbers(self, name: str, default: Channels) -> Channels:
        given = self._get(name, default)
        values = (given,) * 3 if is_number(given) else given
        if not isinstance(values, list | tuple) or len(values) != 3:
            raise self._error(name, "must be three numbers, or one")
        if not all(is_number(x) for x in values):
            raise self._error(name, "must be three numbers, or one")
        return tuple(map(float, values))

    def _get(self, name: str, default: Any) -> Any:
        """Returns a setting; null stands for the default, as in Transformers."""
        value = self.settings.get(name)
        return default if value is None else value

    def _error(self, name: str, problem: str) -> ValueError:
        return ValueError(f"{self.file}: {name}={self.settings.get(name)!r} {problem}")


def read_image_processor(folder: str | os.PathLike) -> ImageProcessor:
    """Reads the settings of a folder; all defaults if it has no such file.

    Raises:
        ValueError: a damaged file, or settings that are not known.
    """
    joint, own = Path(folder) / _JOINT_FILE, Path(folder) / _OWN_FILE
    nested = read_json(joint).get("image_processor") if joint.is_file() else None
    if nested is not None:
        if not isinstance(nested, dict):
            message = f"{joint} is damaged: image_processor is not a JSON object"
            raise ValueError(message)
        return ImageProcessor(nested, str(joint))
    return ImageProcessor(read_json(own) if own.is_file() else {}, str(own))


def _set(given: Mapping[str, Any]) -> dict[str, Any]:
    """Removes settings that are null."""
    return {name: value for name, value in given.items() if value is not None}


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number that a float can hold.

    >>> is_number(0.5), is_number(True), is_number(10**400)
    (True, False, False)
    """
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )
