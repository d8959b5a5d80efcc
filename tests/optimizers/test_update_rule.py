"""The update rule against oracles written apart from it, in numpy and optax."""

import contextlib
import functools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from optimizer_cases import optimize

import meta_opt
from meta_opt.features.statistics import Statistics, unit_table
from meta_opt.features.tensors import describe
from meta_opt.optimizers import grouping, orthogonal
from meta_opt.optimizers.baselines import baseline
from meta_opt.optimizers.controller import OUTPUTS, ControllerConfig
from meta_opt.optimizers.grouping import first_units, group_leaves
from meta_opt.optimizers.orthogonal import newton_schulz, orthogonalise
from meta_opt.optimizers.update_rule import (
    DIRECTIONS,
    TOTAL_DECAY,
    hand_designed_controls,
    next_momentum_square,
    scheduled_step,
)

NUM_STEPS = 30


def rms(x):
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


# The hand-designed rule


def oracle_step(t):
    """RMS step: linear warm-up over 5% of the run, cosine decay to its end."""
    warmup = max(1, round(0.05 * NUM_STEPS))
    if t < warmup:
        return 2e-3 * (t + 1) / warmup
    return 1e-3 * (1 + math.cos(math.pi * (t - warmup) / (NUM_STEPS - warmup)))


def oracle_orthogonal(m):
    """Five quintic Newton-Schulz iterations, then RMS one."""
    x = m if m.shape[0] <= m.shape[1] else m.T
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    x = x if m.shape[0] <= m.shape[1] else x.T
    return x / rms(x)


class MatrixOracle:
    """Nesterov momentum 0.95, kept in bfloat16, orthogonalised; weight decay 0.05."""

    def __init__(self, rows):
        self.rows, self.momentum = rows, 0.0

    def __call__(self, grad, param):
        new = np.float32(0.95) * self.momentum + np.float32(0.05) * grad
        nesterov = np.float32(0.95) * new + np.float32(0.05) * grad
        self.momentum = new.astype(ml_dtypes.bfloat16).astype(np.float32)
        flat = nesterov.reshape(self.rows, -1).astype(np.float64)
        return oracle_orthogonal(flat).reshape(grad.shape) + 0.05 * param


class FactoredOracle:
    """Momentum over the root of the factored second moment (0.99), RMS one."""

    def __init__(self):
        self.momentum, self.row, self.column = 0.0, 0.0, 0.0

    def __call__(self, grad, param):
        new = np.float32(0.95) * self.momentum + np.float32(0.05) * grad
        self.momentum = new.astype(ml_dtypes.bfloat16).astype(np.float32)
        self.row = 0.99 * self.row + 0.01 * np.mean(np.square(grad), axis=1)
        self.column = 0.99 * self.column + 0.01 * np.mean(np.square(grad), axis=0)
        second = np.outer(self.row, self.column)
        direction = new / np.sqrt(second)
        return direction / rms(direction)


# Not mu_dtype: that multiplies in bfloat16 too.
ADAM = optax.scale_by_adam(0.95, 0.99, eps=0.0)


class VectorOracle:
    """optax's Adam (0.95, 0.99), its momentum rounded to bfloat16, RMS one."""

    def __init__(self, param):
        self.state = ADAM.init(jnp.asarray(param))

    def __call__(self, grad, param):
        direction, self.state = self.update(grad, self.state)
        return np.asarray(direction) / rms(direction)

    @staticmethod
    @jax.jit
    def update(grad, state):
        direction, state = ADAM.update(grad, state)
        mu = state.mu.astype(jnp.bfloat16).astype(jnp.float32)
        return direction, state._replace(mu=mu)


def test_hand_designed_equals_the_oracle():
    rng = np.random.default_rng(0)
    shapes = {
        "tall": {"kernel": (7, 4)},
        "wide": {"kernel": (4, 7), "bias": (7,)},
        "attention": {"kernel": (6, 2, 3)},
        "conv": {"kernel": (2, 2, 3, 8)},
        "tokens": {"embedding": (9, 4), "class": (1, 4)},
        "norm": {"scale": (4,)},
        "temperature": (),
    }
    params = jax.tree.map(
        lambda s: rng.normal(size=s).astype(np.float32),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )
    oracles = {
        "tall": {"kernel": MatrixOracle(7)},
        "wide": {
            "kernel": MatrixOracle(4),
            "bias": VectorOracle(params["wide"]["bias"]),
        },
        "attention": {"kernel": MatrixOracle(6)},
        "conv": {"kernel": MatrixOracle(12)},
        "tokens": {
            "embedding": MatrixOracle(9),
            "class": VectorOracle(params["tokens"]["class"]),
        },
        "norm": {"scale": VectorOracle(params["norm"]["scale"])},
        "temperature": VectorOracle(params["temperature"]),
    }
    tx = meta_opt.hand_designed(NUM_STEPS)
    step = jax.jit(tx.update)
    state = tx.init(params)
    common = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
    for t in range(10):
        size = 1.0 + (t % 3)
        grads = jax.tree.map(
            lambda c, s=size: (s * (c + rng.normal(size=c.shape))).astype(np.float32),
            common,
        )
        updates, state = step(grads, state, params)
        expected = jax.tree.map(
            lambda oracle, g, p, t=t: -oracle_step(t) * oracle(g, p),
            oracles,
            grads,
            params,
        )
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(updates),
            jax.tree.leaves(expected),
            strict=True,
        ):
            # bfloat16 boundaries may fall apart by one unit: 2**-9 of an element.
            np.testing.assert_allclose(
                a, b, rtol=1e-3, atol=1e-3 * oracle_step(t), err_msg=f"{path} at {t}"
            )
        params = jax.tree.map(np.add, params, jax.tree.map(np.asarray, updates))
    assert int(state.guard.skipped) == 0


def test_schedule():
    step = jax.jit(scheduled_step, static_argnums=1)
    steps = [float(step(t, NUM_STEPS)) for t in range(NUM_STEPS)]
    np.testing.assert_allclose(
        steps, [oracle_step(t) for t in range(NUM_STEPS)], rtol=1e-5, atol=1e-9
    )
    assert max(steps) == pytest.approx(2e-3)
    assert float(scheduled_step(NUM_STEPS, NUM_STEPS)) == 0.0
    assert float(scheduled_step(0, 1)) == pytest.approx(2e-3)
    # Not above zero by rounding past the end, whatever the type of num_steps.
    assert float(scheduled_step(10**6, jnp.int32(7))) == 0.0


# Directions


def theta_for(direction, base):
    """Weights that put everything on one direction where ``base`` is the usual."""
    theta = meta_opt.init_theta(jax.random.key(0))
    bias = np.zeros(theta["output"]["bias"].shape, np.float32)
    if direction != base:
        # Far enough for tanh to be one.
        bias[DIRECTIONS.index(base)] = -20.0
        bias[DIRECTIONS.index(direction)] = 20.0
    theta["output"]["bias"] = jnp.asarray(bias)
    return theta


@functools.cache
def updates_by_direction():
    """Second updates under each direction: [direction], for matrices and vectors."""
    rng = np.random.default_rng(1)
    # Zero parameters: no weight decay.
    params = {"kernel": np.zeros((6, 5)), "bias": np.zeros(8), "gain": np.zeros(())}
    params = jax.tree.map(lambda p: p.astype(np.float32), params)
    common = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
    grads = [
        jax.tree.map(
            lambda c: (c * (1 + 0.3 * rng.normal(size=c.shape))).astype(np.float32),
            common,
        )
        for _ in range(2)
    ]
    thetas = [theta_for(d, "orthogonal") for d in DIRECTIONS]
    thetas += [theta_for(d, "adam") for d in DIRECTIONS[1:]]

    @jax.jit
    @jax.vmap
    def run(theta):
        tx = meta_opt.learned_optimizer(NUM_STEPS, theta=theta)
        state = tx.init(params)
        for g in grads:
            updates, state = tx.update(g, state, params)
        return updates

    updates = run(jax.tree.map(lambda *x: jnp.stack(x), *thetas))
    matrix = dict(zip(DIRECTIONS, updates["kernel"][:4], strict=True))
    vectors = {
        name: dict(zip(DIRECTIONS[1:], updates[name][4:], strict=True))
        for name in ("bias", "gain")
    }
    return grads, {"kernel": matrix, **vectors}


def test_every_direction_has_rms_one():
    _, found = updates_by_direction()
    assert set(found["kernel"]) == set(DIRECTIONS)
    for name, directions in found.items():
        for direction, updates in directions.items():
            # The momentum's size is tracked without its rounding to bfloat16.
            rel = 2.0**-7 if direction == "momentum" else 1e-5
            assert rms(updates) == pytest.approx(oracle_step(1), rel=rel), (
                name,
                direction,
            )


def test_directions_are_what_they_say():
    (first, second), found = updates_by_direction()
    step = -oracle_step(1)
    for name in ("kernel", "bias"):
        old = (0.05 * first[name]).astype(ml_dtypes.bfloat16).astype(np.float32)
        momentum = 0.95 * old + 0.05 * second[name]
        nesterov = 0.95 * momentum + 0.05 * second[name]
        np.testing.assert_allclose(
            found[name]["sign"], step * np.sign(nesterov), rtol=1e-5
        )
        np.testing.assert_allclose(
            found[name]["momentum"],
            step * momentum / rms(momentum),
            rtol=2.0**-7,
        )
    adam = VectorOracle(np.zeros(8, np.float32))
    adam(first["bias"], None)
    np.testing.assert_allclose(
        found["bias"]["adam"], step * adam(second["bias"], None), rtol=1e-3, atol=1e-6
    )
    table = FactoredOracle()
    table(first["kernel"], None)
    np.testing.assert_allclose(
        found["kernel"]["adam"], step * table(second["kernel"], None), rtol=1e-4
    )


def test_momentum_cancelled_by_a_gradient_takes_no_huge_step():
    """What is left of a cancelled momentum is rounding, not a direction.

    Regression: a scalar whose momentum crossed zero got an update of 1e8.
    """
    infos = describe({name: jnp.zeros(()) for name in "abc"})
    controls = hand_designed_controls(unit_table(list(infos)))
    momentum = jnp.array([1.0, 1.0, 1.0])
    grad = jnp.array([-19.0, -18.99, 19.0])  # 0.95 m + 0.05 g = 0, small, 1.9
    # The tracked square does not see that bfloat16 rounded the momentum.
    tracked = jnp.square(momentum) * jnp.array([0.99, 0.99, 1.0])
    stats = Statistics(jnp.square(grad), tracked, tracked, momentum * grad)
    square = next_momentum_square(controls, 1.0, stats)
    new = 0.95 * momentum + 0.05 * grad
    assert np.all(np.abs(new) / np.sqrt(square) < 2.0)
    assert float(square[2]) == pytest.approx(1.9**2, rel=1e-5)


# Weight decay


def test_a_run_takes_a_bounded_share_of_a_kernel_by_decay():
    """Without the bound, the sum of steps times the largest decay takes all of it."""
    theta = meta_opt.init_theta(jax.random.key(0))
    theta["output"]["bias"] = (
        theta["output"]["bias"]
        .at[OUTPUTS.index("weight_decay")]
        .set(100.0)
        .at[OUTPUTS.index("step")]
        .set(100.0)
    )
    num_steps = 500
    tx = meta_opt.learned_optimizer(num_steps, theta=theta, safeguard=False)
    # Signs that alternate: what is left of the kernel's mean is the decay's doing.
    signs = np.where((np.arange(16)[:, None] + np.arange(16)) % 2, 1.0, -1.0)
    params = {"kernel": jnp.ones((16, 16)), "bias": jnp.ones(16)}
    grads = {"kernel": jnp.asarray(signs, jnp.float32), "bias": jnp.zeros(16)}

    def step(carry, t):
        params, state = carry
        now = jax.tree.map(lambda g: jnp.where(t % 2, g, -g), grads)
        updates, state = tx.update(now, state, params)
        return (optax.apply_updates(params, updates), state), state.history.decayed

    (params, _), decayed = jax.jit(
        lambda: jax.lax.scan(step, (params, tx.init(params)), jnp.arange(num_steps))
    )()
    free = sum(2e-3 * math.exp(1.5) * 0.05 * math.exp(1.5) * 0.5 for _ in range(500))
    assert free > 2 * TOTAL_DECAY
    np.testing.assert_allclose(np.max(decayed), TOTAL_DECAY, rtol=1e-4)
    mean = float(jnp.mean(params["kernel"]))
    assert mean == pytest.approx(math.exp(-TOTAL_DECAY), rel=0.02)
    np.testing.assert_allclose(params["bias"], 1.0)  # Vectors do not decay.


@pytest.mark.parametrize("rule", [meta_opt.hand_designed, meta_opt.learned_optimizer])
def test_a_kernel_of_mean_one_stays_one(rule):
    """Regression: decay that outweighed the loss took all of such kernels."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 16, 16)).astype(np.float32)
    start = 1.0 + 0.05 * noise[0]
    target = start + 0.25 * noise[1]

    def loss(params):
        return 0.5 * jnp.mean(jnp.square(params["w"] - target))

    final, losses = optimize(rule(200), loss, {"w": jnp.asarray(start)}, 200)
    assert losses[-1] < losses[0]
    assert float(jnp.mean(final["w"])) == pytest.approx(1.0, abs=0.1)


# Orthogonalisation


def test_newton_schulz_moves_singular_values_towards_one():
    rng = np.random.default_rng(2)
    matrices = rng.normal(size=(3, 6, 9)).astype(np.float32)
    found = jax.jit(newton_schulz)(matrices)
    for x, m in zip(np.asarray(found), matrices, strict=True):
        u, _, v = np.linalg.svd(m, full_matrices=False)
        values = np.diag(u.T @ x @ v.T)  # the same singular vectors
        assert np.all((values > 0.6) & (values < 1.3))
    assert not np.any(newton_schulz(jnp.zeros((1, 3, 4))))


def test_few_iterations_leave_differences_between_singular_values_of_large_ones():
    rng = np.random.default_rng(5)

    def spread(rows, columns, iterations):
        u, _, v = np.linalg.svd(rng.normal(size=(rows, columns)), full_matrices=False)
        values = 1 / np.arange(1, rows + 1)
        matrix = ((u * values) @ v).astype(np.float32)
        (found,) = jax.jit(lambda x: orthogonalise([x[None]], [1], iterations))(matrix)
        assert rms(found) ** 2 == pytest.approx(1, rel=0.02)
        got = np.diag(u.T @ np.asarray(found[0], np.float32) @ v.T)
        return got[0] / got[-1]

    assert spread(32, 64, (5, 2)) == pytest.approx(spread(32, 64, (5, 5)), rel=1e-3)
    assert spread(128, 256, (5, 5)) < 1.7
    # Tiny values grow by 3.44 each time, and the largest is near one at once.
    assert spread(128, 256, (5, 2)) == pytest.approx(128 / 3.4445**2, rel=0.3)


def test_orthogonalise_batches_shapes_without_mixing():
    rng = np.random.default_rng(3)
    shapes = [(2, 5, 3), (1, 3, 5), (2, 3, 1, 5), (1, 4, 4)]
    splits = [1, 1, 1, 1]
    arrays = [rng.normal(size=s).astype(np.float32) for s in shapes]
    found = jax.jit(functools.partial(orthogonalise, splits=splits))(arrays)
    for x, y in zip(arrays, found, strict=True):
        assert y.shape == x.shape and y.dtype == jnp.float32
        for a, b in zip(x, np.asarray(y), strict=True):
            expected = oracle_orthogonal(a.reshape(a.shape[0], -1).astype(np.float64))
            np.testing.assert_allclose(b.reshape(expected.shape), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("at_once", "mesh_shape"),
    [
        (6, ()),
        (1, (2, 4)),
        pytest.param(1, (), marks=pytest.mark.slow),
        pytest.param(1, (8,), marks=pytest.mark.slow),
    ],
)
def test_large_matrices_in_rounds_and_over_devices(monkeypatch, at_once, mesh_shape):
    """In bfloat16, so close to the oracle in direction; each unit has RMS one."""
    size = 160 * 224
    monkeypatch.setattr(orthogonal, "_AT_ONCE", at_once * size)
    rng = np.random.default_rng(4)
    # Three arrays that share rounds, tall and wide, and one of another depth.
    shapes = [(5, 160, 224), (5, 224, 160), (5, 160, 2, 112), (1, 160, 224)]
    arrays = [rng.normal(size=s).astype(np.float32) for s in shapes]
    run = jax.jit(functools.partial(orthogonalise, splits=[1, 1, 1, 1]))
    if mesh_shape:
        axes = ("x", "y")[: len(mesh_shape)]
        mesh = jax.make_mesh(mesh_shape, axes, (AxisType.Auto,) * len(axes))
        sharding = NamedSharding(mesh, PartitionSpec(None, "x"))
        with jax.set_mesh(mesh):
            found = run(jax.device_put(arrays, sharding))
    else:
        found = run(arrays)
    for x, y in zip(arrays, found, strict=True):
        assert y.shape == x.shape and y.dtype == jnp.bfloat16
        for a, b in zip(x, np.asarray(y, np.float64), strict=True):
            expected = oracle_orthogonal(a.reshape(a.shape[0], -1).astype(np.float64))
            assert rms(b) == pytest.approx(1, abs=0.01)
            assert np.mean(b.reshape(expected.shape) * expected) > 0.998


@pytest.mark.parametrize("arrays", [1, 3, 8])
@pytest.mark.parametrize("units", [1, 7, 18])
@pytest.mark.parametrize("log_size", [20, 22, 25])
def test_rounds_are_no_larger_than_a_device_should_hold(arrays, units, log_size):
    size = 1 << log_size
    found = orthogonal._units_at_once(arrays, units, size)
    assert 1 <= found <= units
    assert found == 1 or found * arrays * size <= orthogonal._AT_ONCE
    if units * arrays * size <= orthogonal._AT_ONCE:
        assert found == units


# Groups


LEAF = st.tuples(
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.booleans(),
    st.sampled_from(["kernel", "embedding"]),
    st.sampled_from([np.float32, ml_dtypes.bfloat16]),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(LEAF, min_size=1, max_size=6))
def test_groups_pack_and_unpack_every_leaf(leaves):
    tree, size = {}, 0
    for i, (shape, stacked, name, dtype) in enumerate(leaves):
        shape = (2, *shape) if stacked else shape
        values = np.arange(size, size + math.prod(shape)).reshape(shape)
        tree[f"{'layers' if stacked else 'single'}{i}/{name}"] = values.astype(dtype)
        size += values.size
    flat = [jnp.asarray(x) for x in jax.tree.leaves(tree)]
    pattern = "^layers" if any(stacked for _, stacked, _, _ in leaves) else None
    infos = describe(tree, pattern)
    groups = group_leaves(infos, flat)
    slots = [jnp.int32(s) for s in first_units(groups, len(flat))]
    assert sum(g.units for g in groups) == sum(info.units for info in infos)
    out = [jnp.zeros_like(x) for x in flat]
    start = 0
    for group in groups:
        assert group.start == start
        start += group.units
        chunks = group.pack(flat)
        assert all(
            x.shape == (span.stop - span.start, *group.shape)
            for x, span in zip(chunks, group.spans, strict=True)
        )
        small = group.pack_small(flat, group.all_axes)
        for j, chunk in enumerate(chunks):
            np.testing.assert_array_equal(group.slice_chunk(small, j, slots), chunk)
        group.unpack(chunks, out, slots)
    for leaf, found in zip(flat, out, strict=True):
        assert found.dtype == leaf.dtype
        np.testing.assert_array_equal(found, leaf)


def of_many_shapes():
    """Parameters of small shapes, and a large one, with gradients of three steps."""
    rng = np.random.default_rng(6)
    shapes = {
        **{"scalar": (), "short": (5,), "long": (40,), "other": (40,), "token": (1, 9)},
        **{"wide": (12, 16), "narrower": (11, 15), "tall": (18, 12), "thin": (3, 40)},
        **{"conv": (2, 2, 4, 11), "heads": (12, 2, 8), "large": (160, 224)},
        **{"layers/kernel": (3, 11, 16), "layers/bias": (3, 7), "silent": (12, 15)},
    }
    arrays = [
        {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
        for _ in range(4)
    ]
    for tree in arrays:
        tree["silent"][:] = tree["short"][:] = 0.0
    params, *grads = jax.device_put(arrays)
    return params, grads


@pytest.mark.parametrize(
    ("rule", "mesh_shape"),
    [
        pytest.param("learned", (), marks=pytest.mark.slow),
        ("hand-designed", (8,)),
    ],
)
def test_padding_changes_nothing(monkeypatch, rule, mesh_shape):
    params, grads = of_many_shapes()
    theta = meta_opt.init_theta(jax.random.key(0))
    noise = jax.random.normal(jax.random.key(1), theta["output"]["kernel"].shape)
    theta["output"]["kernel"] += 0.1 * noise
    tx = (
        meta_opt.learned_optimizer(NUM_STEPS, theta=theta, stacked="layers")
        if rule == "learned"
        else meta_opt.hand_designed(NUM_STEPS, stacked="layers")
    )

    def run():
        init, update = jax.jit(tx.init), jax.jit(lambda *a: tx.update(*a))
        state = init(params)
        for g in grads:
            updates, state = update(g, state, params)
        return updates, state

    def number_of_groups():
        infos = describe(params, "layers")
        return len(group_leaves(infos, jax.tree.leaves(params)))

    axes = ("x",) * len(mesh_shape)
    mesh = jax.make_mesh(mesh_shape, axes, (AxisType.Auto,) * len(axes))
    with jax.set_mesh(mesh) if mesh_shape else contextlib.nullcontext():
        padded, state = run()
    fewer = number_of_groups()
    monkeypatch.setattr(grouping, "_PADDING", -1)
    jax.clear_caches()
    alone, state_alone = run()
    assert fewer <= number_of_groups() - 6
    assert not np.any(padded["silent"]) and not np.any(padded["short"])
    for name, x in alone.items():
        assert np.all(np.isfinite(padded[name]))
        np.testing.assert_allclose(padded[name], x, rtol=1e-3, atol=1e-6, err_msg=name)
    for kept in ("momentum", "second"):
        for x, y in zip(
            jax.tree.leaves(getattr(state, kept)),
            jax.tree.leaves(getattr(state_alone, kept)),
            strict=True,
        ):
            assert x.shape == y.shape
            x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
            np.testing.assert_allclose(x, y, rtol=2.0**-7, atol=1e-6)
    # What is kept of each unit, in the order of its groups.
    for x, y in zip(
        np.sort(state.history, axis=1),
        np.sort(state_alone.history, axis=1),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6)


def test_padding_adds_few_operations_and_elements():
    rng = np.random.default_rng(7)
    sides = [tuple(int(n) for n in rng.integers(8, 180, 2)) for _ in range(60)]
    units = {pair: int(rng.integers(1, 30)) for pair in sides}
    units |= {(64, 65): 1, (64, 64): 200}
    found = grouping._padded_together(units)
    assert sorted(s for shapes in found for s in shapes) == sorted(units)
    assert len(found) < len(units)
    for most, *others in found:
        for shape in others:
            assert units[shape] * (math.prod(most) - math.prod(shape)) <= 2**15
            ratio = math.prod(most) * min(most) / (math.prod(shape) * min(shape))
            assert ratio <= grouping._PADDED
    vectors = {(n,): 1 for n in (1, 7, 300, 20000)} | {(64,): 600}
    assert grouping._padded_together(vectors) == [
        [(20000,), (300,), (7,), (1,)],
        [(64,)],
    ]


# Baselines


def test_baselines_have_warm_up_and_cosine():
    tx = baseline("sgd", 40, learning_rate=0.5, momentum=0.0)
    state = tx.init(jnp.ones(()))
    steps = []
    update = jax.jit(tx.update)
    for _ in range(40):
        updates, state = update(jnp.ones(()), state, jnp.ones(()), value=1.0)
        steps.append(-float(updates))
    np.testing.assert_allclose(steps[:3], [0.25, 0.5, 0.5], rtol=1e-6)
    assert steps == sorted(steps[:2]) + sorted(steps[2:], reverse=True)
    assert 0 < steps[-1] < 0.002


def test_configs_name_their_directions():
    with pytest.raises(ValueError, match=r"unknown directions.*'sgn'"):
        ControllerConfig(directions=("sgn",))
    for width in (0, 2**33):
        with pytest.raises(
            ValueError, match=rf"tensor_hidden={width} must be from 1 to"
        ):
            ControllerConfig(tensor_hidden=width)
    plain = ControllerConfig(orthogonal=False)
    assert plain.mixable == {"adam", "sign", "momentum"}
