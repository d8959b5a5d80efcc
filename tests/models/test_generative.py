import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from generative_small import SMALL, logits, small_batch, small_model

from meta_opt.losses.captioning import captioning_loss
from meta_opt.models.decoder import RMSNorm, rotate
from meta_opt.models.generative import Generative, named_config, prefix_mask
from meta_opt.models.int8 import quantise_base
from meta_opt.models.lora import LoRAParam, add_lora, merge_lora
from meta_opt.models.parameters import by_path, parameter_count
from meta_opt.models.towers import STACKED
from meta_opt.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from meta_opt.parallel.sharding import GENERATIVE_RULES, parameter_shardings


@functools.partial(jax.jit, static_argnums=0)
def value_and_grad(graphdef, params, frozen, batch):
    def loss(params):
        return captioning_loss(*nnx.merge(graphdef, params, frozen)(batch))

    return jax.value_and_grad(loss)(params)


def loss_and_grads(model, batch):
    return value_and_grad(*nnx.split(model, nnx.Param, ...), batch)


def close(found, expected, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected
    )


# What reads what


def changed(batch, name, row, place, token):
    new = batch[name].copy()
    new[row, place] = token
    return {**batch, name: new}


def test_an_answer_is_read_from_left_to_right():
    model, batch = small_model(), small_batch()
    before = logits(model, batch)
    after = logits(model, changed(batch, "text", 0, 3, 9))
    assert batch["text"][0, 3] != 9
    np.testing.assert_array_equal(after[0, :4], before[0, :4])
    assert np.all(np.abs(after[0, 4:] - before[0, 4:]).max(axis=-1) > 1e-2)
    np.testing.assert_array_equal(after[1:], before[1:])


@pytest.mark.parametrize("place", range(5))
def test_each_token_of_the_prompt_is_read_by_the_whole_answer(place):
    model, batch = small_model(), small_batch()
    before = logits(model, batch)
    after = logits(model, changed(batch, "prompt", 0, place, 9))
    assert np.all(np.abs(after[0] - before[0]).max(axis=-1) > 1e-3)
    np.testing.assert_array_equal(after[1:], before[1:])


def test_prompt_and_image_read_each_other():
    """The first token of the prompt has read the last, and so have the patches."""
    model, batch = small_model(), small_batch()

    @jax.jit
    def states(prompt):
        prefix = model.prefix(batch["image"], prompt)
        mask = prefix_mask(prefix.real, prefix.x.shape[1])
        positions = jnp.cumsum(prefix.real, axis=1) - 1
        return model.decoder(prefix.x, positions, mask)[0]

    other = changed(batch, "prompt", 0, 4, 9)["prompt"]
    difference = np.abs(states(other) - states(batch["prompt"])).max(axis=-1)
    assert np.all(difference[0] > 1e-3)
    assert np.all(difference[1:] == 0)


def test_padding_changes_nothing_wherever_it_is():
    model, batch = small_model(), small_batch()
    before = logits(model, batch)
    wider = {
        **batch,
        "prompt": np.pad(batch["prompt"], ((0, 0), (3, 2))),
        "text": np.pad(batch["text"], ((0, 0), (0, 2))),
    }
    real = batch["text"] != 0
    found = logits(model, wider)[:, :6]
    np.testing.assert_allclose(found[real], before[real], atol=1e-5)
    # As if there were another token instead, which is read.
    read = changed(wider, "prompt", 1, 0, 9)
    assert np.abs(logits(model, read)[1] - found[1, :1]).max() > 1e-2


def test_the_first_token_follows_from_the_image_if_there_is_no_prompt():
    model, batch = small_model(), small_batch()
    without = jax.jit(lambda: model.logits(batch["image"], None, batch["text"]))()
    empty = logits(model, {**batch, "prompt": np.zeros_like(batch["prompt"])})
    real = batch["text"] != 0
    np.testing.assert_allclose(without[real], empty[real], atol=1e-5)
    assert np.abs(without[0, 0] - without[1, 0]).max() > 1e-2


# Parts


def test_products_of_rotated_vectors_depend_on_their_distance():
    rng = np.random.default_rng(0)
    q, k = (rng.normal(size=(1, 1, 1, 8)).astype(np.float32) for _ in range(2))

    @jax.jit
    def product(p, r):
        a, b = (rotate(x, jnp.array([[n]]), 100.0) for x, n in ((q, p), (k, r)))
        return jnp.sum(a * b)

    np.testing.assert_allclose(product(7, 3), product(104, 100), rtol=1e-4)
    assert abs(product(7, 3) - product(7, 4)) > 1e-2
    # Channel 1 of 4 pairs turns by 100^(-1/4) a place.
    turned = rotate(jnp.eye(8)[None, 1:2, None], jnp.array([[2]]), 100.0)[0, 0, 0]
    angle = 2 * 100 ** (-1 / 4)
    expected = np.zeros(8)
    expected[[1, 5]] = np.cos(angle), np.sin(angle)
    np.testing.assert_allclose(turned, expected, atol=1e-6)


def test_rms_norm():
    norm = RMSNorm(SMALL.decoder, SMALL)
    norm.scale[...] = jnp.arange(16.0)
    x = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * np.arange(1, 17)
    np.testing.assert_allclose(jax.jit(norm)(x), expected, rtol=1e-5)
    half = jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
    assert jax.eval_shape(norm, half).dtype == jnp.bfloat16


def test_grouped_heads_share_their_keys_in_order():
    """Heads 0, 1 read the first pair of key and value, heads 2, 3 the second."""
    decoder, width = small_model().decoder, SMALL.decoder.head_width
    graphdef, params = nnx.split(decoder.layers)
    layer = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[0], params)).attention
    x = np.random.default_rng(0).normal(size=(1, 3, 16)).astype(np.float32)
    positions, mask = jnp.arange(3)[None], jnp.ones((1, 3, 3), bool)
    layer.out.kernel = nnx.Param(jnp.eye(4 * width))
    attend = nnx.jit(lambda layer: layer(x, positions, mask)[0])
    before = attend(layer)
    layer.value.kernel[...] = layer.value.kernel[...].at[:, width:].set(0)
    after = attend(layer)
    np.testing.assert_array_equal(after[..., : 2 * width], before[..., : 2 * width])
    assert np.all(after[..., 2 * width :] == 0)


# Numerics


@pytest.mark.parametrize(
    "changes",
    [
        {"remat": "none"},
        pytest.param({"remat": "dots"}, marks=pytest.mark.slow),
        pytest.param({"scan_layers": False}, marks=pytest.mark.slow),
    ],
)
def test_rematerialisation_does_not_change_gradients(changes):
    expected = loss_and_grads(small_model(), small_batch())
    found = loss_and_grads(small_model(**changes), small_batch())
    close(found, expected, rtol=1e-4, atol=1e-6)


def test_bfloat16_computation_is_close_and_parameters_are_what_is_asked_for():
    batch, expected = small_batch(), logits(small_model(), small_batch())
    for param_dtype in ("float32", "bfloat16"):
        model = small_model(dtype="bfloat16", param_dtype=param_dtype)
        assert {str(p.dtype) for p in by_path(model).values()} == {param_dtype}
        found = logits(model, batch)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, atol=0.15)
        assert not np.array_equal(found, expected)
        value, grads = jax.eval_shape(lambda m=model: loss_and_grads(m, batch))
        assert value.dtype == jnp.float32
        assert {str(g.dtype) for g in jax.tree.leaves(grads)} == {param_dtype}
        hidden = jax.eval_shape(lambda m=model: m(batch)[0])
        assert hidden.dtype == jnp.bfloat16


def test_the_loss_falls_and_reaches_every_parameter():
    model, batch = small_model(), small_batch()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    first, grads = value_and_grad(graphdef, params, rest, batch)
    for path, grad in nnx.to_flat_state(grads):
        # A key's bias adds the same to all logits of a query.
        assert np.any(np.abs(grad[...]) > 1e-6) or path[-2:] == ("key", "bias"), path
    for _ in range(5):
        _, grads = value_and_grad(graphdef, params, rest, batch)
        params = jax.tree.map(lambda p, g: p - 0.02 * g, params, grads)
    assert value_and_grad(graphdef, params, rest, batch)[0] < first


# Sizes and paths


def test_sizes():
    counts = {
        name: parameter_count(
            nnx.eval_shape(
                lambda name=name: Generative(named_config(name), rngs=nnx.Rngs(0))
            )
        )
        for name in ("nano-generative", "3B/14")
    }
    # Of the checkpoint that its authors published, too.
    assert counts == {"nano-generative": 430_400, "3B/14": 2_923_466_480}


def test_stacked_pattern_matches_exactly_the_leaves_with_a_layer_axis():
    decoder = dataclasses.replace(SMALL.decoder, depth=5)
    config = dataclasses.replace(SMALL, decoder=decoder)
    model = nnx.eval_shape(lambda: Generative(config, rngs=nnx.Rngs(0)))
    for path, leaf in by_path(model).items():
        stacked = re.search(STACKED, path) is not None
        assert stacked == ("layers" in path.split("/"))
        if stacked:
            assert leaf.shape[0] == (5 if path.startswith("decoder") else 2)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (SMALL.decoder, {"key_value_heads": 3}, "key_value_heads=3 must divide heads"),
        (SMALL.decoder, {"head_width": 7}, "head_width=7 must be even"),
        (SMALL.decoder, {"activation": "relu"}, "activation='relu' must be one of"),
        (SMALL, {"dtype": "float16"}, "dtype='float16' must be one of"),
        (SMALL, {"class_token": True}, "class_token=True False"),
        (SMALL, {"pad_id": 3}, "pad_id=3 must not be the token that ends"),
        (SMALL, {"end_id": 32}, "end_id=32 is not a token of vocab_size=32"),
        (
            SMALL,
            {"vision": dataclasses.replace(SMALL.vision, pooling="mean")},
            "pooling='mean' must be 'none'",
        ),
        (
            SMALL,
            {"vision": dataclasses.replace(SMALL.vision, width=8, projection="none")},
            "no projection and width 8, which must be the decoder's, 16",
        ),
    ],
)
def test_config_errors(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


def test_wrong_names_and_shapes_are_errors():
    with pytest.raises(ValueError, match=r"size '3B'.*sizes: nano-generative, .*3B/14"):
        named_config("3B")
    model, batch = small_model(), small_batch()
    with pytest.raises(ValueError, match=r"text has shape \(6,\); for 4 images"):
        model.hidden(batch["image"], batch["prompt"], batch["text"][0])


# Adapters, int8, devices


def test_adapters_go_over_an_int8_base():
    model, batch = small_model(), small_batch()
    expected = logits(model, batch)
    summary = add_lora(model, rngs=nnx.Rngs(1))
    assert list(summary.shapes) == [
        f"{part}/layers/attention/{name}/kernel"
        for part in ("decoder", "vision")
        for name in ("query", "value")
    ]
    np.testing.assert_array_equal(logits(model, batch), expected)
    assert quantise_base(model).kernels == 7 + 6 + 2
    assert by_path(model)["decoder/layers/mlp/gate/kernel"].dtype == jnp.int8
    found = logits(model, batch)
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert not np.array_equal(found, expected)
    merge_lora(model)
    np.testing.assert_allclose(logits(model, batch), found, atol=1e-4)


@pytest.mark.parametrize("rounded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sharded_step_is_the_unsharded_one(rounded, caplog):
    model, batch = small_model(), small_batch(8)
    if rounded:
        add_lora(model, rngs=nnx.Rngs(1))
        quantise_base(model)
    kind = LoRAParam if rounded else nnx.Param
    graphdef, params, frozen = nnx.split(model, kind, ...)
    expected = value_and_grad(graphdef, params, frozen, batch)
    if rounded:
        for path, grad in nnx.to_flat_state(expected[1]):
            # With B at zero only B moves.
            assert np.any(grad[...]) == (path[-1] == "lora_b"), path
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rules = [dataclasses.replace(r, min_size=0) for r in GENERATIVE_RULES]
    if not rounded:
        layout = parameter_shardings(GENERATIVE_RULES, mesh, params, frozen)
        assert not caplog.records, [r.getMessage() for r in caplog.records]
    layout = parameter_shardings(rules, mesh, params, frozen)
    params, frozen = jax.device_put((params, frozen), layout)
    split = [
        "/".join(path)
        for path, leaf in nnx.to_flat_state(nnx.merge_state(params, frozen))
        if not leaf[...].sharding.is_fully_replicated
    ]
    assert "decoder/tokens/embedding" in split and len(split) > 20
    on_mesh = jax.device_put(batch, batch_sharding(mesh))
    found = value_and_grad(graphdef, params, frozen, on_mesh)
    # Sums are in another order; the largest gradients are near one.
    close(found, expected, rtol=1e-4, atol=4e-6)


def test_no_rule_fails_on_3b():
    """One head of keys and values is whole on every tensor part, without a warning."""
    model = nnx.eval_shape(lambda: Generative(named_config("3B/14"), rngs=nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    (layout,) = parameter_shardings(GENERATIVE_RULES, mesh, shapes)
    decoder = layout["decoder"]
    block = decoder["layers"]
    found = {
        "embedding": decoder["tokens"]["embedding"].spec,
        "query": block["attention"]["query"]["kernel"].spec,
        "key": block["attention"]["key"]["kernel"].spec,
        "gate": block["mlp"]["gate"]["kernel"].spec,
    }
    assert {k: tuple(v) for k, v in found.items()} == {
        "embedding": (("tensor", "fsdp"), None),
        "query": (None, "fsdp", "tensor"),
        "key": (None, "fsdp", None),
        "gate": (None, "fsdp", "tensor"),
    }
