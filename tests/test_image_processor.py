"""Image processors of Hugging Face folders: what Transformers computes, or an error.

Expected numbers are the arithmetic that Transformers documents, in NumPy and Pillow:
resize, take the middle (black around what is too small), times ``rescale_factor``,
less the mean, over the deviation.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from models_small import forward
from paths import GOLDEN
from PIL import Image

from meta_opt.data.preprocessing.image_fit import ImageFit, read_image_fit
from meta_opt.image_processor import ImageProcessor
from meta_opt.models import huggingface

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
BYTES = [102.0, 127.5, 153.0]


def write(folder, settings, nested=False):
    folder.mkdir(exist_ok=True)
    if nested:
        about = {"image_processor": settings, "processor_class": "CLIPProcessor"}
        (folder / "processor_config.json").write_text(json.dumps(about))
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "factor", "mean", "std"),
    [
        ({}, 1 / 255, MEAN, STD),
        ({"image_mean": None, "image_std": None}, 1 / 255, MEAN, STD),
        ({"image_mean": [0, 0.5, 1], "image_std": 0.5}, 1 / 255, (0, 0.5, 1), 0.5),
        ({"do_normalize": False}, 1 / 255, 0, 1),
        ({"do_normalize": False, "image_mean": [9, 9, 9]}, 1 / 255, 0, 1),
        ({"do_rescale": False}, 1, MEAN, STD),
        ({"do_rescale": False, "do_normalize": False}, 1, 0, 1),
        (
            {"do_rescale": False, "image_mean": BYTES, "image_std": [51, 64, 77]},
            1,
            BYTES,
            (51, 64, 77),
        ),
        ({"rescale_factor": 1, "image_mean": BYTES, "image_std": 60}, 1, BYTES, 60),
        (
            {"rescale_factor": 1 / 127.5, "image_mean": 1, "image_std": 1},
            1 / 127.5,
            1,
            1,
        ),
        ({"rescale_factor": None, "do_rescale": None}, 1 / 255, MEAN, STD),
    ],
)
def test_channels_are_normalised_as_transformers_does(settings, factor, mean, std):
    pixels = np.arange(256)[:, None] * np.ones(3)
    expected = (pixels * factor - mean) / np.asarray(std)
    ours, scale = ImageProcessor(settings).channels(MEAN, STD)
    found = (pixels / 255 - ours) / np.asarray(scale)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_the_usual_factor_in_decimals_changes_nothing():
    settings = {"rescale_factor": 0.00392156862, "image_mean": list(MEAN)}
    assert ImageProcessor(settings).channels(STD, STD) == (MEAN, STD)


def picture(width, height):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def middle(array, size):
    """The middle, with black around what is smaller, as Transformers pads."""
    for axis in (0, 1):
        n = array.shape[axis]
        if n < size:
            before = -(-(size - n) // 2)
            pad = [(0, 0)] * 3
            pad[axis] = (before, size - n - before)
            array = np.pad(array, pad)
        else:
            array = np.take(array, range((n - size) // 2, (n - size) // 2 + size), axis)
    return array


CLIP, SIGLIP = "CLIPImageProcessor", "SiglipImageProcessor"
SQUARE = {"height": 8, "width": 8}


@pytest.mark.parametrize(
    ("settings", "resized", "resample"),
    [
        ({"image_processor_type": SIGLIP}, (8, 8), 3),
        ({"image_processor_type": SIGLIP, "size": SQUARE, "resample": 2}, (8, 8), 2),
        ({"image_processor_type": "SiglipImageProcessorFast", "size": 8}, (8, 8), 3),
        ({"image_processor_type": CLIP}, 8, 3),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 8}, 8, 3),
        ({"do_center_crop": True, "crop_size": 8, "size": {"shortest_edge": 8}}, 8, 3),
        ({"image_processor_type": CLIP, "size": {"shortest_edge": 11}}, 11, 3),
        ({"image_processor_type": CLIP, "size": 10, "crop_size": SQUARE}, 10, 3),
        ({"image_processor_type": CLIP, "size": {"shortest_edge": 5}}, 5, 1),
        (
            {
                "image_processor_type": CLIP,
                "size": {"height": 12, "width": 12},
                "crop_size": 8,
            },
            (12, 12),
            3,
        ),
        (
            {"image_processor_type": CLIP, "do_center_crop": False, "size": SQUARE},
            (8, 8),
            3,
        ),
        (
            {"image_processor_type": SIGLIP, "size": [8, 8], "do_resize": None},
            (8, 8),
            3,
        ),
    ],
)
@pytest.mark.parametrize("shape", [(40, 27), (13, 31), (8, 8)])
def test_pictures_become_squares_as_in_transformers(
    tmp_path, settings, resized, resample, shape
):
    image = picture(*shape)
    size = resized
    if isinstance(resized, int):
        size = tuple(int(resized * n / min(shape)) for n in shape)
    given = {**settings, "resample": resample}
    expected = middle(np.asarray(image.resize(size, Image.Resampling(resample))), 8)
    fit = read_image_fit(write(tmp_path / "x", given), 8, "stretch")
    np.testing.assert_array_equal(fit(image), expected)


def test_what_the_file_does_not_say_is_the_models(tmp_path):
    assert read_image_fit(tmp_path, 8, "crop") == ImageFit(8, "crop", "bicubic")
    assert read_image_fit(tmp_path, 8, "stretch") == ImageFit(8, "stretch", "bicubic")
    write(tmp_path, {})
    assert read_image_fit(tmp_path, 8, "crop") == ImageFit(8, "crop", "bicubic")


def test_sizes_for_another_model_are_scaled_where_that_is_asked_for(tmp_path):
    write(tmp_path, {"size": {"shortest_edge": 256}, "crop_size": 224})
    fit = read_image_fit(tmp_path, 56, "crop", adapt=True)
    assert fit == ImageFit(56, "crop", "bicubic", 64)
    with pytest.raises(ValueError, match="crop_size=224 is not the 56 pixels"):
        read_image_fit(tmp_path, 56, "crop")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_resize": False}, "do_resize=False is not applied here: .* takes 16 x 16"),
        ({"do_pad": True}, "do_pad=True is not applied"),
        (
            {"do_center_crop": False},
            "size=None leaves no square without do_center_crop",
        ),
        ({"do_center_crop": "no"}, "do_center_crop='no' must be true or false"),
        ({"crop_size": 20}, "crop_size=20 is not the 16 pixels that the model takes"),
        (
            {"crop_size": {"height": 16, "width": 8}},
            "crop_size={'height.* is not square",
        ),
        ({"size": {"height": 9, "width": 8}}, "size={'height': 9.* is not square"),
        ({"size": {"max_height": 9, "max_width": 9}}, "size={'max_h.* is not square"),
        ({"size": {"shortest_edge": 9, "longest_edge": 19}}, "size={.* is not square"),
        ({"resample": 77}, "resample=77 must be one of Pillow's"),
        ({"resample": "bicubic"}, "resample='bicubic' must be one"),
        ({"rescale_factor": 0}, "rescale_factor=0 must be a number above 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor='1/255' must be"),
        (
            {"image_mean": [0.5, 0.5]},
            r"image_mean=\[0\.5, 0\.5\] must be three numbers",
        ),
        ({"image_mean": ["a", 1, 1]}, "image_mean=.* must be three numbers"),
        (
            {"image_mean": BYTES},
            r"image_mean=\[102.* range 0 to 1 .*do_rescale to false",
        ),
        ({"image_std": 0}, "image_std=0 must be above 0"),
        (
            {"image_processor_type": "ViTImageProcessor"},
            "image_processor_type='ViTImageProcessor' must be one of",
        ),
        ({"do_normalise": False}, "do_normalise=False is not known; .*do_normalize"),
        ({"rescale_offset": True}, "rescale_offset=True is not known"),
    ],
)
def test_what_is_not_applied_is_named(tmp_path, settings, message, nested):
    folder = Path(shutil.copytree(GOLDEN / "clip", tmp_path / "clip"))
    write(folder, settings, nested)
    file = "processor_config" if nested else "preprocessor_config"
    with pytest.raises(ValueError, match=rf"^\S*/{file}\.json: {message}"):
        size = huggingface.read_config(folder).image_size
        read_image_fit(folder, size, "crop")


# As Transformers 5 writes it for a SigLIP, with other numbers.
VERSION_5 = """{
  "image_processor": {
    "do_convert_rgb": true,
    "do_normalize": true,
    "do_rescale": true,
    "do_resize": true,
    "image_mean": [0.25, 0.5, 0.75],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.125, 0.25, 0.5],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 16, "width": 16}
  },
  "processor_class": "SiglipProcessor"
}
"""


def test_a_folder_of_transformers_5(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "siglip", tmp_path / "siglip"))
    (folder / "processor_config.json").write_text(VERSION_5)
    # What the nested one says counts, as in Transformers.
    write(folder, {"image_mean": [0, 0, 0], "resample": 0})
    config = huggingface.read_config(folder)
    assert config.image_mean == (0.25, 0.5, 0.75)
    assert config.image_std == (0.125, 0.25, 0.5)
    assert read_image_fit(folder, 16, "stretch") == ImageFit(16, "stretch", "bilinear")
    # One that holds only settings of other things leaves it to the other file.
    (folder / "processor_config.json").write_text('{"processor_class": "X"}')
    assert huggingface.read_config(folder).image_mean == (0, 0, 0)
    for text in ("{", "[]", '{"image_processor": "CLIP"}'):
        (folder / "processor_config.json").write_text(text)
        with pytest.raises(ValueError, match=r"/processor_config\.json is damaged"):
            huggingface.read_config(folder)


def test_statistics_of_bytes_give_the_same_embeddings(tmp_path):
    batch = dict(np.load(GOLDEN / "clip" / "expected.npz"))
    folder = Path(shutil.copytree(GOLDEN / "clip", tmp_path / "clip"))
    usual = huggingface.read_config(folder)
    write(
        folder,
        {
            "do_rescale": False,
            "image_mean": [255 * x for x in usual.image_mean],
            "image_std": [255 * x for x in usual.image_std],
        },
    )
    image = forward(huggingface.load(folder), batch)[0]
    np.testing.assert_allclose(image, batch["image_embeds"], atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_what_is_saved_says_the_same(tmp_path, kind):
    folder = Path(shutil.copytree(GOLDEN / kind, tmp_path / kind))
    write(folder, {"do_rescale": False, "image_mean": BYTES, "image_std": [51, 64, 77]})
    model = huggingface.load(folder)
    huggingface.save(tmp_path / "new", model)
    assert huggingface.read_config(tmp_path / "new") == model.config
    how = "crop" if kind == "clip" else "stretch"
    # Whatever the model is by default, the file says it all.
    for default in ("crop", "stretch"):
        found = read_image_fit(tmp_path / "new", 16, default)
        assert found == ImageFit(16, how, "bicubic")
