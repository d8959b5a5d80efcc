"""Corruptions are those of ImageNet-C, repeatable, and worse with severity."""

import json

import numpy as np
import pytest
from paths import ROOT
from stress_toy import GOLDEN_KEY, STRIDE, golden_picture

from meta_opt.data.preprocessing.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    generator,
)

GOLDEN = json.loads((ROOT / "tests/golden/corruptions.json").read_text())
RANDOM = {"gaussian_noise", "shot_noise", "motion_blur", "occlusion", "rotation"}


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", GOLDEN)
def test_equals_imagenet_c_at_224_pixels(name, severity):
    found = corrupt(golden_picture(), name, severity, GOLDEN_KEY)[::STRIDE, ::STRIDE]
    expected = np.asarray(GOLDEN[name][severity - 1])
    # The original cuts fractions off, which rounding adds at most one level to.
    if name == "defocus_blur" and severity >= 4:
        # Its kernels of radius 8 and 10 do not sum to one.
        brighter = {4: 1.0129755, 5: 1.0107858}[severity] * found
        assert np.abs(brighter - 0.5 - expected)[expected < 255].max() < 1.1
    else:
        difference = found.astype(int) - expected
        assert difference.min() >= 0 and difference.max() <= 1


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("side", [100, 400])
def test_distortion_grows_with_severity(name, side):
    picture = golden_picture(side)
    keys = [str(k) for k in range(3 if name in RANDOM else 1)]
    errors = [
        np.mean(
            [
                (corrupt(picture, name, severity, key) / 255 - picture / 255) ** 2
                for key in keys
            ]
        )
        for severity in (0, *SEVERITIES)
    ]
    assert errors[0] == 0
    assert np.all(np.diff(errors) > 0)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_example_severity_and_seed_decide_the_random_numbers(name):
    picture = golden_picture(48)
    before = picture.copy()
    first = corrupt(picture, name, 3, "a")
    others = [
        corrupt(picture, name, 3, "b"),
        corrupt(picture, name, 3, "a", seed=1),
    ]
    np.testing.assert_array_equal(corrupt(picture, name, 3, "a"), first)
    np.testing.assert_array_equal(picture, before)
    assert first.dtype == np.uint8 and first.shape == picture.shape
    if name not in RANDOM:
        for other in others:
            np.testing.assert_array_equal(other, first)
    elif name != "rotation":  # Of which there are two.
        assert all(np.any(other != first) for other in others)


def test_random_numbers_are_of_their_own_corruption_and_severity():
    draws = {
        generator(name, severity, key).random()
        for name in ("a", "b")
        for severity in SEVERITIES
        for key in ("1", "12", "")
    }
    assert len(draws) == 30


def test_rotation_turns_either_way():
    picture = golden_picture(32)
    turned = {corrupt(picture, "rotation", 5, str(k)).tobytes() for k in range(12)}
    assert len(turned) == 2


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_0_is_the_picture(name):
    picture = golden_picture(40)
    same = corrupt(picture, name, 0, "a")
    np.testing.assert_array_equal(same, picture)
    assert not np.shares_memory(same, picture)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_has_its_variance(severity):
    grey = np.full((120, 120, 3), 128, np.uint8)
    (_, deviations), (_, photons) = (
        CORRUPTIONS[name] for name in ("gaussian_noise", "shot_noise")
    )
    # Clipping takes from the wide ones.
    if severity <= 2:
        found = corrupt(grey, "gaussian_noise", severity, "a") / 255
        assert found.std() == pytest.approx(deviations[severity - 1], rel=0.02)
    found = corrupt(grey, "shot_noise", severity, "a") / 255
    if severity <= 3:
        expected = (128 / 255 / photons[severity - 1]) ** 0.5
        assert found.std() == pytest.approx(expected, rel=0.02)
    # Counts are whole, and more than white is white.
    counts = np.unique(np.round(found * photons[severity - 1], 1))
    assert len(counts) <= photons[severity - 1] + 1


@pytest.mark.parametrize("side", [112, 224, 448])
def test_blur_is_scaled_with_the_picture(side):
    """The spread of a point, of each blur, is the same share of the side."""
    scale = side / 224
    picture = np.zeros((side, side, 3), np.uint8)
    middle = slice(side // 2 - side // 56, side // 2 + side // 56)
    picture[middle, middle] = 255
    around = np.arange(side) - side / 2 + 0.5

    def variance(x):
        weights = x[..., 0].astype(float)
        mean = (weights.sum(0) @ around) / weights.sum()
        return (weights.sum(0) @ (around - mean) ** 2) / weights.sum()

    added = {
        name: variance(corrupt(picture, name, 3, "a")) - variance(picture)
        for name in ("gaussian_blur", "defocus_blur")
    }
    assert added["gaussian_blur"] == pytest.approx((3 * scale) ** 2, rel=0.05)
    # Of the pixels of a disk of radius 6, and of its rim's smoothing.
    y, x = np.mgrid[-20:21, -20:21]
    disk = np.mean(x[x**2 + y**2 <= (6 * scale) ** 2] ** 2)
    rim = 2 * np.exp(-2) / (1 + 2 * np.exp(-2))
    assert added["defocus_blur"] == pytest.approx(disk + rim, rel=0.05)


def test_motion_blur_is_a_line_of_half_a_gaussian():
    picture = np.zeros((224, 224, 3), np.uint8)
    picture[112, 112] = 255
    for severity, (radius, sigma) in zip(
        SEVERITIES, CORRUPTIONS["motion_blur"][1], strict=True
    ):
        angle = generator("motion_blur", severity, "a").uniform(-45, 45)
        found = corrupt(picture, "motion_blur", severity, "a")[..., 0]
        rows, columns = np.nonzero(found)
        # On one side of the point and within half a pixel of the line.
        along = 112 - columns
        assert along.min() == 0 and along.max() <= 2 * radius
        across = (112 - rows) - along * np.tan(np.deg2rad(angle))
        assert np.abs(across).max() <= 1
        weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
        assert found[112, 112] == round(255 * weights[0] / weights.sum())


def test_occlusion_covers_its_share_of_any_picture():
    picture = np.zeros((60, 200, 3), np.uint8)
    for severity, share in zip(SEVERITIES, CORRUPTIONS["occlusion"][1], strict=True):
        covered = np.any(corrupt(picture, "occlusion", severity, "a") > 0, axis=-1)
        assert covered.mean() == pytest.approx(share, abs=0.01)
        rows, columns = np.nonzero(covered)
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert covered.sum() == box


def test_the_last_grey_has_no_colour_and_keeps_luma():
    from PIL import Image

    picture = golden_picture(50)
    grey = corrupt(picture, "grey", 5, "a")
    assert np.ptp(grey, axis=-1).max() == 0
    luma = np.asarray(Image.fromarray(picture).convert("L")).astype(int)
    assert np.abs(grey[..., 0] - luma).max() <= 1


def test_brightness_keeps_hue_and_saturation():
    from colorsys import rgb_to_hsv

    picture = np.asarray([[[200, 100, 50], [20, 40, 30], [0, 0, 0]]], np.uint8)
    brighter = corrupt(picture, "brightness", 2, "a")
    for before, after in zip(picture[0, :2] / 255, brighter[0, :2] / 255, strict=True):
        expected = rgb_to_hsv(*before)
        found = rgb_to_hsv(*after)
        assert found[:2] == pytest.approx(expected[:2], abs=0.02)
        assert found[2] == pytest.approx(expected[2] + 0.2, abs=0.003)
    assert brighter[0, 2].tolist() == [51, 51, 51]


def test_a_uniform_picture_has_nothing_to_blur():
    uniform = np.full((30, 90, 3), (10, 99, 255), np.uint8)
    for name in ("gaussian_blur", "motion_blur", "defocus_blur", "contrast"):
        for severity in SEVERITIES:
            np.testing.assert_array_equal(
                corrupt(uniform, name, severity, "a"), uniform
            )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_one_pixel_is_a_picture(name):
    pixel = np.full((1, 1, 3), 77, np.uint8)
    for severity in SEVERITIES:
        assert corrupt(pixel, name, severity, "a").shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "gausian_noise"}, "did you mean 'gaussian_noise'"),
        ({"severity": 6}, "severity=6 must be an integer from 0 to 5"),
        ({"severity": -1}, "severity=-1"),
        ({"severity": 2.0}, "severity=2.0"),
        ({"severity": True}, "severity=True"),
        ({"image": np.zeros((4, 4, 3))}, "float64 and must be .* uint8"),
        ({"image": [[0]]}, "list and must be"),
        ({"image": np.zeros((4, 4), np.uint8)}, r"\[4, 4\] and must have \[H, W, 3\]"),
        ({"image": np.zeros((4, 4, 4), np.uint8)}, r"\[4, 4, 4\]"),
        ({"image": np.zeros((0, 4, 3), np.uint8)}, r"\[0, 4, 3\]"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {
        "image": np.zeros((4, 4, 3), np.uint8),
        "name": "contrast",
        "severity": 1,
        "key": "a",
        **change,
    }
    with pytest.raises(ValueError, match=message):
        corrupt(**arguments)
