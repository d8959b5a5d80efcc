"""What an optimizer is: one contract for every name of the registry.

Compilation is what these tests cost, so tests that can share a compiled step do
(`Case.step`), and what holds by types alone is checked by `jax.eval_shape`. Every name
has the tests of `any_case`; those of `case` are slow for all but our own optimizers and
one baseline, since the others are made of the same parts of optax.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from optimizer_cases import (
    NUM_STEPS,
    OURS,
    RATES,
    SPECS,
    Case,
    assert_close,
    assert_follows,
    assert_same,
    make_grads,
    make_params,
    noisy_theta,
    optimize,
    sharded_params,
    types,
)

import meta_opt
from meta_opt.checkpoints import Checkpoints
from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.registry import NAMES
from meta_opt.optimizers.state import OptimizerState
from meta_opt.optimizers.weights import save_theta


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "noisy"
    save_theta(path, noisy_theta(), ControllerConfig())
    return str(path) + ".safetensors"


@pytest.fixture(scope="module")
def cases(weights_file):
    """Makes the case of a name once."""

    def make(name, num_steps, **settings):
        config = {"name": name, "num_steps": num_steps, **settings}
        if name in RATES:
            config = {"learning_rate": RATES[name], **config}
        return meta_opt.make_optimizer(
            meta_opt.OptimizerConfig(**config, weights=weights_file)
        )

    @functools.cache
    def made(name):
        case = Case(name, functools.partial(make, name))
        case.trajectory  # noqa: B018  Before others call the step: it counts compilations.
        return case

    return made


@pytest.fixture(scope="module", params=NAMES)
def any_case(request, cases):
    return cases(request.param)


@pytest.fixture(
    scope="module",
    params=[
        name if name in (*OURS, "adamw") else pytest.param(name, marks=pytest.mark.slow)
        for name in NAMES
    ],
)
def case(request, cases):
    return cases(request.param)


# Convergence


def test_converges_on_a_quadratic(any_case):
    params = make_params()
    rng = np.random.default_rng(5)
    target = jax.tree.map(
        lambda p: p + 0.1 * np.sign(rng.normal(size=p.shape)).astype(np.float32), params
    )
    curvature = {"kernel": jnp.float32(1.0), "bias": jnp.float32(4.0)}

    def loss(params):
        off = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), params, target)
        dense = jax.tree.map(jnp.multiply, off["dense"], curvature)
        return dense["kernel"] + dense["bias"] + off["temperature"]

    final, losses = optimize(any_case.make(200), loss, params, 200)
    assert losses[-1] < 0.05 * losses[0]
    assert final["unused"].shape == (0, 3)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 8, rngs=rngs)
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.gelu(self.first(x)))


def test_converges_on_a_net_of_flax_nnx(case):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(64, 2)).astype(np.float32)
    label = (x[:, 0] * x[:, 1] > 0).astype(np.int32)
    graphdef, params = nnx.split(Net(nnx.Rngs(0)), nnx.Param)

    def loss(params):
        logits = nnx.merge(graphdef, params)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    final, losses = optimize(case.make(400), loss, params, 400)
    assert jax.tree.structure(final) == jax.tree.structure(params)
    assert losses[-1] < 0.6 * losses[0]


# Transformations of JAX


def test_compiles_once_and_the_state_keeps_its_type(any_case):
    trajectory = any_case.trajectory
    assert any_case.compiled == 1
    first = types(any_case.tx.init(make_params()))
    assert all(types(state) == first for _, state, _ in trajectory)
    updates = trajectory[-1][2]
    assert types(updates) == types(make_params())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))
    assert any(np.any(x != 0) for x in jax.tree.leaves(updates))


def test_scan_is_the_loop_and_donation_frees_what_it_takes(case):
    params = make_params()
    grads = jax.tree.map(lambda *g: jnp.stack(g), *make_grads(params, 5))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def run(params, state):
        def step(carry, inputs):
            params, state = carry
            updates, state = case.tx.update(inputs[0], state, params, value=inputs[1])
            return (optax.apply_updates(params, updates), state), updates

        return jax.lax.scan(step, (params, state), (grads, 5.0 - jnp.arange(5.0)))

    state = case.tx.init(params)
    shapes = {p.shape for p in jax.tree.leaves(params) if p.size > 1}
    given = [x for x in jax.tree.leaves((params, state)) if x.shape in shapes]
    (params, state), _ = run(params, state)
    assert all(x.is_deleted() for x in given)
    assert_close(params, case.trajectory[-1][0])
    assert types(state) == types(case.trajectory[-1][1])


def test_vmap_over_parameters(case):
    params = make_params()
    other = jax.tree.map(lambda p: 1.5 * p, params)
    both = jax.tree.map(lambda *p: jnp.stack(p), params, other)
    grads = make_grads(params, 2)
    values = jnp.array([5.0, 2.0])
    state = jax.jit(jax.vmap(case.tx.init))(both)
    step = jax.jit(jax.vmap(lambda g, s, p, v: case.tx.update(g, s, p, value=v)))
    for g in grads:
        g = jax.tree.map(lambda x: jnp.stack([x, 0.1 * x]), g)
        updates, state = step(g, state, both, values)
        both = optax.apply_updates(both, updates)
    for i, (one, factor) in enumerate([(params, 1.0), (other, 0.1)]):
        alone = case.tx.init(one)
        for g in grads:
            g = jax.tree.map(lambda x, c=factor: c * x, g)
            updates, alone = case.step(g, alone, one, values[i])
            one = optax.apply_updates(one, updates)
        assert_close(jax.tree.map(lambda x, i=i: x[i], both), one)


@pytest.mark.parametrize("name", OURS)
def test_a_run_on_each_device_under_shard_map(cases, name):
    tx = cases(name).tx

    def run(params, grads, value):
        def step(carry, grads):
            params, state = carry
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), grads)[0][0]

    def run_on_a_device(*inputs):
        found = run(*jax.tree.map(lambda x: x[0], inputs))
        return jax.tree.map(lambda x: x[None], found)

    params = make_params()
    grads = jax.tree.map(lambda *g: jnp.stack(g), *make_grads(params, 3))
    runs = (
        jax.tree.map(lambda p: jnp.stack([p, 1.5 * p]), params),
        jax.tree.map(lambda g: jnp.stack([g, 0.1 * g]), grads),
        jnp.array([5.0, 2.0]),
    )
    mesh = Mesh(jax.devices()[:2], ("runs",))
    spec = PartitionSpec("runs")
    each = jax.shard_map(run_on_a_device, mesh=mesh, in_specs=spec, out_specs=spec)
    assert_close(jax.jit(each)(*runs), jax.jit(jax.vmap(run))(*runs))


# Wrappers of optax


def run_wrapped(tx, grads, params, **extra):
    step = jax.jit(tx.update)
    state = tx.init(params)
    seen = []
    for g in grads:
        updates, state = step(g, state, params, **extra)
        params = optax.apply_updates(params, updates)
        seen.append(updates)
    return params, state, seen


def test_chain_after_clipping_and_masked(case):
    params = make_params()
    grads = make_grads(params, 3)
    mask = {**jax.tree.map(lambda _: True, params), "unused": False}
    chained = optax.chain(optax.clip_by_global_norm(0.5), optax.masked(case.tx, mask))
    # Here with feedback too: every optimizer accepts it.
    extra = {"value": jnp.float32(2.0), "feedback": jnp.float32(jnp.nan)}
    found, _, _ = run_wrapped(chained, grads, params, **extra)
    state = case.tx.init(params)
    for g in grads:
        factor = 0.5 / optax.tree.norm(g)
        g = jax.tree.map(lambda x, c=factor: c * x, g)
        updates, state = case.step(g, state, params, extra["value"])
        params = optax.apply_updates(params, updates)
    # Clipping rounds; at a bfloat16 boundary that is 2**-9 of the momentum.
    assert_close(found, params, rtol=1e-3, atol=1e-5)


def test_multi_transform(case):
    params = make_params()
    grads = make_grads(params, 2)
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "train" if "dense" in str(path) else "frozen", params
    )
    tx = optax.multi_transform(
        {"train": case.tx, "frozen": optax.set_to_zero()}, labels
    )
    final, _, seen = run_wrapped(tx, grads, params, value=jnp.float32(2.0))
    assert_same(final["temperature"], params["temperature"])
    for updates in seen:
        assert all(np.all(x != 0) for x in jax.tree.leaves(updates["dense"]))


def test_multi_steps(case):
    params = make_params()
    steps = optax.MultiSteps(case.tx, every_k_schedule=2)
    grads = make_grads(params, 4)
    extra = {"value": jnp.float32(2.0)}
    found, _, seen = run_wrapped(steps, grads, params, **extra)
    assert not any(np.any(x) for i in (0, 2) for x in jax.tree.leaves(seen[i]))
    state = case.tx.init(params)
    for a, b in (grads[:2], grads[2:]):
        mean = jax.tree.map(lambda x, y: x + (y - x) / 2, a, b)
        updates, state = case.step(mean, state, params, extra["value"])
        params = optax.apply_updates(params, updates)
    assert_close(found, params, rtol=1e-3, atol=1e-5)


def test_apply_if_finite_without_value(case):
    params = make_params()
    good = make_grads(params, 1)[0]
    bad = jax.tree.map(lambda x: x * jnp.nan, good)
    tx = optax.apply_if_finite(case.tx, max_consecutive_errors=3)
    final, state, seen = run_wrapped(tx, [good, bad, good], params)
    assert not any(np.any(x) for x in jax.tree.leaves(seen[1]))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(final))
    assert int(state.total_notfinite) == 1
    assert np.any(seen[2]["dense"]["kernel"] != 0)


def test_value_and_feedback_are_optional(any_case):
    params = make_params()
    state = any_case.tx.init(params)
    loss = jnp.float32(1.0)
    for extra in ({}, {"value": loss}, {"feedback": loss}, {"value": 1.0}):
        updates, after = jax.eval_shape(
            lambda g, s, p, extra=extra: any_case.tx.update(g, s, p, **extra),
            params, state, params,
        )  # fmt: skip
        assert types(after) == types(state)
        assert types(updates) == types(params)


# Types of the parameters


@pytest.mark.filterwarnings("ignore:.* parameters in .* tensors are")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_of_low_precision(any_case, dtype):
    params = make_params(dtype)
    state = any_case.tx.init(params)
    updates, after = jax.eval_shape(
        lambda g, s, p: any_case.tx.update(g, s, p, value=jnp.float32(1.0)),
        params, state, params,
    )  # fmt: skip
    assert types(after) == types(state)
    assert types(updates) == types(params)
    if any_case.name not in OURS:
        return
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state.momentum))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.second))


@pytest.mark.filterwarnings("ignore:.* parameters in .* tensors are")
@pytest.mark.parametrize("case", OURS, indirect=True)
def test_updates_are_not_formed_by_subtraction(case):
    """Large parameters of low precision do not round small updates away."""
    params = jax.tree.map(lambda p: jnp.round(200 + 8 * p), make_params())
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    low = {**low, "temperature": params["temperature"].astype(jnp.float16)}
    params = jax.tree.map(lambda p: p.astype(jnp.float32), low)
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), make_grads(params, 1)[0], low)
    step = jax.jit(lambda g, s, p: case.tx.update(g, s, p, value=jnp.float32(1.0)))
    found, _ = step(grads, case.tx.init(low), low)
    assert [x.dtype for x in jax.tree.leaves(found)] == [
        x.dtype for x in jax.tree.leaves(low)
    ]
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    expected, _ = case.step(wide, case.tx.init(params), params, jnp.float32(1.0))
    # Rounded once, at the end, relative to the update: bfloat16 has 8 bits.
    assert_close(found, expected, rtol=2.0**-8)


# Checkpoints


def test_checkpoint_round_trip_is_exact(case, tmp_path):
    params, state, _ = case.trajectory[2]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"params": params, "state": state}, {})
    like = jax.tree.map(jnp.zeros_like, {"params": params, "state": state})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(like).state
    checkpoints.close()
    assert_same(restored, {"params": params, "state": state})
    grads = make_grads(params, 1)[0]
    _, after = case.step(grads, state, params, jnp.float32(2.0))
    _, again = case.step(grads, restored["state"], restored["params"], jnp.float32(2.0))
    assert_same(again, after)


# Sharding


@pytest.mark.parametrize(
    "axis_type",
    [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)],
)
def test_sharding(case, axis_type):
    if axis_type == AxisType.Explicit and case.name in ("muon", "prodigy"):
        pytest.skip("optax's own does not say how its products are to be sharded")
    settings = {"stacked": "^layers$"} if case.name in OURS else {}
    tx = case.make(NUM_STEPS, **settings)
    mesh, plain, params = sharded_params(axis_type)

    # init: eager, under jit, and by the helper.
    state = tx.init(params)
    assert_follows(state, mesh)
    jax.eval_shape(tx.update, params, state, params)  # no mesh need be set
    shardings = meta_opt.state_shardings(tx, params)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    with jax.set_mesh(mesh):
        if axis_type == AxisType.Explicit:
            inside = jax.jit(tx.init)(params)
        else:
            inside = jax.jit(tx.init, out_shardings=shardings)(params)
    assert_follows(inside, mesh)
    if case.name == "learned":
        assert inside.second.row["kernel"].shape == (16,)
        assert inside.second.column["kernel"].shape == (20,)
        assert inside.second.row["bias"].shape == (40,)
        assert inside.second.column["bias"].shape == (1,)

    # Five steps on eight devices are those on one.
    @jax.jit
    def run(params, state, grads, values):
        def step(carry, inputs):
            params, state = carry
            updates, state = tx.update(inputs[0], state, params, value=inputs[1])
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, state), (grads, values))[0]

    rng = np.random.default_rng(6)
    grads = {
        k: rng.normal(size=(5, *p.shape)).astype(np.float32) for k, p in plain.items()
    }
    values = np.linspace(2.0, 1.0, 5, dtype=np.float32)
    # Of both kinds of axes the same, where one process has both.
    if not hasattr(case, "plain_run"):
        case.plain_run = run(plain, tx.init(plain), grads, values)
    expected, expected_state = case.plain_run
    placed = jax.device_put(
        grads,
        {
            k: NamedSharding(mesh, PartitionSpec(None, *spec))
            for k, (_, spec) in SPECS.items()
        },
    )
    with jax.set_mesh(mesh):
        found, found_state = run(params, inside, placed, values)
    # Sums over devices come in another order.
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert types(found_state) == types(expected_state)
    if axis_type == AxisType.Explicit:
        assert_follows(found_state, mesh)
        for k, x in found.items():
            assert x.sharding.is_equivalent_to(params[k].sharding, x.ndim)


# Scan-stacked parameters


@pytest.mark.parametrize("case", OURS, indirect=True)
def test_stacked_is_unstacked(case):
    rng = np.random.default_rng(7)
    # The attribute of Flax variables, here the kernel of an attention's values.
    shapes = {"value": (6, 5), "scale": (5,), "gain": ()}
    layers = [
        {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
        for _ in range(3)
    ]
    apart = {f"layers_{i}": layer for i, layer in enumerate(layers)}
    together = {"layers": jax.tree.map(lambda *x: np.stack(x), *layers)}
    stacked = case.make(NUM_STEPS, stacked="^layers/")
    for tx, params in ((case.tx, apart), (stacked, together)):
        step = jax.jit(lambda g, s, p, tx=tx: tx.update(g, s, p, value=1.0))
        state = tx.init(params)
        assert isinstance(state, OptimizerState)
        for i in range(4):
            grads = jax.tree.map(lambda p, i=i: np.sin(3 * p + i), params)
            updates, state = step(grads, state, params)
            params = optax.apply_updates(params, updates)
        if "layers" in params:
            found = params["layers"]
        else:
            expected = jax.tree.map(lambda *x: jnp.stack(x), *params.values())
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
