"""Renews the expected pixels in ``tests/golden/corruptions.json``.

    pip install imagecorruptions scikit-image && \
        PYTHONPATH=.:tests/fixtures python tests/golden/renew_corruptions.py

Of one picture of 224 pixels, corrupted by the package ``imagecorruptions`` with the
random numbers of `meta_opt.data.preprocessing.corruptions`, the file has every 45th
pixel. Gaussian blur is by scikit-image alone, since that of ``imagecorruptions`` 1.1.2
passes an argument which scikit-image no longer has. The package is not a dependency for
that reason, and because it needs OpenCV and draws from NumPy's global state.
"""

import json
from pathlib import Path
from unittest import mock

import numpy as np
from imagecorruptions import corrupt
from skimage.filters import gaussian
from stress_toy import GOLDEN_KEY, STRIDE, golden_picture

from meta_opt.data.preprocessing.corruptions import SEVERITIES, generator

FILE = Path(__file__).parent / "corruptions.json"
NAMES = (
    "gaussian_noise",
    "shot_noise",
    "motion_blur",
    "defocus_blur",
    "brightness",
    "contrast",
)
SIGMAS = (1, 2, 3, 4, 6)


def expected(name: str, severity: int) -> np.ndarray:
    rng = generator(name, severity, GOLDEN_KEY)
    with (
        mock.patch("numpy.random.normal", rng.normal),
        mock.patch("numpy.random.poisson", rng.poisson),
        mock.patch("numpy.random.uniform", rng.uniform),
    ):
        return corrupt(golden_picture(), severity, name)


def main() -> None:
    found = {
        name: [expected(name, s)[::STRIDE, ::STRIDE].tolist() for s in SEVERITIES]
        for name in NAMES
    }
    blurred = [
        255 * gaussian(golden_picture() / 255.0, sigma=sigma, channel_axis=-1)
        for sigma in SIGMAS
    ]
    found["gaussian_blur"] = [
        x.astype(np.uint8)[::STRIDE, ::STRIDE].tolist() for x in blurred
    ]
    FILE.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
