import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models_small import SMALL, TOWER, forward, small_batch, small_model

from meta_opt.losses.contrastive import clip_loss
from meta_opt.models import layers
from meta_opt.models.vision_text import (
    STACKED,
    VisionText,
    VisionTextConfig,
    named_config,
    parameter_count,
)


def test_outputs_are_unit_float32():
    image_z, text_z, scale, bias = forward(small_model(), small_batch())
    for z in (image_z, text_z):
        assert z.shape == (4, SMALL.embed_dim)
        assert z.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(scale, SMALL.init_scale, rtol=1e-5)
    np.testing.assert_allclose(bias, SMALL.init_bias)


@pytest.mark.parametrize(
    "options", [{}, {"remat": "full"}, {"remat": "dots"}, {"unroll": True}]
)
def test_stack_equals_a_loop_over_layers(options):
    graphdef, params = nnx.split(small_model().vision.layers)
    x = np.random.default_rng(0).normal(size=(2, 5, TOWER.width)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)

    def loop(params, x):
        for i in range(TOWER.depth):
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], params)
            x = nnx.merge(graphdef, layer)(x, mask)
        return x

    def stack(params, x):
        return layers.apply_stack(nnx.merge(graphdef, params), x, mask, **options)

    def value_and_grad(apply):
        return jax.jit(jax.value_and_grad(lambda *a: (apply(*a) ** 2).mean()))

    found, expected = (value_and_grad(f)(params, x) for f in (stack, loop))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found,
        expected,
    )


def test_layers_are_initialised_apart():
    kernel = small_model().vision.layers.mlp.up.kernel[...]
    assert kernel.shape == (2, 16, 32)
    assert not np.allclose(kernel[0], kernel[1])


def test_bfloat16_computation_is_close_and_parameters_float32():
    model, batch = small_model(), small_batch()
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    low = nnx.eval_shape(lambda: VisionText(config, rngs=nnx.Rngs(0)))
    nnx.update(low, nnx.state(model))
    for z, expected in zip(forward(low, batch), forward(model, batch), strict=True):
        assert z.dtype == jnp.float32
        np.testing.assert_allclose(z, expected, atol=0.03)
    _, params = nnx.split(low)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert low.vision.features(batch["image"]).dtype == jnp.bfloat16


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_padding_does_not_change_the_text_embedding(pooling):
    tower = dataclasses.replace(TOWER, pooling=pooling)
    model = small_model(dataclasses.replace(SMALL, text=tower))
    encode = jax.jit(lambda tokens: model.encode_text(tokens))
    text = small_batch()["text"]
    expected = encode(text[:, :4])
    np.testing.assert_allclose(encode(text), expected, atol=1e-6)
    changed = np.where(np.arange(6) == 3, 0, text)
    assert not np.allclose(encode(changed), expected, atol=1e-3)


def test_caption_without_tokens_has_finite_gradient():
    batch = small_batch()
    batch["text"][0] = 0
    graphdef, params = nnx.split(small_model(), nnx.Param)
    value, grads = jax.jit(
        jax.value_and_grad(lambda p: clip_loss(*nnx.merge(graphdef, p)(batch)))
    )(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_uint8_and_unit_float_images_agree():
    batch = small_batch()
    floats = batch | {"image": batch["image"].astype(np.float32) / 255}
    z, expected = (forward(small_model(), b)[0] for b in (floats, batch))
    np.testing.assert_allclose(z, expected, atol=1e-6)


def test_patches_are_squares_of_the_image():
    model = small_model()
    image = small_batch(1)["image"].astype(np.float32) / 255
    seen = []
    model.vision.patches = seen.append
    model.vision.transform = lambda x: x
    model.vision.features(image)
    np.testing.assert_allclose(
        seen[0][0, 1].reshape(4, 4, 3), 2 * image[0, :4, 4:] - 1, atol=1e-6
    )


def test_scale_is_bounded():
    model = small_model()
    model.log_scale[...] = jnp.float32(20.0)
    np.testing.assert_allclose(model.scale(), 100, rtol=1e-5)


def test_nano_is_the_default_and_its_size():
    assert named_config("nano") == VisionTextConfig()
    model = nnx.eval_shape(lambda: VisionText(VisionTextConfig(), rngs=nnx.Rngs(0)))
    assert parameter_count(model) == 1_718_274


def test_stacked_pattern_matches_exactly_the_leaves_with_a_layer_axis():
    depths = {"vision": 3, "text": 5}
    towers = {k: dataclasses.replace(TOWER, depth=d) for k, d in depths.items()}
    config = dataclasses.replace(SMALL, **towers)
    model = nnx.eval_shape(lambda: VisionText(config, rngs=nnx.Rngs(0)))
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        stacked = re.search(STACKED, "/".join(path)) is not None
        assert stacked == ("layers" in path)
        if stacked:
            assert leaf.shape[0] == depths[path[0]]


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (SMALL, {"patch_size": 7}, "patch_size=7 must divide image_size=8"),
        (TOWER, {"heads": 3}, "heads=3 must divide width=16"),
        (TOWER, {"pooling": "meen"}, "did you mean 'mean'"),
        (TOWER, {"activation": "relu"}, "activation='relu' must be one of gelu_tanh"),
        (SMALL, {"init_scale": 0.0}, "init_scale=0.0 must be above 0"),
        (SMALL, {"dtype": "float16"}, "dtype='float16' must be one of"),
        (SMALL, {"remat": "fulll"}, "did you mean 'full'"),
        (
            SMALL,
            {"text": dataclasses.replace(TOWER, projection="none")},
            "the text tower has no projection and width 16, .* embed_dim=8",
        ),
        (
            SMALL,
            {"vision": dataclasses.replace(TOWER, pooling="first")},
            "needs class_token",
        ),
        (
            SMALL,
            {"text": dataclasses.replace(TOWER, pooling="end")},
            "needs its end_id",
        ),
        (
            SMALL,
            {"text": dataclasses.replace(TOWER, pooling="none")},
            "the text tower pools to no vector",
        ),
    ],
)
def test_config_errors(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


def test_unknown_size_names_the_sizes():
    with pytest.raises(
        ValueError, match=r"did you mean 'nano'.*sizes: nano, tiny, B/16"
    ):
        named_config("nanno")


def test_wrong_input_shapes_are_errors():
    model = small_model()
    with pytest.raises(ValueError, match=r"\(1, 9, 8, 3\).*\[B, 8, 8, 3\]"):
        model.encode_image(np.zeros((1, 9, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\(1, 7\).*S up to 6"):
        model.encode_text(np.ones((1, 7), np.int32))
