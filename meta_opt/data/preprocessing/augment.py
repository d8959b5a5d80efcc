"""Random image augmentation that preserves the class.

Names and ranges are torchvision's: flip, rotation, colour jitter, random resized crop
and RandAugment (Cubuk et al. 2019, arXiv:1909.13719). Pixels from outside of the image
are white.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_WHITE = (255, 255, 255)
_LEVELS = 30
"""Largest magnitude of RandAugment."""
_HUES = 256
"""In Pillow's HSV."""
_RATIO = (3 / 4, 4 / 3)
"""Range of a random crop's aspect ratio (width to height), relative to the image's."""


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Strength of each augmentation; the defaults change nothing.

    Attributes:
        flip: whether to flip horizontally with probability 1/2.
        rotate_degrees: largest rotation in either direction.
        jitter: range of the factors of brightness, contrast and saturation, sampled
            between 1 - ``jitter`` and 1 + ``jitter``.
        hue: largest hue shift in either direction, as a share of the colour circle.
        crop_scale: smallest area of a random resized crop, as a share of the image's; 1
            disables cropping.
        random_ops: number of operations of RandAugment.
        magnitude: magnitude of these operations, 0 to 30.
    """

    flip: bool = False
    rotate_degrees: float = 0.0
    jitter: float = 0.0
    hue: float = 0.0
    crop_scale: float = 1.0
    random_ops: int = 0
    magnitude: int = 9

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range."""
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
    """Returns a random view of an image.

    Args:
        image: uint8 [h, w, 3].
        config: strength of the augmentations.
        rng: random number generator.

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
    # Sides are limited to those of the image.
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
    """Applies an affine map from coordinates in the result to those in the image."""
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
"""Operations: functions of an image, a strength in [0, 1] and a sign."""
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
