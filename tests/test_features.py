"""What the controller sees: descriptions of tensors, statistics, progress."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from meta_opt.features.progress import (
    PROGRESS_FEATURES,
    init_progress,
    progress_features,
    update_progress,
)
from meta_opt.features.statistics import (
    GROUP_FEATURES,
    MODEL_FEATURES,
    TENSOR_FEATURES,
    Statistics,
    grad_rms,
    group_features,
    tensor_features,
    unit_table,
)
from meta_opt.features.tensors import (
    GROUPS,
    ROLES,
    STATIC_FEATURES,
    balanced_split,
    describe,
    path_name,
    static_features,
)


def describe_one(path, shape, **settings):
    """The description of one leaf at a '/'-joined path."""
    tree = jax.ShapeDtypeStruct(shape, jnp.float32)
    for name in reversed(path.split("/")):
        tree = {name: tree}
    (info,) = describe(tree, **settings)
    return info


# Descriptions


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 64), min_size=2, max_size=5))
def test_balanced_split_is_the_most_square(shape):
    def ratio(k):
        rows, columns = math.prod(shape[:k]), math.prod(shape[k:])
        return max(rows, columns) / min(rows, columns)

    split = balanced_split(shape)
    assert 1 <= split < len(shape)
    assert ratio(split) <= min(ratio(k) for k in range(1, len(shape))) * (1 + 1e-9)


@pytest.mark.parametrize(
    "path, shape, role, is_matrix",
    [
        ("encoder/dense/kernel", (4, 8), "matrix", True),
        ("encoder/attention/query/kernel", (8, 2, 4), "matrix", True),
        ("patch_embed/kernel", (4, 4, 3, 8), "matrix", True),
        ("tokens/embedding", (16, 8), "embedding", False),
        ("transformer/wte/weight", (16, 8), "embedding", False),
        ("vision/pos_embedding", (1, 16, 8), "embedding", False),
        ("embedder/kernel", (16, 8), "matrix", True),
        ("norm/scale", (8,), "norm", False),
        ("ln_1/weight", (8,), "norm", False),
        ("layer_norm/bias", (8,), "bias", False),
        ("dense/bias", (8,), "bias", False),
        ("temperature", (), "bias", False),
        ("dense/lora_A", (8, 2), "lora_a", True),
        ("dense/lora_b/kernel", (2, 8), "lora_b", True),
    ],
)
def test_roles(path, shape, role, is_matrix):
    info = describe_one(path, shape)
    assert (info.path, info.role, info.is_matrix) == (path, role, is_matrix)
    assert info.role in ROLES


@pytest.mark.parametrize(
    "path, group",
    [
        ("vision/dense/kernel", "vision"),
        ("text_tower/dense/kernel", "text"),
        ("audio_encoder/kernel", "audio"),
        ("video/temporal/kernel", "video"),
        ("text/cross_attention/kernel", "fusion"),
        ("classifier/kernel", "head"),
        ("dense/kernel", "other"),
    ],
)
def test_modality_groups(path, group):
    assert describe_one(path, (2, 2)).group == group
    first = ((".", "audio"), ("vision", "head"))
    assert describe_one(path, (2, 2), groups=first[:1]).group == "audio"
    assert group in GROUPS


def test_layers_and_depth():
    apart = {f"block_{i}": {"kernel": jnp.ones((2, 3))} for i in range(3)}
    assert [i.depths for i in describe(apart)] == [(0.0,), (0.5,), (1.0,)]
    listed = {"blocks": [jnp.ones(2), jnp.ones(2)], "last": jnp.ones(2)}
    assert [i.depths for i in describe(listed)] == [(0.0,), (1.0,), (0.5,)]
    stacked = describe({"blocks": {"kernel": jnp.ones((3, 2, 4))}}, stacked="blocks")
    assert stacked[0].shape == (2, 4) and stacked[0].layers == 3
    assert stacked[0].depths == (0.0, 0.5, 1.0) and stacked[0].units == 3
    assert (stacked[0].rows, stacked[0].columns) == (2, 4)
    for shape in ((0, 2), (3, 0)):
        assert describe_one("blocks/kernel", shape, stacked="blocks").units == 0
    assert describe_one("empty", (0, 3)).units == 0
    # The same statistics stacked and apart but for what says where a layer is.
    rows = np.concatenate([static_features(i) for i in describe(apart)])
    np.testing.assert_array_equal(
        rows,
        static_features(
            describe_one("block/kernel", (3, 2, 3), stacked="block/kernel")
        ),
    )


def test_paths_of_flax_nnx_are_those_of_dicts():
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    assert [i.path for i in describe(state)] == ["bias", "kernel"]
    assert [i.path for i in describe({"a": [jnp.ones(1)]})] == ["a/0"]
    assert path_name(()) == ""


def test_a_pattern_that_finds_nothing_lists_paths():
    params = {f"w{i}": jnp.ones(1) for i in range(12)}
    with pytest.raises(ValueError, match=r"'nope' matches no .* w0, .*, \.\.\.$"):
        describe(params, stacked="nope")
    assert describe({}, stacked="nope") == ()


def test_static_features_are_of_moderate_size():
    for path, shape in [("a/kernel", (4096, 4096)), ("b", ()), ("embedding", (9, 2))]:
        found = static_features(describe_one(path, shape))
        assert found.shape == (1, len(STATIC_FEATURES)) and found.dtype == np.float32
        assert np.all(np.abs(found) < 2)
    different = static_features(describe_one("vision/kernel", (3, 5)))
    assert np.any(different != static_features(describe_one("text/kernel", (3, 5))))


# Statistics


@functools.cache
def table():
    params = {
        "vision": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
        "text": {"kernel": jnp.ones((2, 3, 4))},
    }
    return unit_table(list(describe(params, stacked="text")))


def statistics(scale=1.0, noise=0.0):
    size = jnp.asarray(table().size)
    square = size * jnp.arange(1.0, 5.0)
    return Statistics(
        grad_square=square * scale**2,
        momentum_square=0.25 * square * scale**2,
        param_square=size * 0.01,
        grad_momentum=0.5 * (0.5 - noise) * square * scale**2,
    )


def test_tensor_features():
    past = jnp.log(jnp.arange(1.0, 5.0))
    found = tensor_features(statistics(), table(), past, past + 2.0)
    assert found.shape == (4, len(TENSOR_FEATURES)) and found.dtype == jnp.float32
    assert np.isfinite(found).all()
    names = dict(zip(("overall", "momentum", "param", "past"), found.T, strict=False))
    # Halved log ratios: to the whole gradient, to the gradient, to itself before.
    share = np.arange(1, 5) / float(np.square(grad_rms(statistics(), table())))
    np.testing.assert_allclose(names["overall"], 0.25 * np.log(share), rtol=1e-5)
    np.testing.assert_allclose(names["momentum"], 0.25 * np.log(0.25), rtol=1e-5)
    np.testing.assert_allclose(names["past"], 0.0, atol=1e-6)
    np.testing.assert_allclose(found[:, 4], -0.5, rtol=1e-5)  # below its peak
    np.testing.assert_allclose(found[:, 5], 0.5, rtol=1e-6)  # cosine


@pytest.mark.parametrize(("width", "large"), [(30, 0.0), (2000, 1.0)])
def test_size_of_parameters_in_large_models(width, large):
    matrix = jnp.zeros((width, width))
    names = ("new", "half", "zero", "bias", "lora_a")
    leaves = {**dict.fromkeys(names, matrix), "bias": jnp.zeros(width)}
    infos = list(describe({"body": {"kernel": leaves}}))
    units = unit_table(infos)
    order = [info.path.rsplit("/", 1)[-1] for info in infos]
    rms = {"new": 0.088, "half": 0.044, "zero": 0.0, "bias": 0.044, "lora_a": 0.044}
    square = jnp.asarray(units.size) * jnp.square(jnp.array([rms[n] for n in order]))
    same = jnp.zeros(len(infos))
    stats = Statistics(same, same, square, same)
    features = tensor_features(stats, units, same, same)
    found = features[:, TENSOR_FEATURES.index("large_parameter")]
    expected = {"new": 0.0, "half": np.log(0.5), "zero": -1.5, "bias": 0, "lora_a": 0}
    np.testing.assert_allclose(found, [large * expected[n] for n in order], atol=1e-3)
    adapters = features[:, TENSOR_FEATURES.index("large_role_lora")]
    np.testing.assert_array_equal(adapters, [large * (n == "lora_a") for n in order])


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_statistics_do_not_depend_on_the_scale_of_the_loss(scale):
    past = jnp.zeros(4)
    expected = tensor_features(statistics(), table(), past, past)
    scaled = past + 2 * jnp.log(jnp.float32(scale))
    found = tensor_features(statistics(scale), table(), scaled, scaled)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        group_features(statistics(scale), table()),
        group_features(statistics(), table()),
        rtol=1e-4,
    )


def test_degenerate_statistics_are_finite():
    zero = jnp.zeros(4)
    huge = jnp.full(4, 1e18)
    for x in (zero, huge):
        stats = Statistics(x, x, x, x)
        assert np.isfinite(tensor_features(stats, table(), zero, zero)).all()
        assert np.isfinite(group_features(stats, table())).all()
    empty = unit_table([])
    none = jnp.zeros(0)
    stats = Statistics(none, none, none, none)
    assert tensor_features(stats, empty, none, none).shape == (0, len(TENSOR_FEATURES))
    assert np.isfinite(group_features(stats, empty)).all()


def test_group_features():
    found = group_features(statistics(), table())
    assert found.shape == (len(GROUP_FEATURES),)
    share, alignment = np.split(np.asarray(found), 2)
    present = [GROUPS.index("vision"), GROUPS.index("text")]
    np.testing.assert_allclose(alignment[present], 0.5, rtol=1e-6)
    absent = [i for i in range(len(GROUPS)) if i not in present]
    assert not share[absent].any() and not alignment[absent].any()
    total = np.exp(share[present] / 0.2)
    np.testing.assert_allclose(total.sum(), 1.0, rtol=1e-5)


def test_model_features_tell_a_probe_from_a_deep_model_and_adapters():
    def features(params):
        found = unit_table(list(describe(params))).model
        return dict(zip(MODEL_FEATURES, found.tolist(), strict=True))

    layer = {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}
    probe = features({"head": layer})
    deep = features({"head": layer, "body": {str(i): layer for i in range(8)}})
    adapters = features({"a": {"lora_a": jnp.ones((8, 2)), "lora_b": jnp.ones((2, 8))}})
    assert probe["constant"] == deep["constant"] == 1.0
    assert probe["model_matrices"] == pytest.approx(np.log10(2.0))
    assert deep["model_matrices"] == pytest.approx(1.0)  # nine and one
    assert deep["model_size"] > probe["model_size"]
    assert probe["model_matrix"] == pytest.approx(32 / 36)
    assert adapters["model_lora_a"] == adapters["model_lora_b"] == 0.5
    scale = {"logit_scale": jnp.ones(())}
    towers = {"vision": layer, "text": layer, **scale}
    assert features(towers)["two_towers"] == 1.0
    for other in (
        {"vision": layer, **scale},
        {**towers, "head": layer},
        {**towers, "fusion": layer},
    ):
        assert features(other)["two_towers"] == 0.0


# Progress

UPDATE = jax.jit(lambda s, t, v, f: update_progress(s, t, 100, v, f))
FEATURES = jax.jit(lambda s, t: progress_features(s, t, 100))
NAN = jnp.float32(jnp.nan)


def seen(values, feedback=()):
    state = init_progress()
    given = dict(feedback)
    for t, value in enumerate(values):
        state = UPDATE(state, t, jnp.float32(value), jnp.float32(given.get(t, NAN)))
    return state


def test_unknown_losses_read_zero():
    start = init_progress()
    found = FEATURES(start, 0)
    assert found.shape == (len(PROGRESS_FEATURES),) and np.isfinite(found).all()
    assert not np.any(found[11:])
    for value, feedback in ((None, None), (NAN, NAN), (NAN, None), (None, jnp.inf)):
        state = update_progress(start, 3, 100, value, feedback)
        for a, b in zip(state, start, strict=True):
            np.testing.assert_array_equal(a, b)
    # One broken loss among good ones changes nothing.
    state = seen([2.0, 1.0])
    for bad in (NAN, jnp.float32(jnp.inf)):
        after = UPDATE(state, 2, bad, bad)
        for a, b in zip(after, state, strict=True):
            np.testing.assert_array_equal(a, b)


def test_progress_features_do_not_depend_on_the_scale_of_the_loss():
    values = 1.0 + np.exp(-np.arange(30) / 10) + 0.01 * np.cos(np.arange(30))
    feedback = {10: 1.8, 20: 1.5}
    expected = FEATURES(seen(values, feedback), 30)
    assert np.all(np.abs(expected) <= 2)
    assert np.any(expected[11:14] != 0)
    assert expected[PROGRESS_FEATURES.index("feedback_known")] == 1
    for scale in (1e6, 1e-6):
        scaled = {t: scale * v for t, v in feedback.items()}
        found = FEATURES(seen(scale * values, scaled), 30)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_low_loss_is_flat_until_a_tenth_is_left():
    place = PROGRESS_FEATURES.index("loss_low")
    share = np.array([1.0, 0.5, 0.1, 0.01, 0.001])
    found = [FEATURES(seen([4.0] + [4.0 * s] * 200), 200)[place] for s in share]
    np.testing.assert_allclose(found, -0.2 * np.log1p(0.1 / share), rtol=1e-3)


def test_feedback_is_remembered():
    state = seen([2.0] * 8, {2: 3.0, 5: 2.5})
    assert float(state.gap) == pytest.approx(0.5, rel=1e-5)
    assert float(state.best_feedback) == 2.5
    assert float(state.feedback_step) == 5
    state = UPDATE(state, 8, jnp.float32(2.0), jnp.float32(4.0))
    assert float(state.best_feedback) == 2.5 and float(state.last_feedback) == 4.0
    # A constant loss: every average is that loss from the first step on.
    np.testing.assert_allclose(state.averages / state.weights, 2.0, rtol=1e-5)
    assert float(state.deviation) == pytest.approx(0.0, abs=1e-6)


def test_epochs_and_passes_so_far():
    start = init_progress()
    place = PROGRESS_FEATURES.index("passes")

    def repeats(step, epochs):
        return progress_features(start, step, 100, epochs)[place : place + 3]

    for step, passes in ((0, 0.0), (25, 3.0), (100, 12.0), (150, 12.0)):
        expected = [0.5 * np.log1p(passes), 0.5 * np.log1p(12.0), 1.0]
        np.testing.assert_allclose(repeats(step, 12.0), expected, rtol=1e-6)
    for unknown in (None, NAN, jnp.inf):
        assert not np.any(repeats(50, unknown))


def test_time_features_move_with_the_run():
    rows = [FEATURES(init_progress(), t)[:11] for t in (0, 50, 100)]
    assert np.all(np.diff(np.stack(rows), axis=0)[:, :10] > 0)


def test_size_beyond_that_of_small_tasks():
    def features(params):
        infos = list(describe(params))
        found = unit_table(infos)
        model = dict(zip(MODEL_FEATURES, found.model.tolist(), strict=True))
        wide = found.static[:, STATIC_FEATURES.index("wide")]
        return model["large"], dict(zip([i.path for i in infos], wide, strict=True))

    def matrix(rows, columns):
        return jax.ShapeDtypeStruct((rows, columns), jnp.float32)

    large, wide = features({"head": {"kernel": matrix(160, 160)}})
    assert large == 0 and wide["head/kernel"] == pytest.approx(0, abs=1e-6)
    large, wide = features({"head": {"kernel": matrix(400, 1600)}})
    assert large == pytest.approx(np.log10(6.4))
    assert wide["head/kernel"] == pytest.approx(np.log10(5.0))
    # It does not grow for ever, and two towers have a brake of their own.
    assert features({"head": {"kernel": matrix(30_000, 30_000)}})[0] == 1
    towers = {name: {"kernel": matrix(1600, 1600)} for name in ("text", "vision")}
    assert features(towers)[0] == 0
    assert features({**towers, "fusion": {"kernel": matrix(9, 9)}})[0] == 1


@pytest.mark.parametrize(("width", "expected"), [(30, 0.0), (2000, 1.0)])
def test_adapters_are_told_of_in_large_models_only(width, expected):
    def adapted(**leaves):
        infos = list(
            describe({"head": {"kernel": jnp.zeros((width, width)), **leaves}})
        )
        return unit_table(infos).model[MODEL_FEATURES.index("large_adapters")]

    assert adapted() == 0
    assert adapted(lora_a=jnp.zeros((width, 4))) == expected
