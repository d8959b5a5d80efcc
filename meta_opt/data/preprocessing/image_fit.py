"""Resizing of images to the square input of a model."""

import dataclasses
import os

import numpy as np
from PIL import Image

from meta_opt.data.preprocessing.images import fit_square
from meta_opt.image_processor import read_image_processor
from meta_opt.types import near_match

FITS = ("pad", "stretch", "crop")


@dataclasses.dataclass(frozen=True)
class ImageFit:
    """Resizes images to a square, on the host and with antialiasing.

    Attributes:
        size: side in pixels.
        how: ``pad`` pads to a square with white; ``stretch`` ignores the aspect ratio,
            as SigLIP does; ``crop`` resizes the shorter side and takes the centre, as
            CLIP does.
        resample: one of Pillow's filters: ``lanczos``, ``bicubic``, ``bilinear``, ...
        resized: side in pixels to resize to before the centre crop of ``size``; a
            smaller side is padded with black. 0 for ``size``.

    Example:
        >>> ImageFit(8, "crop")(Image.new("RGB", (20, 10))).shape
        (8, 8, 3)
    """

    size: int
    how: str = "pad"
    resample: str = "lanczos"
    resized: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for unknown names and a size below 1."""
        filters = [f.name.lower() for f in Image.Resampling]
        for name, known in (("how", FITS), ("resample", filters)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(
                    f"{name}={value!r} must be one of {', '.join(known)}"
                    f"{near_match(value, known)}"
                )
        if self.size < 1:
            raise ValueError(f"size={self.size} of images must be at least 1")
        if self.resized < 0 or (self.resized and self.how == "pad"):
            raise ValueError(
                f"resized={self.resized} of images is not for {self.how!r}"
            )

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Resizes a Pillow image of mode RGB to uint8 [size, size, 3]."""
        size, resample = self.size, Image.Resampling[self.resample.upper()]
        if self.how == "pad":
            return fit_square(image, size, resample)
        side = self.resized or size
        width = height = side
        if self.how == "crop":
            shorter = min(image.size)
            # Scale and margin are rounded down, as in Transformers.
            width, height = (side * n // shorter for n in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), resample)
        left, top = (width - size) // 2, (height - size) // 2
        return np.asarray(image.crop((left, top, left + size, top + size)))


def read_image_fit(
    folder: str | os.PathLike, size: int, how: str, *, adapt: bool = False
) -> ImageFit:
    """Reads the resizing settings of a folder's image processor.

    Args:
        folder: a Hugging Face model folder.
        size: side in pixels that the model takes.
        how: ``crop`` or ``stretch``, the default if the file is missing or does not
            say.
        adapt: whether to scale the folder's sizes to ``size``, that of another model.

    Raises:
        ValueError: settings that are not supported, or that do not result in ``size``.
    """
    processor = read_image_processor(folder)
    crop, resized, resample = processor.geometry(size, how == "crop", adapt=adapt)
    return ImageFit(
        size,
        "crop" if crop else "stretch",
        Image.Resampling(resample).name.lower(),
        0 if resized == size else resized,
    )
