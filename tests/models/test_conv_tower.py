"""Generative models with a convolutional image tower."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from generative_small import SMALL, logits

from meta_opt.models import huggingface, pretrained
from meta_opt.models.generative import Generative, GenerativeConfig, named_config
from meta_opt.models.parameters import STORED, by_path
from meta_opt.parallel.mesh import MeshConfig, make_mesh
from meta_opt.parallel.sharding import (
    CONV_GENERATIVE_RULES,
    GENERATIVE_RULES,
    parameter_shardings,
)

CONV = dataclasses.replace(
    SMALL, tower="efficientnet_nano", image_size=16, patch_size=8
)


@functools.cache
def conv_model():
    """Random throughout, the statistics of batch norms too."""
    rng = np.random.default_rng(0)
    model = nnx.eval_shape(lambda: Generative(CONV, rngs=nnx.Rngs(0)))
    for path, variable in by_path(model, STORED).items():
        value = rng.normal(0, 0.3, variable.shape)
        if path.endswith(("var", "norm/scale")):
            value = 1 + np.abs(value)
        variable.set_value(jnp.asarray(value, jnp.float32))
    return model


def batch():
    rng = np.random.default_rng(1)
    return {
        "image": rng.integers(0, 256, (2, 16, 16, 3), np.uint8),
        "prompt": rng.integers(4, 32, (2, 3), np.int32),
        "text": rng.integers(4, 32, (2, 4), np.int32),
    }


def test_the_grid_stands_before_the_prompt():
    model, data = conv_model(), batch()
    prefix = model.prefix(data["image"], data["prompt"])
    assert prefix.x.shape == (2, 2 * 2 + 3, CONV.decoder.width)
    assert CONV.feature_width == model.vision.encoder.config.width == 128
    features = model.vision.encoder.features(data["image"])
    np.testing.assert_allclose(
        prefix.x[:, :4],
        model.vision.projection(features.reshape(2, 4, -1)),
        atol=1e-5,
    )


def test_features_may_stand_for_pictures():
    model, data = conv_model(), batch()
    features = model.vision.features(jnp.asarray(data["image"]))
    found = logits(model, {**data, "image": features})
    np.testing.assert_allclose(found, logits(model, data), atol=1e-4)
    # Another image, another answer.
    other = logits(model, {**data, "image": features[::-1]})
    assert np.abs(other - found).max() > 1e-2


def test_pixels_as_bytes_and_as_floats_are_the_same():
    model, image = conv_model(), batch()["image"]
    np.testing.assert_allclose(
        model.vision.features(jnp.asarray(image / 255, jnp.float32)),
        model.vision.features(jnp.asarray(image)),
        atol=1e-3,
    )


def test_shapes_that_are_not_the_models_are_errors():
    with pytest.raises(ValueError, match=r"takes \[B, 16, 16, 3\]"):
        conv_model().prefix(np.zeros((1, 24, 24, 3), np.uint8))
    with pytest.raises(ValueError, match=r"takes \[B, 16, 16, 3\]"):
        conv_model().prefix(np.zeros((1, 4, 127), np.float32))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tower": "efficientnet_lite"}, "did you mean 'efficientnet_lite0'"),
        ({"tower": "efficientnet_lite0"}, "patch_size=8 must be the 32 pixels"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONV, **changes)


def test_export_keeps_the_statistics_of_batch_norms(tmp_path):
    model, path = conv_model(), tmp_path / "answers"
    pretrained.save(path, model)
    assert pretrained.read_config(path) == CONV
    loaded = pretrained.load(path)
    stored = by_path(model, STORED)
    assert any(name.endswith("norm/var") for name in stored)
    for name, variable in by_path(loaded, STORED).items():
        expected = np.asarray(stored[name][...], np.float16)
        np.testing.assert_array_equal(variable[...], expected, err_msg=name)


def test_it_is_no_paligemma():
    with pytest.raises(ValueError, match="no image tower 'efficientnet_nano'"):
        huggingface.check_writable(CONV)


def test_each_rule_of_its_layout_is_used():
    model = nnx.eval_shape(lambda: Generative(CONV, rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    parameter_shardings(CONV_GENERATIVE_RULES, mesh, params)
    with pytest.raises(ValueError, match="match none"):
        parameter_shardings(GENERATIVE_RULES, mesh, params)


def test_the_sizes_have_minilms_vocabulary_and_width():
    for name in ("nano-answers", "lite0-answers"):
        config: GenerativeConfig = named_config(name)
        assert (config.decoder.vocab_size, config.decoder.width) == (30_522, 384)
        assert (config.pad_id, config.end_id) == (0, 102)
    assert named_config("lite0-answers").grid == 7
