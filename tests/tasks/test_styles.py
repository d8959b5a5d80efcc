"""Families in many styles: what a style says holds, and every family trains."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from prepared_tasks import built

from meta_opt.tasks import style_family
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
    "style_photos_denoise",
    "style_cldr_bag",
}


def test_all_names_are_registered_for_meta_training():
    assert set(STYLE_TRAIN) <= set(FAMILIES)
    assert all(name.startswith("style_") for name in STYLE_TRAIN)
    for name in ("style", *STYLE_DATASETS):
        assert SPLIT_OF_DATASET[name] == "train"
    adapted = [f.adaptation for f in STYLE_FAMILIES.values() if f.adaptation]
    assert len(adapted) >= 9
    assert sum(how.low_rank is not None for how in adapted) >= 5


@pytest.mark.parametrize(
    "family",
    [
        # Pre-training and pictures of prepared data take seconds.
        pytest.param(name, marks=pytest.mark.slow)
        if name.startswith(("style_emoji", "style_klettres"))
        else name
        for name in STYLE_TRAIN
    ],
)
def test_family_can_be_differentiated_and_its_optimizer_initialised(
    family, monkeypatch
):
    # Shapes alone: nothing is pre-trained or compiled.
    def start(config, data, optimizer, steps, data_dir):
        arrays = style_family.DATA[data](data_dir)
        model = style_family._from_scratch(config, arrays, config.goal)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    monkeypatch.setattr(style_family, "_pretrained_params", start)
    task = built(family)
    assert (task.name, SPLIT_OF_DATASET[task.dataset]) == (family, "train")
    assert all(count_of(part) > 0 for part in task.splits)

    def step(key):
        params = task.init(key)
        batch = jax.tree.map(lambda x: x[: task.batch_size], task.splits.train)
        grad = jax.value_and_grad(task.loss_on_batch, has_aux=True)
        result, grads = grad(params, batch, key)
        state = optax.adamw(1e-3).init(params)
        return result, task.loss(params, task.splits.validation), params, grads, state

    train, clean, params, grads, _ = jax.eval_shape(step, jax.random.key(0))
    assert all(x.shape == () for x in (*train, *clean))
    assert 700 <= sum(x.size for x in jax.tree.leaves(params)) <= 200_000
    assert jax.tree.structure(params) == jax.tree.structure(grads)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in STYLE_TRAIN
    ],
)
def test_family_starts_as_expected_and_trains(family):
    task, config = built(family), STYLE_FAMILIES[family]
    size = count_of(task.splits.train)
    params = jax.jit(task.init)(jax.random.key(0))
    loss, error = jax.jit(task.loss)(params, task.splits.validation)
    assert np.isfinite(loss) and 0 <= error <= 1
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

    losses = np.asarray(train(params))
    assert np.isfinite(losses).all()
    assert losses[-5:].mean() < losses[:3].mean()


@pytest.mark.parametrize(
    "family",
    ["style_wine_mlp", pytest.param("style_glyphs_head", marks=pytest.mark.slow)],
)
def test_family_is_deterministic_and_its_parts_share_no_example(family):
    one, two = make_task(family), make_task(family)
    jax.tree.map(np.testing.assert_array_equal, one.splits, two.splits)
    params = [jax.jit(task.init)(jax.random.key(3)) for task in (one, two)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    rows = [{x.tobytes() for x in np.asarray(part["feature"])} for part in one.splits]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]


def transposed(tree):
    swap = {2: (1, 0), 4: (3, 2, 0, 1)}

    def stored_otherwise(x):
        return np.asarray(x).transpose(swap.get(x.ndim, range(x.ndim)))

    return jax.tree.map(stored_otherwise, tree)


BODIES = {
    "mlp": Body("mlp", widths=(6, 8), residual=True),
    "conv": Body("conv", widths=(4, 8), residual=True),
    "transformer": Body("transformer", widths=(8, 8)),
    "mixer": Body("mixer", widths=(8,)),
    "gru": Body("recurrent", widths=(8, 8), cell="gru"),
    "lstm": Body("recurrent", widths=(8,), cell="lstm"),
    "linear": Body("recurrent", widths=(8,), cell="linear"),
}


@pytest.mark.parametrize(
    "body",
    [
        BODIES[name]
        if name in ("transformer", "conv", "gru")
        else pytest.param(BODIES[name], marks=pytest.mark.slow)
        for name in BODIES
    ],
    ids=BODIES,
)
def test_layouts_are_transposes_of_each_other(body):
    plain = Style(positions="none", embedding_std=0.1)
    other = dataclasses.replace(plain, out_in=True)
    arrays = {"image": np.random.default_rng(0).normal(size=(3, 8, 8, 2)).astype("f")}
    one, two = (build_encoder(style, body, arrays) for style in (plain, other))
    params = jax.jit(one.init)(jax.random.key(1))
    own = jax.jit(two.init)(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, transposed(params), own)
    outputs = [
        jax.jit(lambda p, net=net: net.pool(net.tokens(p, arrays, None), arrays))(p)
        for net, p in ((one, params), (two, own))
    ]
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_kernels_are_stored_as_the_style_says():
    key = jax.random.key(0)
    plain, other = Style(), Style(out_in=True, leaves=("weight", "bias"))

    def shapes(init, style):
        return jax.eval_shape(lambda key: init(key, style, 3, 5), key)

    assert shapes(init_dense, plain)["w"].shape == (3, 5)
    assert shapes(init_dense, other)["weight"].shape == (5, 3)
    assert shapes(init_conv, plain)["w"].shape == (3, 3, 3, 5)
    assert shapes(init_conv, other)["weight"].shape == (5, 3, 3, 3)
    assert isinstance(shapes(init_dense, Style(leaves=None)), tuple)
    assert set(shapes(init_dense, Style(bias=False))) == {"w"}
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
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
        ("lecun_normal", 0.1),
        ("lecun_uniform", 0.1),
        ("he_normal", 0.1 * 2**0.5),
        ("xavier_uniform", (2 / 250) ** 0.5),
        ("torch", 0.1 / 3**0.5),
        ("normal_02", 0.02),
        ("orthogonal", 150**-0.5),
    ],
)
def test_initialisers_have_their_deviation(init, deviation):
    style = Style(init)
    params = init_dense(jax.random.key(0), style, 100, 150)
    assert jnp.std(params["w"]) == pytest.approx(deviation, rel=0.02)
    assert bool(jnp.any(params["b"] != 0)) == (init == "torch")
    assert dense(style, params, jnp.ones((2, 100))).shape == (2, 150)
    assert set(INITIALIZERS) >= {init}


def images_and_labels(classes):
    image = np.random.default_rng(0).normal(size=(12, 8, 8, 1)).astype(np.float32)
    return {"image": image, "label": np.arange(12) % classes}


@pytest.mark.parametrize(
    ("out_in", "factors_transposed"), [(False, False), (True, True), (True, False)]
)
def test_lora_is_the_identity_at_the_start_and_trains_only_factors(
    out_in, factors_transposed
):
    style = Style(out_in=out_in, fused_qkv=True, blocks="list")
    arrays = images_and_labels(3)
    body = Body("transformer", widths=(8, 8))
    model = build_model(style, body, Goal(), 3, arrays)
    start = jax.jit(model.init)(jax.random.key(0))
    low_rank = LowRank(r"\.(qkv|up)\.w$", 2, transposed=factors_transposed)
    adapted = adapt(model, start, style, "^$", low_rank=low_rank)
    params = jax.jit(adapted.init)(jax.random.key(1))
    loss, own_loss = jax.jit(model.loss), jax.jit(adapted.loss)
    np.testing.assert_allclose(
        own_loss(params, arrays)[0], loss(start, arrays)[0], rtol=1e-6
    )
    blocks = params["body"]["h"]
    assert len(jax.tree.leaves(params)) == 8
    a, b = (np.asarray(blocks[0]["qkv"]["w"][name]) for name in "AB")
    a_in_out = a.T if factors_transposed else a
    assert a_in_out.shape == (8, 2)
    assert b.shape == ((24, 2) if factors_transposed else (2, 24))
    # Off the start, it is the model with W + alpha / rank A B.
    blocks[0]["qkv"]["w"]["B"] = np.ones_like(b)
    delta = 4.0 * a_in_out @ np.ones((2, 24), np.float32)
    start["body"]["h"][0]["qkv"]["w"] += delta.T if out_in else delta
    np.testing.assert_allclose(
        own_loss(params, arrays)[0], loss(start, arrays)[0], rtol=1e-5
    )


def test_adaptation_trains_what_its_pattern_names_and_a_new_head():
    style, body = Style(parts=("net", "fc")), Body("conv", widths=(4, 8))
    before = build_model(style, body, Goal(), 5, images_and_labels(5))
    start = jax.jit(before.init)(jax.random.key(0))
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
    params, key = jax.jit(plain.init)(jax.random.key(0)), jax.random.key(2)
    assert plain.train_loss is None
    loss = jax.jit(plain.loss)
    clean = loss(params, arrays)[0]
    assert jax.jit(smooth.loss)(params, arrays)[0] == clean
    classes = [{**arrays, "label": np.full(12, k)} for k in range(3)]
    spread = sum(loss(params, a)[0] for a in classes) / 3
    np.testing.assert_allclose(
        jax.jit(smooth.train_loss)(params, arrays, key)[0],
        0.7 * clean + 0.3 * spread,
        rtol=1e-5,
    )
    assert jax.jit(mixed.train_loss)(params, arrays, key)[0] != clean


def test_error_of_regression_is_a_share_of_the_variance():
    target = jnp.arange(12.0)[:, None]
    arrays = {**images_and_labels(3), "target": target}
    goal, style = Goal("regress", "target", scale=10.0), Style(zero_head=True)
    model = build_model(style, Body("mlp", widths=(8,)), goal, 1, arrays)
    params = jax.jit(model.init)(jax.random.key(0))
    params["head"]["b"] = jnp.array([5.5])
    loss, error = jax.jit(model.loss)(params, arrays)
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
    params = jax.jit(encoder.init)(jax.random.key(0))
    tokens = jax.jit(lambda text: encoder.tokens(params, {"text": text}, None))
    one, two = tokens(text), tokens(text.at[0, 4].set(30))
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
