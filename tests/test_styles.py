"""Families in many styles: what a style says holds, and every family trains."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_opt.data.missing import MissingDataError
from meta_opt.tasks.families import (
    FAMILIES,
    SPLIT_OF_DATASET,
    STYLE_TRAIN,
    make_task,
)
from meta_opt.tasks.style_families import STYLE_DATASETS, STYLE_FAMILIES
from meta_opt.tasks.style_models import Goal, LowRank, adapt, build_model
from meta_opt.tasks.style_nets import Body, build_encoder
from meta_opt.tasks.styles import (
    INITIALIZERS,
    Style,
    conv,
    dense,
    each_block,
    in_blocks,
    init_conv,
    init_dense,
)
from meta_opt.tasks.task import count_of, rows_of

# One of each kind of model and of adaptation; the others are compiled in slow tests.
QUICK = {
    "style_wine_mlp",
    "style_diabetes_residual",
    "style_digits_gru",
    "style_glyphs_conv",
    "style_glyphs_vit_lora",
    "style_photos_denoise",
    "style_cldr_bag",
    "style_cldr_recurrence",
    "style_descriptions_llama",
    "style_emoji_pairs_lora",
}


def built(family):
    try:
        return make_task(family)
    except MissingDataError as error:
        assert "make data" in str(error)
        pytest.skip(f"{family} needs data that are not prepared")


def test_all_names_are_registered_for_meta_training():
    assert set(STYLE_TRAIN) <= set(FAMILIES)
    assert all(name.startswith("style_") for name in STYLE_TRAIN)
    for name in (*STYLE_TRAIN, *STYLE_DATASETS):
        assert SPLIT_OF_DATASET[name] == "train"
    adapted = [f.adaptation for f in STYLE_FAMILIES.values() if f.adaptation]
    assert len(adapted) >= 9
    assert sum(how.low_rank is not None for how in adapted) >= 5


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in STYLE_TRAIN
    ],
)
def test_family_starts_as_expected_and_trains(family):
    task, config = built(family), STYLE_FAMILIES[family]
    assert (task.name, SPLIT_OF_DATASET[task.dataset]) == (family, "train")
    size = count_of(task.splits.train)
    assert size > 0 and all(count_of(part) > 0 for part in task.splits)
    params = task.init(jax.random.key(0))
    loss, error = jax.jit(task.loss)(params, task.splits.validation)
    assert jnp.isfinite(loss) and 0 <= error <= 1
    if config.goal.kind == "classify" and config.style.gain == 1:
        classes = int(task.splits.train["label"].max()) + 1
        # Random features of some size add to the loss of a uniform guess.
        chance = config.goal.scale * math.log(classes)
        assert 0.9 * chance < loss < 2.5 * chance

    @jax.jit
    def train(params):
        tx = optax.adamw(3e-3)
        batch = rows_of(task.splits.train, jnp.arange(task.batch_size) % size)

        def step(i, carry):
            params, state, losses = carry
            grad = jax.value_and_grad(task.loss_on_batch, has_aux=True)
            (value, _), grads = grad(params, batch, jax.random.fold_in(key, i))
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return params, state, losses.at[i].set(value)

        key = jax.random.key(1)
        start = (params, tx.init(params), jnp.zeros(30))
        return jax.lax.fori_loop(0, 30, step, start)[2]

    losses = train(params)
    assert jnp.all(jnp.isfinite(losses))
    assert jnp.mean(losses[-5:]) < jnp.mean(losses[:3])


@pytest.mark.parametrize("family", ["style_wine_mlp", "style_glyphs_vit_lora"])
def test_family_is_deterministic_and_its_parts_share_no_example(family):
    one, two = make_task(family), make_task(family)
    jax.tree.map(np.testing.assert_array_equal, one.splits, two.splits)
    params = [task.init(jax.random.key(3)) for task in (one, two)]
    assert jax.tree.all(jax.tree.map(jnp.array_equal, *params))
    field = STYLE_FAMILIES[family].body.field
    rows = [{x.tobytes() for x in np.asarray(part[field])} for part in one.splits]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]


def transposed(tree):
    swap = {2: (1, 0), 4: (3, 2, 0, 1)}
    return jax.tree.map(lambda x: x.transpose(swap.get(x.ndim, range(x.ndim))), tree)


BODIES = {
    "mlp": Body("mlp", widths=(6, 8), residual=True),
    "conv": Body("conv", widths=(4, 8), residual=True),
    "transformer": Body("transformer", widths=(8, 8)),
    "mixer": Body("mixer", widths=(8,)),
    "gru": Body("recurrent", widths=(8, 8), cell="gru"),
    "lstm": Body("recurrent", widths=(8,), cell="lstm"),
    "linear": Body("recurrent", widths=(8,), cell="linear"),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_layouts_are_transposes_of_each_other(body):
    plain = Style(positions="none", embedding_std=0.1)
    other = dataclasses.replace(plain, out_in=True)
    arrays = {"image": jax.random.normal(jax.random.key(0), (3, 8, 8, 2))}
    one, two = (build_encoder(style, body, arrays) for style in (plain, other))
    params = one.init(jax.random.key(1))
    own = two.init(jax.random.key(1))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, transposed(params), own))
    np.testing.assert_allclose(
        one.pool(one.tokens(params, arrays, None), arrays),
        two.pool(two.tokens(own, arrays, None), arrays),
        atol=1e-5,
    )


def test_kernels_are_stored_as_the_style_says():
    key = jax.random.key(0)
    plain, other = Style(), Style(out_in=True, leaves=("weight", "bias"))
    assert init_dense(key, plain, 3, 5)["w"].shape == (3, 5)
    assert init_dense(key, other, 3, 5)["weight"].shape == (5, 3)
    assert init_conv(key, plain, 3, 5)["w"].shape == (3, 3, 3, 5)
    assert init_conv(key, other, 3, 5)["weight"].shape == (5, 3, 3, 3)
    assert isinstance(init_dense(key, Style(leaves=None), 3, 5), tuple)
    assert set(init_dense(key, Style(bias=False), 3, 5)) == {"w"}
    x = jax.random.normal(key, (2, 6, 6, 3))
    kernel = init_conv(key, other, 3, 5)
    expected = jax.lax.conv_general_dilated(
        x,
        kernel["weight"],
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
    )
    np.testing.assert_allclose(conv(other, kernel, x, 2), expected, atol=1e-5)


@pytest.mark.parametrize("container", ["dict", "list", "tuple"])
def test_blocks_keep_their_order_in_any_container(container):
    assert each_block(in_blocks(Style(blocks=container), [3, 1, 2])) == [3, 1, 2]


@pytest.mark.parametrize(
    ("init", "deviation"),
    [
        ("lecun_normal", 0.05),
        ("lecun_uniform", 0.05),
        ("he_normal", 0.05 * 2**0.5),
        ("xavier_uniform", (2 / 1000) ** 0.5),
        ("torch", 0.05 / 3**0.5),
        ("normal_02", 0.02),
        ("orthogonal", 0.0408),
    ],
)
def test_initialisers_have_their_deviation(init, deviation):
    style = Style(init)
    params = init_dense(jax.random.key(0), style, 400, 600)
    assert jnp.std(params["w"]) == pytest.approx(deviation, rel=0.02)
    assert bool(jnp.any(params["b"] != 0)) == (init == "torch")
    assert dense(style, params, jnp.ones((2, 400))).shape == (2, 600)
    assert set(INITIALIZERS) >= {init}


def images_and_labels(classes):
    key = jax.random.key(0)
    image = jax.random.normal(key, (12, 8, 8, 1))
    return {"image": image, "label": jnp.arange(12) % classes}


@pytest.mark.parametrize("out_in", [False, True])
@pytest.mark.parametrize("factors_transposed", [False, True])
def test_lora_is_the_identity_at_the_start_and_trains_only_factors(
    out_in, factors_transposed
):
    style = Style(out_in=out_in, fused_qkv=True, blocks="list")
    arrays = images_and_labels(3)
    body = Body("transformer", widths=(8, 8))
    model = build_model(style, body, Goal(), 3, arrays)
    start = model.init(jax.random.key(0))
    low_rank = LowRank(r"\.(qkv|up)\.w$", 2, transposed=factors_transposed)
    adapted = adapt(model, start, style, "^$", low_rank=low_rank)
    params = adapted.init(jax.random.key(1))
    np.testing.assert_allclose(
        adapted.loss(params, arrays)[0], model.loss(start, arrays)[0], rtol=1e-6
    )
    blocks = params["body"]["h"]
    assert len(jax.tree.leaves(params)) == 8
    a, b = (blocks[0]["qkv"]["w"][name] for name in "AB")
    swap = (lambda x: x.T) if factors_transposed else (lambda x: x)
    assert (swap(a).shape, swap(b).shape) == ((8, 2), (2, 24))
    # Off the start, it is the model with W + alpha / rank A B.
    blocks[0]["qkv"]["w"]["B"] = jnp.ones_like(b)
    delta = 4.0 * swap(a) @ jnp.ones((2, 24))
    whole = jax.tree.map(lambda x: x, start)
    whole["body"]["h"][0]["qkv"]["w"] += delta.T if out_in else delta
    np.testing.assert_allclose(
        adapted.loss(params, arrays)[0], model.loss(whole, arrays)[0], rtol=1e-5
    )


def test_adaptation_trains_what_its_pattern_names_and_a_new_head():
    style, body = Style(parts=("net", "fc")), Body("conv", widths=(4, 8))
    start = build_model(style, body, Goal(), 5, images_and_labels(5)).init(
        jax.random.key(0)
    )
    model = build_model(style, body, Goal(), 3, images_and_labels(3))
    params = adapt(model, start, style, r"^net\.1").init(jax.random.key(1))
    assert params["net"]["1"]["c"]["w"] is start["net"]["1"]["c"]["w"]
    assert not jax.tree.leaves(params["net"]["0"])
    assert params["fc"]["w"].shape == (8, 3)


def test_training_loss_of_smoothing_and_mixup():
    arrays = images_and_labels(3)
    body = Body("mlp", widths=(8,))
    plain, smooth, mixed = (
        build_model(Style(), body, goal, 3, arrays)
        for goal in (Goal(), Goal(smoothing=0.3), Goal(mixup=True))
    )
    params, key = plain.init(jax.random.key(0)), jax.random.key(2)
    assert plain.train_loss is None
    clean = plain.loss(params, arrays)[0]
    assert smooth.loss(params, arrays)[0] == clean
    classes = [{**arrays, "label": jnp.full(12, k)} for k in range(3)]
    spread = sum(plain.loss(params, a)[0] for a in classes) / 3
    np.testing.assert_allclose(
        smooth.train_loss(params, arrays, key)[0],
        0.7 * clean + 0.3 * spread,
        rtol=1e-5,
    )
    assert mixed.train_loss(params, arrays, key)[0] != clean


def test_error_of_regression_is_a_share_of_the_variance():
    target = jnp.arange(12.0)[:, None]
    arrays = {**images_and_labels(3), "target": target}
    goal, style = Goal("regress", "target", scale=10.0), Style(zero_head=True)
    model = build_model(style, Body("mlp", widths=(8,)), goal, 1, arrays)
    params = model.init(jax.random.key(0))
    params["head"]["b"] = jnp.array([5.5])
    loss, error = model.loss(params, arrays)
    np.testing.assert_allclose(loss, 10 * jnp.var(target), rtol=1e-5)
    np.testing.assert_allclose(error, 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        Body("transformer", "text", (8, 8), causal=True),
        Body("recurrent", "text", (8,), cell="linear"),
    ],
    ids=["transformer", "recurrent"],
)
def test_language_models_see_only_what_came_before(body):
    text = jnp.array([[3, 4, 5, 6, 7, 8]])
    encoder = build_encoder(Style(embedding_std=1.0), body, {"text": text})
    params = encoder.init(jax.random.key(0))
    one = encoder.tokens(params, {"text": text}, None)
    two = encoder.tokens(params, {"text": text.at[0, 4].set(30)}, None)
    np.testing.assert_allclose(one[:, :4], two[:, :4], atol=1e-6)
    assert not np.allclose(one[:, 4:], two[:, 4:])


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="did you mean 'layer'"):
        Style(norm="layers")
    with pytest.raises(ValueError, match="kind="):
        Body("perceptron")
    text = {"text": jnp.ones((2, 4), jnp.int32)}
    with pytest.raises(ValueError, match="causal"):
        build_model(Style(), Body("transformer", "text"), Goal("language"), 0, text)
    with pytest.raises(ValueError, match="second encoder"):
        build_model(Style(), Body("bag", "text"), Goal("contrastive"), 8, text)
