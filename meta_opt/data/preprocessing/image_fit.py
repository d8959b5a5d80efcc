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
        resized: side in pixels that is stretched or cropped to before the middle of
            ``size`` is taken; where it is smaller, black is put around. 0 for ``size``.

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
        """From a Pillow image of mode RGB to uint8 [size, size, 3]."""
        size, resample = self.size, Image.Resampling[self.resample.upper()]
        if self.how == "pad":
            return fit_square(image, size, resample)
        side = self.resized or size
        width = height = side
        if self.how == "crop":
            shorter = min(image.size)
            # Rounded down, in the scale and in the margin, as Transformers does.
            width, height = (side * n // shorter for n in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), resample)
        left, top = (width - size) // 2, (height - size) // 2
        return np.asarray(image.crop((left, top, left + size, top + size)))


def read_image_fit(
    folder: str | os.PathLike, size: int, how: str, *, adapt: bool = False
) -> ImageFit:
    """The fit that the image processor of a folder asks for.

    Args:
        folder: of Hugging Face's form.
        size: side in pixels that the model takes.
        how: ``crop`` or ``stretch``, where the file does not say, or is not there.
        adapt: whether the folder's sizes are scaled to another model's ``size``.

    Raises:
        ValueError: settings that are not applied here, or do not give ``size``.
    """
    processor = read_image_processor(folder)
    crop, resized, resample = processor.geometry(size, how == "crop", adapt=adapt)
    return ImageFit(
        size,
        "crop" if crop else "stretch",
        Image.Resampling(resample).name.lower(),
        0 if resized == size else resized,
    )
