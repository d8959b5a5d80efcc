"""Task families: split by data set, disjoint parts, gradients, adaptation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from prepared_tasks import built

from meta_opt.tasks import nets, sources
from meta_opt.tasks.adaptation import finetuning, lora, pretrain
from meta_opt.tasks.families import (
    FAMILIES,
    SPLIT_OF_DATASET,
    STYLE_TRAIN,
    make_task,
)
from meta_opt.tasks.foreign import DEMO, FOREIGN, STYLE_VALIDATION
from meta_opt.tasks.models import (
    classifier,
    conv_tower,
    cross_entropy,
    language_model,
    mlp_tower,
)


def test_there_are_enough_families_and_each_part_has_some():
    assert len(FAMILIES) >= 20
    parts = {SPLIT_OF_DATASET[name.split("_")[0]] for name in FAMILIES}
    training = {"train", "validation", "style_validation"}
    assert parts == {*training, "test", "foreign", "demo"}


# One of each kind of model; the others are compiled in the slow tests.
QUICK = {"cancer_mlp", "cldr_writer"}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in sorted(
            set(FAMILIES) - {*STYLE_TRAIN, *STYLE_VALIDATION, *FOREIGN, *DEMO}
        )
    ],
)
def test_family_is_sound(family):
    task = built(family)
    assert task.name == family
    assert SPLIT_OF_DATASET[task.dataset] == SPLIT_OF_DATASET[family.split("_")[0]]
    params = jax.jit(task.init)(jax.random.key(0))
    batch = {k: v[: task.batch_size] for k, v in task.splits.train.items()}
    (loss, error), grads = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(
        params, batch
    )
    assert jnp.isfinite(loss) and 0 <= error <= 1
    # A LoRA A has no gradient before its B moves; all others have one.
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert np.any(np.asarray(g) != 0) != ("lora_a" in name), name


@pytest.mark.parametrize(
    "family", ["digits_mlp", "cancer_mlp", "clipart_conv", "glyphs_conv"]
)
def test_parts_of_a_task_share_no_example(family):
    field = "feature" if family == "cancer_mlp" else "image"
    rows = [
        {x.tobytes() for x in np.asarray(part[field])}
        for part in make_task(family).splits
    ]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]


def test_cross_entropy_has_the_error_as_value_and_the_expected_error_as_slope():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1])
    compiled = jax.jit(cross_entropy)
    loss, error = compiled(logits, labels)
    p = jax.nn.softmax(logits)[jnp.arange(5), labels]
    np.testing.assert_allclose(loss, -jnp.mean(jnp.log(p)), rtol=1e-6)
    np.testing.assert_allclose(error, jnp.mean(jnp.argmax(logits, 1) != labels))

    def expected(x):
        return jnp.mean(1 - jax.nn.softmax(x)[jnp.arange(5), labels])

    slope = jax.grad(lambda x: compiled(x, labels)[1])(logits)
    np.testing.assert_allclose(slope, jax.jit(jax.grad(expected))(logits), atol=1e-6)
    weights = np.array([1.0, 1.0, 0.0, 0.0, 0.0], np.float32)
    first = compiled(logits[:2], labels[:2])
    np.testing.assert_allclose(compiled(logits, labels, weights), first, 1e-6)


def test_convolution_by_patches_equals_lax_convolution():
    rng = np.random.default_rng(0)
    params = jax.eval_shape(
        lambda key: nets.init_convnet(key, 2, (4, 6)), jax.random.key(0)
    )
    x, kernel = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((3, 8, 8, 2), params["conv0"]["kernel"].shape)
    )
    expected = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = jax.jit(nets.conv3x3, static_argnums=2)(kernel, x, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_language_model_sees_only_what_came_before():
    model = language_model(11, 6, 8, 1)
    params = jax.jit(model.init)(jax.random.key(0))
    loss = jax.jit(lambda text: model.loss(params, {"text": text})[0])

    def first_letters(text):
        return loss(np.where(np.arange(6) < 3, text, 0))

    text, other = np.array([[3, 4, 5, 6, 0, 0]]), np.array([[3, 4, 5, 9, 0, 0]])
    assert first_letters(text) == first_letters(other)
    # Padding after the end does not count: a text's loss is that of letters and end.
    assert np.isfinite(loss(np.array([[3, 4, 0, 0, 0, 0]])))


def test_letters_are_the_same_for_upper_case_and_cut_to_length():
    assert (sources.letters(["Zebra 7"], 4) == sources.letters(["zebr"], 4)).all()
    assert sources.letters([""], 3).tolist() == [[0, 0, 0]]
    ids = sources.letters(["\u00e9\u4e2d z9"], 5)
    assert ids.min() > 0 and ids.max() < sources.LETTERS


@pytest.fixture(scope="module")
def started():
    model = classifier("mlp", mlp_tower("image", (64, 16)), 10)
    arrays = sources.digits()
    return model, arrays, pretrain(model, arrays, steps=300)


def test_pretraining_learns_and_is_deterministic(started):
    model, arrays, start = started
    data = {k: jnp.asarray(v) for k, v in arrays.items()}
    assert model.loss(start, data)[1] < 0.3
    again = pretrain(model, arrays, steps=300)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, start, again))


def test_finetuning_keeps_the_head_only_where_it_fits(started):
    model, _, start = started
    same = finetuning(model, start).init(jax.random.key(1))
    assert same["head"]["kernel"] is start["head"]["kernel"]
    other = classifier("mlp", mlp_tower("image", (64, 16)), 7)
    fresh = finetuning(other, start).init(jax.random.key(1))
    assert fresh["head"]["kernel"].shape == (16, 7)
    assert fresh["mlp"] is start["mlp"]


def test_lora_starts_at_the_pretrained_model_and_trains_only_factors(started):
    model, arrays, start = started
    data = {k: jnp.asarray(v[:50]) for k, v in arrays.items()}
    adapted = lora(model, start, rank=2)
    params = adapted.init(jax.random.key(0))
    np.testing.assert_allclose(
        adapted.loss(params, data)[0], model.loss(start, data)[0], rtol=1e-6
    )
    names = {jax.tree_util.keystr(p) for p, _ in _leaves(params["mlp"])}
    assert all("lora" in name for name in names)


def _leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


@pytest.mark.slow
def test_conv_classifier_learns_digits():
    arrays = sources.digits()
    model = classifier("vision", conv_tower("image", 1, (8, 16)), 10)
    params = pretrain(model, arrays, steps=300)
    data = {k: jnp.asarray(v) for k, v in arrays.items()}
    assert model.loss(params, data)[1] < 0.5
