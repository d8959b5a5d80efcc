"""Random views of images."""

import numpy as np
import pytest

from meta_opt.data.preprocessing import augment as module
from meta_opt.data.preprocessing.augment import AugmentConfig, augment

IMAGE = np.random.default_rng(0).integers(0, 200, (64, 60, 3), np.uint8)


def drawn(config, seed=0, image=IMAGE):
    return augment(image, config, np.random.default_rng(seed))


def test_a_flip_mirrors_half_of_the_pictures():
    views = [drawn(AugmentConfig(flip=True), seed) for seed in range(200)]
    mirrored = [np.array_equal(view, IMAGE[:, ::-1]) for view in views]
    same = [np.array_equal(view, IMAGE) for view in views]
    assert 70 < sum(mirrored) < 130 and sum(mirrored) + sum(same) == 200


def test_jitter_keeps_the_mean_brightness_in_its_range():
    grey = np.full((4, 4, 3), 100, np.uint8)
    values = [drawn(AugmentConfig(jitter=0.2), s, grey).mean() for s in range(200)]
    assert 79 <= min(values) < 85 and 115 < max(values) <= 121


def test_hue_keeps_grey_and_turns_colours():
    grey = np.full((4, 4, 3), 100, np.uint8)
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    config = AugmentConfig(hue=0.5)
    np.testing.assert_array_equal(drawn(config, 1, grey), grey)
    turned = {tuple(drawn(config, s, red)[0, 0] > 100) for s in range(50)}
    assert len(turned) > 4


def test_rotation_brings_white_into_the_corners_and_keeps_the_middle():
    black = np.zeros((31, 31, 3), np.uint8)
    view = drawn(AugmentConfig(rotate_degrees=45), 0, black)
    assert view[15, 15].max() == 0 and view[0, 0].min() > 200


def test_a_crop_of_a_plane_is_the_plane():
    ramp = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], 60, 0)
    view = drawn(AugmentConfig(crop_scale=0.5), 3, np.repeat(ramp, 3, 2))
    steps = np.diff(view[30, 5:-5, 0].astype(int))
    # A part of it, so that the slope is smaller.
    assert (steps >= 0).all() and 1.5 < steps.mean() < 4


@pytest.mark.parametrize("operation", range(len(module._OPERATIONS)))
def test_operations_of_strength_0_change_nothing(operation):
    from PIL import Image

    picture = Image.fromarray(IMAGE)
    apply = module._OPERATIONS[operation]
    weak = np.asarray(apply(picture, 0.0, 1)).astype(int)
    assert weak.shape == IMAGE.shape
    if operation < 12:  # Contrast and histogram have no strength.
        assert np.abs(weak - IMAGE.astype(int)).max() <= 1
    strong = np.asarray(apply(picture, 1.0, -1))
    assert operation == 0 or not np.array_equal(strong, IMAGE)


def test_the_seed_decides_and_ranges_are_checked():
    config = AugmentConfig(True, 15, 0.2, 0.1, 0.8, 2, 9)
    np.testing.assert_array_equal(drawn(config, 5), drawn(config, 5))
    assert not np.array_equal(drawn(config, 5), drawn(config, 6))
    for wrong in ({"jitter": 1.5}, {"hue": -0.1}, {"magnitude": 31}):
        with pytest.raises(ValueError, match=f"augment.{next(iter(wrong))}="):
            AugmentConfig(**wrong)
    with pytest.raises(ValueError, match="crop_scale=0"):
        AugmentConfig(crop_scale=0.0)
