import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models_small import forward, small_batch, small_model

from meta_opt.losses.contrastive import clip_loss
from meta_opt.models.int8 import quantise_base
from meta_opt.models.lora import (
    LoRAConfig,
    LoRALinear,
    LoRAParam,
    add_lora,
    merge_lora,
    unmerge_lora,
)

CONFIG = LoRAConfig(pattern=r"vision/.*(query|mlp/up)/kernel|patches", rank=3, alpha=6)


def adapted(config=CONFIG):
    model = small_model()
    return model, add_lora(model, config, rngs=nnx.Rngs(1))


def randomise_b(model):
    rng = np.random.default_rng(0)
    adapters = nnx.to_flat_state(nnx.state(model, LoRAParam))
    for _, param in [item for item in adapters if item[0][-1] == "lora_b"]:
        param[...] = jnp.asarray(rng.normal(size=param.shape), jnp.float32)


def by_path(model, kind=nnx.Param):
    return {
        "/".join(path): np.asarray(param[...])
        for path, param in nnx.to_flat_state(nnx.state(model, kind))
    }


def test_is_the_identity_at_first():
    expected = forward(small_model(), small_batch())
    found = forward(adapted()[0], small_batch())
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_names_of_existing_parameters_and_their_values_stay():
    model, summary = adapted()
    before, after = by_path(small_model()), by_path(model)
    added = {
        p.removesuffix("kernel") + leaf
        for p in summary.shapes
        for leaf in ("lora_a", "lora_b")
    }
    assert set(after) - set(before) == added
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value)


def test_summary_says_what_matched_and_how_much_trains():
    model, summary = adapted()
    assert summary.shapes == {
        "vision/layers/attention/query/kernel": (2, 16, 16),
        "vision/layers/mlp/up/kernel": (2, 16, 32),
        "vision/patches/kernel": (48, 16),
    }
    trainable = 2 * 3 * (16 + 16) + 2 * 3 * (16 + 32) + 3 * (48 + 16)
    assert summary.trainable == trainable
    assert summary.total == sum(v.size for v in by_path(model).values())
    assert f"{trainable:,} of {summary.total:,}" in str(summary)
    assert "vision/patches/kernel [48, 16]" in str(summary)


def test_adapters_act_as_kernels_plus_their_product():
    model, summary = adapted()
    randomise_b(model)
    values = by_path(model)
    plain = small_model()
    for name, param in nnx.to_flat_state(nnx.state(plain, nnx.Param)):
        if (path := "/".join(name)) in summary.shapes:
            a, b = (values[path.replace("kernel", f"lora_{x}")] for x in "ab")
            param[...] = param[...] + 6 / 3 * a @ b
    np.testing.assert_allclose(
        forward(model, small_batch())[0], forward(plain, small_batch())[0], atol=1e-5
    )


def test_merge_keeps_the_function_and_unmerge_the_parameters():
    model, _ = adapted()
    randomise_b(model)
    before, z = by_path(model), forward(model, small_batch())[0]
    adapters = merge_lora(model)
    assert set(by_path(model)) == set(by_path(small_model()))
    np.testing.assert_allclose(forward(model, small_batch())[0], z, atol=1e-5)
    unmerge_lora(model, adapters, CONFIG)
    after = by_path(model)
    assert set(after) == set(before)
    for path, value in before.items():
        np.testing.assert_allclose(after[path], value, atol=1e-6)
    np.testing.assert_allclose(forward(model, small_batch())[0], z, atol=1e-5)


def test_only_adapters_get_gradients_and_the_base_stays():
    model, _ = adapted()
    graphdef, adapters, frozen = nnx.split(model, LoRAParam, ...)

    @jax.jit
    def step(adapters):
        def loss(adapters):
            return clip_loss(*nnx.merge(graphdef, adapters, frozen)(small_batch()))

        value, grads = jax.value_and_grad(loss)(adapters)
        return jax.tree.map(lambda p, g: p - 0.5 * g, adapters, grads), grads, value

    trained, grads, first = step(adapters)
    for path, grad in nnx.to_flat_state(grads):
        # With B at zero only B moves.
        assert (np.abs(grad[...]).max() > 0) == (path[-1] == "lora_b"), path
    for _ in range(5):
        trained, _, value = step(trained)
    assert value < first
    after = nnx.merge(graphdef, trained, frozen)
    base = by_path(small_model())
    assert {p for p in by_path(after) if p not in base} == set(
        by_path(model, LoRAParam)
    )
    for path, value in base.items():
        np.testing.assert_array_equal(by_path(after)[path], value)


def test_zero_matches_lists_the_candidates():
    with pytest.raises(
        ValueError,
        match=r"'queri/kernel' matches no kernel.*candi"
        r"dates: text/layers/attention/key/kernel.*vision/patches",
    ):
        adapted(LoRAConfig(pattern="queri/kernel"))


def test_groups_choose_modalities():
    config = LoRAConfig(pattern="query/kernel", groups=("text",))
    assert list(adapted(config)[1].shapes) == ["text/layers/attention/query/kernel"]
    with pytest.raises(ValueError, match=r"query/kernel' matches no kernel of audio"):
        adapted(LoRAConfig(pattern="query/kernel", groups=("audio",)))
    with pytest.raises(ValueError, match=r"unknown modality group 'visio'.*'vision'"):
        LoRAConfig(groups=("visio",))


def test_int8_base_is_close_and_adapters_train_over_it():
    model, _ = adapted()
    randomise_b(model)
    expected, kernels = forward(model, small_batch()), by_path(model)
    summary = quantise_base(model)
    assert "int8 base: 15 kernels" in str(summary)
    assert summary.bytes_after < 0.4 * summary.bytes_before
    found = forward(model, small_batch())
    for a, b in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=0.03)
        assert not np.array_equal(a, b)
    for path, value in by_path(model).items():
        if value.dtype == np.int8:
            scale = by_path(model)[f"{path}_scale"][..., None, :]
            error = np.abs(value * scale - kernels[path])
            assert np.all(error <= 0.5001 * scale)
    graphdef, params, frozen = nnx.split(model, LoRAParam, ...)

    def loss(params):
        return clip_loss(*nnx.merge(graphdef, params, frozen)(small_batch()))

    grads = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    assert all(np.any(np.asarray(g)) for g in grads)
    merge_lora(model)
    for a, b in zip(forward(model, small_batch()), found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # What was not adapted is of floats again too, and is what it was but for rounding.
    merged = by_path(model)
    assert {value.dtype for value in merged.values()} == {np.dtype("float32")}
    assert set(merged) == set(by_path(small_model()))
    with pytest.raises(ValueError, match="'decoder' matches no kernel"):
        quantise_base(model, "decoder")


def test_merging_without_adapters_is_an_error():
    with pytest.raises(ValueError, match="no LoRA adapters"):
        merge_lora(small_model())


def test_rank_below_one_is_an_error():
    with pytest.raises(ValueError, match="rank=0"):
        LoRAConfig(rank=0)


def test_scaling():
    assert LoRAConfig(rank=4, alpha=8).scaling == 2
    assert LoRAConfig(rank=4, alpha=8, rs_lora=True).scaling == 4


def test_works_on_any_module_with_linear_layers():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List(
                [nnx.Linear(4, 4, use_bias=False, rngs=rngs) for _ in range(2)]
            )

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    net, x = Net(nnx.Rngs(0)), jnp.ones((2, 4))
    expected = net(x)
    summary = add_lora(net, LoRAConfig(pattern=r"layers/1/"), rngs=nnx.Rngs(1))
    assert list(summary.shapes) == ["layers/1/kernel"]
    assert isinstance(net.layers[1], LoRALinear)
    np.testing.assert_array_equal(net(x), expected)
    merge_lora(net)
    np.testing.assert_allclose(net(x), expected, rtol=1e-6)
