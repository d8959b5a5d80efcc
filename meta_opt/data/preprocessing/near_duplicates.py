"""Detection of near-duplicate images by perceptual hash and colours.

An image's fingerprint consists of its perceptual hash, which describes shapes, and its
colours, which distinguish flags with the same stripes. Two images are near duplicates
if both agree: the hashes in all but `MAX_BITS` of 64 bits, the colours to `MAX_COLOUR`
grey levels on average. This detects resized or recompressed images, slightly different
shades and small retouches; not mirrored, rotated or cropped images.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from meta_opt.data.preprocessing.images import content_box, fit_square

HASH_SIDE = 8
"""The hash has HASH_SIDE ** 2 bits, the colours are means over as many cells."""
_GREY_SIDE = 32

MAX_BITS = 6
"""Bits of 64 in which the hashes of near duplicates may differ; those of unrelated
images differ in 32 on average, with a standard deviation of 4 were they
independent."""
MAX_COLOUR = 12.0
"""Mean absolute difference of the colours, of 255, of near duplicates."""


class Fingerprint(NamedTuple):
    """The features of an image that are compared.

    Attributes:
        bits: bool [64], the perceptual hash.
        colours: uint8 [8, 8, 3], means over an 8 x 8 grid.
    """

    bits: np.ndarray
    colours: np.ndarray


def fingerprint(image: Image.Image) -> Fingerprint:
    """Computes the fingerprint of an RGB image, cropped to its content and squared.

    White margins are removed, since small objects on large white pages would all look
    alike.

    The hash is pHash (Zauner 2010, "Implementation and benchmarking of perceptual image
    hash functions"): of the cosine transform of 32 x 32 grey values the 8 x 8 lowest
    frequencies, and of each whether it is above their median, the mean grey left out.

    Args:
        image: a Pillow image of mode RGB.

    Example:
        >>> white = fingerprint(Image.new("RGB", (60, 40), "white"))
        >>> white.bits.shape, int(white.colours.min())
        ((64,), 255)
    """
    from scipy.fft import dctn

    image = image.crop(content_box(image))
    square = Image.fromarray(fit_square(image, 4 * _GREY_SIDE))
    box = Image.Resampling.BOX
    grey = square.convert("L").resize((_GREY_SIDE, _GREY_SIDE), box)
    low = dctn(np.asarray(grey, np.float64))[:HASH_SIDE, :HASH_SIDE].ravel()
    # In images of one colour the frequencies are nothing but rounding errors.
    low = np.where(np.abs(low) < 1e-6 * _GREY_SIDE**2, 0.0, low)
    bits = low > np.median(low[1:])
    bits[0] = False
    return Fingerprint(bits, np.asarray(square.resize((HASH_SIDE, HASH_SIDE), box)))


def groups(
    bits: np.ndarray,
    colours: np.ndarray,
    max_bits: int = MAX_BITS,
    max_colour: float = MAX_COLOUR,
    block: int = 1024,
) -> np.ndarray:
    """Groups near duplicates: the connected components of the near-duplicate relation.

    Args:
        bits: bool [N, 64], hashes of N fingerprints.
        colours: uint8 [N, 8, 8, 3].
        max_bits: largest Hamming distance, see `MAX_BITS`.
        max_colour: largest mean colour difference, see `MAX_COLOUR`.
        block: number of rows that are compared with all others at a time.

    Returns:
        int [N], the smallest index in the group of each image.

    Example:
        >>> bits = np.zeros((3, 64), bool)
        >>> bits[2] = True
        >>> groups(bits, np.zeros((3, 8, 8, 3), np.uint8)).tolist()
        [0, 0, 2]
    """
    count = len(bits)
    first = list(range(count))

    def root(i: int) -> int:
        while first[i] != i:
            first[i] = first[first[i]]
            i = first[i]
        return i

    signs = np.where(bits, 1.0, -1.0).astype(np.float32)
    flat = colours.reshape(count, -1).astype(np.int16)
    for start in range(0, count, block):
        # The Hamming distance from the inner product of signs: (64 - product) / 2.
        differing = (bits.shape[1] - signs[start : start + block] @ signs.T) / 2
        rows, others = np.nonzero(differing <= max_bits)
        pairs = zip((rows + start).tolist(), others.tolist(), strict=True)
        for i, j in pairs:
            if i < j and np.abs(flat[i] - flat[j]).mean() <= max_colour:
                low, high = sorted((root(i), root(j)))
                first[high] = low
    return np.asarray([root(i) for i in range(count)], np.int64)
