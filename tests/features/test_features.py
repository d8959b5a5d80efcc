"""What the controller sees: descriptions of tensors, statistics, progress."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from meta_opt.features import statistics as statistics_of
from meta_opt.features.progress import (
    PROGRESS_FEATURES,
    current_loss,
    init_progress,
    progress_features,
    update_progress,
)
from meta_opt.features.statistics import (
    SUMMARY_FEATURES,
    TENSOR_FEATURES,
    History,
    Statistics,
    grad_rms,
    structure,
    summary_features,
    unit_table,
)
from meta_opt.features.tensors import (
    GROUPS,
    balanced_split,
    check_patterns,
    describe,
)
from meta_opt.optimizers.hand_designed import hand_designed
from meta_opt.tree_paths import path_name


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
    "shape, is_matrix",
    [
        ((4, 8), True),
        ((8, 2, 4), True),
        ((4, 4, 3, 8), True),
        ((1, 16, 8), True),
        ((8,), False),
        ((), False),
        # Class tokens and the like are vectors, whatever their rank.
        ((1, 8), False),
        ((8, 1), False),
        ((1, 1, 8), False),
    ],
)
def test_what_is_a_matrix_follows_from_its_shape(shape, is_matrix):
    for path in ("dense/kernel", "tokens/embedding", "norm/bias", "a/lora_B"):
        info = describe_one(path, shape)
        assert (info.path, info.is_matrix) == (path, is_matrix)
    longer = unit_table([info]).longer
    assert longer == (max(info.rows, info.columns) if is_matrix else 1)


@pytest.mark.parametrize(
    "shape, is_matrix",
    [
        ((4096, 128), False),
        ((64, 1024), False),
        ((1024, 256), True),
        ((1024, 32), True),
        # Kernels of convolutions, in the layouts of JAX and PyTorch.
        ((3, 3, 128, 128), True),
        ((512, 512, 3, 3), True),
        ((1, 1, 256, 2048), True),
    ],
)
def test_only_a_tensor_of_rank_two_is_a_vocabulary_table(shape, is_matrix):
    info = describe_one("k", shape)
    assert info.has_sides and info.is_matrix == is_matrix


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


def test_layers():
    apart = {f"block_{i}": {"kernel": jnp.ones((2, 3))} for i in range(3)}
    stacked = describe({"blocks": {"kernel": jnp.ones((3, 2, 4))}}, stacked="blocks")
    assert stacked[0].shape == (2, 4) and stacked[0].layers == 3
    assert stacked[0].units == 3
    assert (stacked[0].rows, stacked[0].columns) == (2, 4)
    for shape in ((0, 2), (3, 0)):
        assert describe_one("blocks/kernel", shape, stacked="blocks").units == 0
    assert describe_one("empty", (0, 3)).units == 0
    # The same constants stacked and apart.
    one = unit_table(list(describe(apart)))
    other = unit_table([describe_one("block/k", (3, 2, 3), stacked="block/k")])
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_paths_of_flax_nnx_are_those_of_dicts():
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    assert [i.path for i in describe(state)] == ["bias", "kernel"]
    assert [i.path for i in describe({"a": [jnp.ones(1)]})] == ["a/0"]
    dense = nn.Dense(2, kernel_init=nn.with_partitioning(nn.initializers.ones, (None,)))
    boxed = jax.eval_shape(dense.init, jax.random.key(0), jnp.ones((1, 3)))
    found = [i.path for i in describe(boxed["params"])]
    assert found == ["bias", "kernel"]
    attention = {"attention": {"key": jnp.ones(1), "value": jnp.ones(1)}}
    assert [i.path for i in describe(attention)] == ["attention/key", "attention/value"]
    assert path_name(()) == ""


def test_a_pattern_that_finds_nothing_lists_paths():
    params = {f"w{i}": jnp.ones(1) for i in range(12)}
    with pytest.raises(ValueError, match=r"'nope' matches no .* w0, .* and 4 more$"):
        check_patterns(params, "nope", ())
    check_patterns({}, "nope", ())


# Statistics


@functools.cache
def unit_constants():
    params = {
        "vision": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
        "text": {"kernel": jnp.ones((2, 3, 4))},
    }
    return unit_table(list(describe(params, stacked="text")))


def statistics(scale=1.0, table=None, grad_momentum=0.25):
    size = (table or unit_constants()).size
    square = size * np.arange(1.0, 1.0 + len(size), dtype=np.float32)
    return Statistics(
        grad_square=square * scale**2,
        momentum_square=0.25 * square * scale**2,
        param_square=size * 0.01,
        grad_momentum=grad_momentum * square * scale**2,
    )


def history(units=4, **fields):
    zero = {name: np.zeros(units, np.float32) for name in History._fields}
    return History(**{**zero, **fields})


def tensor_features(stats, table, past):
    """Those of the package, as one program: the table is constant."""
    return jax.jit(lambda s, h: statistics_of.tensor_features(s, table, h))(stats, past)


def named(stats, table, past):
    found = tensor_features(stats, table, past)
    assert found.shape == (len(table.size), len(TENSOR_FEATURES))
    assert found.dtype == jnp.float32 and np.isfinite(found).all()
    return dict(zip(TENSOR_FEATURES, np.asarray(found).T, strict=True))


def test_tensor_features():
    past = jnp.log(jnp.arange(1.0, 5.0))
    found = named(
        statistics(),
        unit_constants(),
        history(
            log_grad_sq_ema=past,
            log_grad_sq_max=past + 2.0,
            alignment_ema=jnp.array([0.1, 0.2, 0.3, 0.4]),
            path=jnp.full(4, 0.2),
            structure=jnp.array([0.0, 0.25, 0.5, 1.0]),
        ),
    )
    # Halved log ratios: to the whole gradient, to the gradient, to itself before.
    share = np.arange(1, 5) / float(np.square(grad_rms(statistics(), unit_constants())))
    np.testing.assert_allclose(found["gradient/all"], 0.25 * np.log(share), rtol=1e-5)
    np.testing.assert_allclose(found["momentum/gradient"], 0.25 * np.log(0.25))
    np.testing.assert_allclose(found["gradient/ema"], 0.0, atol=1e-6)
    np.testing.assert_allclose(found["ema/max"], -0.5, rtol=1e-5)
    np.testing.assert_allclose(found["alignment"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(found["alignment_ema"], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(found["structure"], [0.0, 0.25, 0.5, 1.0])
    # text has two layers of 3 x 4; vision a bias of 4 and a kernel of 3 x 4.
    matrix = np.array([1.0, 1.0, 0.0, 1.0])
    np.testing.assert_array_equal(found["matrix"], matrix)
    longer = np.where(matrix, 4.0, 1.0)
    np.testing.assert_allclose(found["size"], 0.25 * np.log(0.01 * longer), rtol=1e-5)
    np.testing.assert_allclose(found["near_zero"], 1 / (1 + 4 * longer), rtol=1e-5)
    np.testing.assert_allclose(found["moved"], 0.25 * np.log(2.0), rtol=1e-4)
    np.testing.assert_allclose(found["aspect"], matrix * np.log(4 / 3) / 4, rtol=1e-5)
    np.testing.assert_array_equal(found["thin"], 0.0)
    np.testing.assert_allclose(found["width"], matrix, rtol=1e-5)  # bounded


def shaped(*shapes):
    return unit_table([describe_one("k", shape) for shape in shapes])


def test_features_of_shapes():
    table = shaped((64, 64), (8, 64), (2, 64), (512, 512), (64,), (4096, 4096))
    found = named(statistics(table=table), table, history(6))
    np.testing.assert_allclose(
        found["aspect"], [0, np.log(8) / 4, np.log(32) / 4, 0, 0, 0], rtol=1e-5
    )
    np.testing.assert_allclose(found["thin"], [0, 0, 1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        found["width"], [0, 0, 0, -0.5 * np.log(8), 0, -1.8], atol=1e-6
    )


def summary(stats, table, past, loss=2.0, known=1.0):
    """At a loss of 2 and a step of RMS 2e-3."""

    @jax.jit
    def compute(stats, past, loss, known):
        return summary_features(stats, table, past, loss, known, step=2e-3)

    return compute(stats, past, np.float32(loss), np.float32(known))


def test_features_do_not_see_whether_a_kernel_is_transposed():
    for shape in ((4, 64), (3, 5), (7, 1000)):
        one, other = shaped(shape, (9,)), shaped(shape[::-1], (9,))
        past = history(2)
        for stats, features in (
            (statistics(table=one), tensor_features),
            (statistics(table=one), summary),
        ):
            np.testing.assert_array_equal(
                features(stats, one, past), features(stats, other, past)
            )


def test_features_do_not_see_names():
    def table(names):
        outer, left, right = names
        kernel = jnp.ones((3, 4))
        params = {outer: {left: kernel, right: {"a": kernel, "b": jnp.ones(4)}}}
        return unit_table(list(describe(params)))

    first = table(("vision", "embedding", "head"))
    for names in (("text", "lora_A", "lora_B"), ("a", "b", "c")):
        for a, b in zip(first[:-1], table(names)[:-1], strict=True):
            np.testing.assert_array_equal(a, b)  # All but the groups of the logs.


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_statistics_do_not_depend_on_the_scale_of_the_loss(scale):
    past = history(log_grad_sq_ema=jnp.arange(4.0))
    expected = tensor_features(statistics(), unit_constants(), past)
    more = 2 * jnp.log(jnp.float32(scale))
    scaled = past._replace(
        log_grad_sq_ema=past.log_grad_sq_ema + more,
        log_grad_sq_max=past.log_grad_sq_max + more,
    )
    found = tensor_features(statistics(scale), unit_constants(), scaled)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        summary(statistics(scale), unit_constants(), scaled, 2.0 * scale),
        summary(statistics(), unit_constants(), past),
        rtol=1e-4,
    )


def test_degenerate_statistics_are_finite():
    zero = jnp.zeros(4)
    huge = jnp.full(4, 1e18)
    for x in (zero, huge):
        stats = Statistics(x, x, x, x)
        assert np.isfinite(tensor_features(stats, unit_constants(), history())).all()
        assert np.isfinite(summary(stats, unit_constants(), history())).all()
    empty = unit_table([])
    none = jnp.zeros(0)
    stats = Statistics(none, none, none, none)
    past = history(0)
    assert tensor_features(stats, empty, past).shape == (0, len(TENSOR_FEATURES))
    assert np.isfinite(summary(stats, empty, past)).all()


def test_summary_features():
    aligned = jnp.array([0.0, 0.0, 0.0, 1.0])
    past = history(structure=jnp.array([1.0, 0.0, 1.0, 0.0]), alignment_ema=aligned)
    found = summary(statistics(), unit_constants(), past)
    values = dict(zip(SUMMARY_FEATURES, found.tolist(), strict=True))
    assert values["constant"] == 1.0
    # One of three matrices of one size; what is said of a vector does not count.
    assert values["structured"] == pytest.approx(1 / 3)
    assert values["alignment_all"] == pytest.approx(0.5)
    square = statistics().grad_square
    assert values["alignment_ema_all"] == pytest.approx(float(square[3] / square.sum()))
    # Gradients of RMS one: the step times the number of elements, over the loss of 2.
    drop = 2e-3 * float(unit_constants().size.sum())
    assert values["reach"] == pytest.approx(0.5 * np.log(drop / 2.0), rel=1e-5)
    assert values["reach_known"] == 1.0
    unknown = summary(statistics(), unit_constants(), past, known=0.0).tolist()
    assert unknown[SUMMARY_FEATURES.index("reach") :] == [0.0, 0.0]


def structure_of(kernel):
    square = np.square(np.asarray(kernel, np.float32))
    row, column = square.mean(1), square.mean(0)
    compute = structure_program(*square.shape)
    # What comes after the rows and columns that are there does not matter.
    row, column = (np.pad(x, (0, 3))[None] for x in (row, column))
    return float(compute(row, column)[0])


@functools.cache
def structure_program(rows, columns):
    counts = np.float32([rows]), np.float32([columns])
    return jax.jit(lambda row, column: structure(row, column, *counts))


INITIALISERS = {
    "normal": jax.nn.initializers.normal(0.02),
    "uniform": jax.nn.initializers.he_uniform(),
    "truncated": jax.nn.initializers.lecun_normal(),
    "orthogonal": jax.nn.initializers.orthogonal(),
    "xavier": jax.nn.initializers.xavier_uniform(),
}


@pytest.mark.parametrize("name", INITIALISERS)
def test_new_kernels_have_no_structure(name):
    shapes = ((16, 16), (64, 64), (10, 64), (64, 10), (128, 512), (784, 32))

    @jax.jit
    def kernels():
        return [
            INITIALISERS[name](jax.random.key(seed), shape, jnp.float32)
            for seed, shape in enumerate(shapes)
        ]

    for kernel in kernels():
        assert structure_of(kernel) == 0.0, kernel.shape
    assert structure_of(np.zeros((8, 4))) == 0.0


def test_kernels_of_uneven_rows_have_structure():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(64, 48))
    uneven = kernel * np.exp(rng.normal(size=(64, 1)))
    assert structure_of(uneven) == 1.0
    # Some is more than none and less than all, and a transposed kernel has the same.
    some = kernel * np.exp(0.2 * rng.normal(size=(64, 1)))
    assert 0.1 < structure_of(some) < 0.9
    for x in (uneven, some):
        assert structure_of(x.T) == pytest.approx(structure_of(x), rel=1e-5)
        assert structure_of(1e-3 * x) == pytest.approx(structure_of(x), rel=1e-4)


def test_structure_is_measured_at_the_start_stacked_or_apart():
    rng = np.random.default_rng(0)
    rows = np.exp(rng.normal(size=(3, 20, 1)) * np.array([0, 0.25, 1])[:, None, None])
    layers = jnp.asarray(rng.normal(size=(3, 20, 30)) * rows, jnp.float32)
    expected = [structure_of(x) for x in layers]
    assert expected[0] == 0 < expected[1] < expected[2]

    def found(params, **arguments):
        tx = hand_designed(10, **arguments)
        return tx.init(params).history.structure

    split = layers.reshape(3, 20, 5, 6)
    for params, arguments in (
        ({str(i): x for i, x in enumerate(layers)}, {}),
        ({"w": layers}, {"stacked": "w"}),
        ({"w": split}, {"stacked": "w"}),
        ({"w": jnp.swapaxes(layers, 1, 2)}, {"stacked": "w"}),
    ):
        np.testing.assert_allclose(found(params, **arguments), expected, rtol=1e-5)


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


@pytest.mark.parametrize("loss", [7.333928, 7.333929, 0.1, 1e-8, 1e8])
def test_a_constant_loss_has_no_slope_not_even_of_rounding(loss):
    # Rounding differs between layouts of a mesh, and slopes are over the noise.
    slopes = [PROGRESS_FEATURES.index(f"loss_slope_{i}") for i in range(3)]
    for steps in (1, 8):
        state = seen([loss] * steps)
        assert not np.any(np.asarray(FEATURES(state, steps))[slopes])
        assert not np.any(state.averages) and not np.any(state.deviation)
        np.testing.assert_allclose(current_loss(state)[0], loss, rtol=1e-7)


def test_time_features_move_with_the_run():
    rows = [FEATURES(init_progress(), t)[:11] for t in (0, 50, 100)]
    assert np.all(np.diff(np.stack(rows), axis=0)[:, :10] > 0)
