"""Image corruptions at five severities, for robustness tests of classifiers.

Eight are those of ImageNet-C (Hendrycks and Dietterich 2019, arXiv:1903.12261) with its
constants, to which values are rounded instead of cut off: Gaussian and shot noise,
Gaussian, motion and defocus blur, JPEG, brightness and contrast. Motion blur is that of
the package ``imagecorruptions``, which replaced ImageMagick's. Occlusion, rotation and
grey, which ImageNet-C does not have, are defined here.

ImageNet-C has images of 224 pixels. Lengths in pixels (widths of blur) are scaled by
the shorter side over 224, so that a severity removes the same detail of the scene at
100, 200 and 400 pixels. Corruptions of single pixels (noise) or of 8 x 8 blocks (JPEG)
are not scaled: they affect small images more than large ones, as in a camera or a file.
To compare sizes under equal noise, corrupt at one size and resize afterwards.

Random numbers depend only on the corruption, its severity and the example's key, so
that examples can be corrupted in any order and by several processes.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from meta_opt.types import check_name

SEVERITIES = (1, 2, 3, 4, 5)
REFERENCE_PIXELS = 224
"""Side in pixels of ImageNet-C's images, to which its lengths refer."""

_WHITE, _GREY = 255, 127

Apply = Callable[[np.ndarray, Any, float, np.random.Generator], np.ndarray]
"""A function of an image, float64 [H, W, 3] in [0, 1], the severity's constant, the
scale of lengths and a random generator; its result is clipped afterwards."""


def corrupt(
    image: np.ndarray, name: str, severity: int, key: str, seed: int = 0
) -> np.ndarray:
    """Corrupts an image, deterministically.

    Args:
        image: uint8 [H, W, 3].
        name: one of `CORRUPTIONS`.
        severity: 1 (mild) to 5; 0 leaves the image unchanged.
        key: unique key of the example.
        seed: for other random numbers.

    Returns:
        uint8 [H, W, 3], a new array.

    Raises:
        ValueError: an unknown name, an invalid severity, or an array of another type or
            shape.

    Example:
        >>> black = np.zeros((10, 10, 3), np.uint8)
        >>> int(corrupt(black, "brightness", 2, key="a").max())  # 0.2 x 255
        51
    """
    _check(image, name, severity)
    if severity == 0:
        return image.copy()
    apply, constants = CORRUPTIONS[name]
    scale = min(image.shape[:2]) / REFERENCE_PIXELS
    rng = generator(name, severity, key, seed)
    corrupted = apply(image / 255.0, constants[severity - 1], scale, rng)
    return np.round(255 * np.clip(corrupted, 0, 1)).astype(np.uint8)


def generator(name: str, severity: int, key: str, seed: int = 0) -> np.random.Generator:
    """The random number generator for the corruption of an example.

    Args:
        name: name of the corruption.
        severity: 1 to 5.
        key: of the example.
        seed: for other random numbers.
    """
    text = "\0".join((str(seed), name, str(severity), key))
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _check(image: Any, name: str, severity: Any) -> None:
    check_name("corruption", name, CORRUPTIONS)
    is_integer = isinstance(severity, int | np.integer)
    if not is_integer or isinstance(severity, bool) or not 0 <= severity <= 5:
        raise ValueError(f"severity={severity!r} must be an integer from 0 to 5")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise ValueError(
            f"the image is {kind} and must be a NumPy array of uint8, 0 to 255"
        )
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"the image has shape {list(image.shape)} and must have [H, W, 3]"
        )


def _gaussian_noise(
    x: np.ndarray, deviation: float, scale: float, rng: np.random.Generator
) -> np.ndarray:
    return x + rng.normal(scale=deviation, size=x.shape)


def _shot_noise(
    x: np.ndarray, photons: float, scale: float, rng: np.random.Generator
) -> np.ndarray:
    """Poisson noise of a sensor that counts ``photons`` photons for white."""
    return rng.poisson(x * photons) / photons


def _gaussian_blur(
    x: np.ndarray, sigma: float, scale: float, rng: np.random.Generator
) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, (sigma * scale, sigma * scale, 0), mode="nearest")


def _motion_blur(
    x: np.ndarray,
    constants: tuple[int, float],
    scale: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Averages along one direction with the weights of half a Gaussian."""
    radius, sigma = max(1, round(constants[0] * scale)), constants[1] * scale
    angle = np.deg2rad(rng.uniform(-45, 45))
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    rows = np.ceil(taps * np.sin(angle) - 0.5).astype(int)
    columns = np.ceil(taps * np.cos(angle) - 0.5).astype(int)
    kernel = np.zeros((4 * radius + 1, 4 * radius + 1))
    np.add.at(
        kernel,
        (2 * radius + rows, 2 * radius + columns),
        weights / weights.sum(),
    )
    return _correlate(x, kernel, "edge")


def _defocus_blur(
    x: np.ndarray,
    constants: tuple[float, float],
    scale: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Averages over a disk with a smoothed edge.

    As in ImageNet-C the smoothing has three taps in disks of a radius to 8 (at 224
    pixels) and five in larger ones, and from 8 on reflects the disk at its own edge.
    That brightens images by 1% there; here the kernel is normalised.
    """
    from scipy.ndimage import correlate1d

    radius, sigma = max(1.0, constants[0] * scale), constants[1]
    reach = 1 if constants[0] <= 8 else 2
    half = int(radius) + (reach if constants[0] < 8 else 0)
    side = np.arange(-half, half + 1)
    disk = (side[:, None] ** 2 + side[None, :] ** 2 <= radius**2).astype(float)
    rim = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    for axis in (0, 1):
        disk = correlate1d(disk, rim / rim.sum(), axis, mode="mirror")
    return _correlate(x, disk / disk.sum(), "reflect")


def _correlate(x: np.ndarray, kernel: np.ndarray, border: Any) -> np.ndarray:
    """Correlates each channel with an odd, square kernel, by FFT."""
    from scipy.signal import fftconvolve

    margin = len(kernel) // 2
    padded = np.pad(x, ((margin, margin), (margin, margin), (0, 0)), mode=border)
    return fftconvolve(padded, kernel[::-1, ::-1, None], mode="valid", axes=(0, 1))


def _jpeg_compression(
    x: np.ndarray, quality: int, scale: float, rng: np.random.Generator
) -> np.ndarray:
    buffer = io.BytesIO()
    _to_picture(x).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)) / 255.0


def _brightness(
    x: np.ndarray, added: float, scale: float, rng: np.random.Generator
) -> np.ndarray:
    """Adds to the value in HSV; hue and saturation are unchanged."""
    value = x.max(axis=2, keepdims=True)
    brighter = np.minimum(value + added, 1)
    # Black has no hue, so it becomes grey.
    return np.where(value > 0, x * (brighter / np.where(value > 0, value, 1)), brighter)


def _contrast(
    x: np.ndarray, factor: float, scale: float, rng: np.random.Generator
) -> np.ndarray:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return mean + factor * (x - mean)


def _occlusion(
    x: np.ndarray, share: float, scale: float, rng: np.random.Generator
) -> np.ndarray:
    """Covers a share of the area with a grey rectangle of the image's aspect ratio.

    As Cutout (DeVries and Taylor 2017, arXiv:1708.04552), but entirely inside.
    """
    height, width = (max(1, round(n * share**0.5)) for n in x.shape[:2])
    top = rng.integers(x.shape[0] - height + 1)
    left = rng.integers(x.shape[1] - width + 1)
    covered = x.copy()
    covered[top : top + height, left : left + width] = _GREY / 255
    return covered


def _rotation(
    x: np.ndarray, degrees: float, scale: float, rng: np.random.Generator
) -> np.ndarray:
    """Rotates about the centre in a random direction; corners become white."""
    turned = _to_picture(x).rotate(
        degrees * rng.choice([-1, 1]),
        Image.Resampling.BICUBIC,
        fillcolor=(_WHITE, _WHITE, _WHITE),
    )
    return np.asarray(turned) / 255.0


def _grey(
    x: np.ndarray, share: float, scale: float, rng: np.random.Generator
) -> np.ndarray:
    """Blends with the luma of ITU-R 601."""
    luma = x @ np.asarray([0.299, 0.587, 0.114])
    return x + share * (luma[..., None] - x)


def _to_picture(x: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(255 * x).astype(np.uint8))


CORRUPTIONS: Mapping[str, tuple[Apply, tuple[Any, ...]]] = MappingProxyType(
    {
        # Standard deviation; white is 1.
        "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
        # Photons of white.
        "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
        # Standard deviation in pixels of 224.
        "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
        # Radius and standard deviation in pixels of 224.
        "motion_blur": (
            _motion_blur,
            ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        ),
        # Radius in pixels of 224, and standard deviation of the rim in pixels.
        "defocus_blur": (
            _defocus_blur,
            ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        ),
        # Quality.
        "jpeg_compression": (_jpeg_compression, (25, 18, 15, 10, 7)),
        # Added to HSV's value.
        "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
        # Factor on the distance from the channel's mean.
        "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
        # Share of the area.
        "occlusion": (_occlusion, (0.05, 0.1, 0.2, 0.3, 0.4)),
        # Degrees.
        "rotation": (_rotation, (5, 10, 20, 30, 45)),
        # Share of grey.
        "grey": (_grey, (0.2, 0.4, 0.6, 0.8, 1.0)),
    }
)
"""The corruptions by name, with their constants of severity 1 to 5."""
