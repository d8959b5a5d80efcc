"""How a picture of any size becomes the square that a model takes."""

import dataclasses
import os
from pathlib import Path

import numpy as np
from PIL import Image

from meta_opt.data.images import fit_square
from meta_opt.data.text_files import read_json
from meta_opt.types import near_match

FITS = ("pad", "stretch", "crop")
_PROCESSOR = "preprocessor_config.json"


@dataclasses.dataclass(frozen=True)
class ImageFit:
    """Scales pictures, on the host and with antialiasing, to one square.

    Attributes:
        size: side in pixels.
        how: ``pad`` fits the whole picture in, on white; ``stretch`` gives up its
            aspect, as SigLIP does; ``crop`` fits the shorter side and takes the middle,
            as CLIP does.
        resample: one of Pillow's filters: ``lanczos``, ``bicubic``, ``bilinear``, ...

    Example:
        >>> ImageFit(8, "crop")(Image.new("RGB", (20, 10))).shape
        (8, 8, 3)
    """

    size: int
    how: str = "pad"
    resample: str = "lanczos"

    def __post_init__(self) -> None:
        """Raises ValueError for unknown names and a size below 1."""
        filters = [f.name.lower() for f in Image.Resampling]
        for name, known in (("how", FITS), ("resample", filters)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(
                    f"{name}={value!r} is none of {', '.join(known)}"
                    f"{near_match(value, known)}"
                )
        if self.size < 1:
            raise ValueError(f"size={self.size} of images must be at least 1")

    def __call__(self, image: Image.Image) -> np.ndarray:
        """From a Pillow image of mode RGB to uint8 [size, size, 3]."""
        size, resample = self.size, Image.Resampling[self.resample.upper()]
        if self.how == "pad":
            return fit_square(image, size, resample)
        if image.size == (size, size):
            return np.asarray(image)
        if self.how == "stretch":
            return np.asarray(image.resize((size, size), resample))
        shorter = min(image.size)
        # Rounded down, in the scale and in the margin, as Transformers does.
        width, height = (size * side // shorter for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        scaled = image.resize((width, height), resample)
        return np.asarray(scaled.crop((left, top, left + size, top + size)))


def read_image_fit(folder: str | os.PathLike, size: int, how: str) -> ImageFit:
    """The fit that the ``preprocessor_config.json`` of a folder asks for.

    Args:
        folder: of Hugging Face's form.
        size: side in pixels that the model takes.
        how: where the file does not say, or is not there.

    Raises:
        ValueError: a file that is no JSON, or a filter that Pillow does not have.
    """
    path = Path(folder) / _PROCESSOR
    if not path.is_file():
        return ImageFit(size, how, "bicubic")
    given = read_json(path)
    try:
        resample = Image.Resampling(given.get("resample", Image.Resampling.BICUBIC))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if "do_center_crop" in given:
        how = "crop" if given["do_center_crop"] else "stretch"
    return ImageFit(size, how, resample.name.lower())
