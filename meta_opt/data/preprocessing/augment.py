"""Random changes of a picture that leave its class as it is.

Names and ranges are torchvision's: flip, rotation, colour jitter, random resized crop
and RandAugment (Cubuk et al. 2019, arXiv:1909.13719). What comes in from outside of the
picture is white.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_WHITE = (255, 255, 255)
_LEVELS = 30
"""The largest magnitude of RandAugment."""
_HUES = 256
"""In Pillow's HSV."""
_RATIO = (3 / 4, 4 / 3)
"""Of width to height of a random crop, relative to the picture's."""


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What is drawn for each picture; the defaults change nothing.

    Attributes:
        flip: mirror left to right with probability 1/2.
        rotate_degrees: rotate by up to so much either way.
        jitter: factors of brightness, contrast and saturation are drawn from
            1 - ``jitter`` to 1 + ``jitter``.
        hue: turn the hue by up to this share of the colour circle either way.
        crop_scale: smallest share of the picture's area that a random crop, resized to
            the whole, has; 1: no crop.
        random_ops: how many operations RandAugment applies.
        magnitude: of these operations, 0 to 30.
    """

    flip: bool = False
    rotate_degrees: float = 0.0
    jitter: float = 0.0
    hue: float = 0.0
    crop_scale: float = 1.0
    random_ops: int = 0
    magnitude: int = 9

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, least, most in (
            ("rotate_degrees", 0, 180),
            ("jitter", 0, 1),
            ("hue", 0, 0.5),
            ("random_ops", 0, 10),
            ("magnitude", 0, _LEVELS),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(
                    f"augment.{name}={getattr(self, name)} must be {least} to {most}"
                )
        if not 0 < self.crop_scale <= 1:
            raise ValueError(
                f"augment.crop_scale={self.crop_scale} must be above 0 and at most 1"
            )


def augment(
    image: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """A random view of a picture.

    Args:
        image: uint8 [h, w, 3].
        config: what may change.
        rng: drawn from.

    Returns:
        uint8 [h, w, 3].

    >>> image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> same = augment(image, AugmentConfig(), np.random.default_rng(0))
    >>> np.array_equal(same, image)
    True
    """
    picture = Image.fromarray(image)
    if config.crop_scale < 1:
        picture = _cropped(picture, config.crop_scale, rng)
    if config.flip and rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    if config.rotate_degrees:
        angle = rng.uniform(-config.rotate_degrees, config.rotate_degrees)
        picture = _rotated(picture, angle)
    if config.jitter:
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhancer in enhancers:
            factor = rng.uniform(1 - config.jitter, 1 + config.jitter)
            picture = enhancer(picture).enhance(factor)
    if config.hue:
        picture = _turned(picture, rng.uniform(-config.hue, config.hue))
    for _ in range(config.random_ops):
        operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
        strength = config.magnitude / _LEVELS
        picture = operation(picture, strength, 1 if rng.random() < 0.5 else -1)
    return np.asarray(picture)


def _cropped(
    picture: Image.Image, scale: float, rng: np.random.Generator
) -> Image.Image:
    width, height = picture.size
    area = rng.uniform(scale, 1)
    ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
    # A side that would be longer than the picture's is as long as it.
    w = min(width, max(1, round(width * math.sqrt(area * ratio))))
    h = min(height, max(1, round(height * math.sqrt(area / ratio))))
    left = int(rng.integers(width - w + 1))
    top = int(rng.integers(height - h + 1))
    box = (left, top, left + w, top + h)
    return picture.resize((width, height), Image.Resampling.BILINEAR, box)


def _rotated(picture: Image.Image, degrees: float) -> Image.Image:
    return picture.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=_WHITE)


def _turned(picture: Image.Image, share: float) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    turned = (np.asarray(hue).astype(int) + round(share * _HUES)) % _HUES
    bands = (Image.fromarray(turned.astype(np.uint8)), saturation, value)
    return Image.merge("HSV", bands).convert("RGB")


def _moved(picture: Image.Image, *matrix: float) -> Image.Image:
    """Through the affine map from a place in the result to one in the picture."""
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        matrix,
        Image.Resampling.BILINEAR,
        fillcolor=_WHITE,
    )


_SHIFT = 150 / 331
"""Largest translation of RandAugment, as a share of the side."""
Operation = Callable[[Image.Image, float, int], Image.Image]
"""From a picture, a strength in [0, 1] and a sign to a picture."""
_OPERATIONS: tuple[Operation, ...] = (
    lambda x, s, sign: x,
    lambda x, s, sign: _moved(x, 1, 0.3 * s * sign, 0, 0, 1, 0),
    lambda x, s, sign: _moved(x, 1, 0, 0, 0.3 * s * sign, 1, 0),
    lambda x, s, sign: _moved(x, 1, 0, _SHIFT * x.width * s * sign, 0, 1, 0),
    lambda x, s, sign: _moved(x, 1, 0, 0, 0, 1, _SHIFT * x.height * s * sign),
    lambda x, s, sign: _rotated(x, 30 * s * sign),
    lambda x, s, sign: ImageEnhance.Brightness(x).enhance(1 + 0.9 * s * sign),
    lambda x, s, sign: ImageEnhance.Color(x).enhance(1 + 0.9 * s * sign),
    lambda x, s, sign: ImageEnhance.Contrast(x).enhance(1 + 0.9 * s * sign),
    lambda x, s, sign: ImageEnhance.Sharpness(x).enhance(1 + 0.9 * s * sign),
    lambda x, s, sign: ImageOps.posterize(x, 8 - round(4 * s)),
    lambda x, s, sign: ImageOps.solarize(x, round(256 * (1 - s))),
    lambda x, s, sign: ImageOps.autocontrast(x),
    lambda x, s, sign: ImageOps.equalize(x),
)
