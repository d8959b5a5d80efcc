"""The learned optimizer, beside the hand-designed rule and under bad input."""

import dataclasses
import functools
import re
import tomllib
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from optimizer_cases import noisy_theta, types

import meta_opt
from meta_opt.optimizers.baselines import baseline
from meta_opt.optimizers.controller import (
    FEATURES,
    ControllerConfig,
    output_index,
)
from meta_opt.optimizers.decisions import read_decisions
from meta_opt.types import from_config

SMALL = ControllerConfig(global_hidden=4, tensor_hidden=3)
NUM_STEPS = 40
NONE = jnp.float32(jnp.nan)
"""Feedback that says: not now."""


def zero_theta():
    return meta_opt.init_theta(jax.random.key(0), SMALL)


def learned(num_steps=NUM_STEPS, theta=None, **settings):
    theta = zero_theta() if theta is None else theta
    return meta_opt.learned_optimizer(num_steps, theta=theta, config=SMALL, **settings)


RULES = {"hand_designed": meta_opt.hand_designed, "learned": learned}


def make_params():
    """Every kind of tensor, in few shapes: these compile sooner."""
    rng = np.random.default_rng(0)
    shapes = {
        "dense": {"kernel": (4, 6), "bias": (6,)},
        "attention": {"kernel": (4, 2, 3)},
        "tokens": {"embedding": (4, 6)},
        "temperature": (),
    }
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )


def make_grads(params, steps):
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(
            lambda p: jnp.asarray(1 + rng.normal(size=p.shape), jnp.float32), params
        )
        for _ in range(steps)
    ]


@functools.cache
def compiled():
    """The learned update for every test: theta, value and feedback are arguments."""

    @jax.jit
    def step(theta, grads, state, params, value, feedback):
        tx = learned(theta=theta)
        return tx.update(grads, state, params, value=value, feedback=feedback)

    return step


def run(update, state, params, grads, values, feedback=NONE):
    """Parameters and state after all steps, and each step's updates."""
    seen = []
    for g, v in zip(grads, values, strict=True):
        updates, state = update(g, state, params, value=v, feedback=feedback)
        params = optax.apply_updates(params, updates)
        seen.append(updates)
    return params, state, seen


def run_learned(theta, params, grads, values, feedback=NONE):
    def update(g, s, p, value, feedback):
        return compiled()(theta, g, s, p, value, feedback)

    return run(update, learned().init(params), params, grads, values, feedback)


def leaves(*trees):
    return zip(*map(jax.tree.leaves, trees), strict=True)


# Zero output weights


@functools.cache
def beside_the_rule():
    """Parameters, gradients and losses of six steps.

    One of the losses is not finite, and one of the gradients.
    """
    params = make_params()
    grads = make_grads(params, 3)
    grads.append(jax.tree.map(lambda g: g * jnp.nan, grads[0]))
    grads += make_grads(params, 2)
    return params, grads, [jnp.float32(v) for v in (2.0, 1.0, jnp.inf, 1.0, 3.0, 0.5)]


def test_zero_output_weights_are_the_hand_designed_rule():
    """To rounding, where XLA fuses; step by step."""
    params, grads, values = beside_the_rule()
    rule = meta_opt.hand_designed(NUM_STEPS)
    fused, state, _ = run_learned(zero_theta(), params, grads, values)
    plain, *_ = run(jax.jit(rule.update), rule.init(params), params, grads, values)
    assert int(state.guard.skipped) == 2
    for a, b, start in leaves(fused, plain, params):
        assert np.all(a != start)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_zero_output_weights_are_the_hand_designed_rule_bit_for_bit():
    """Operation by operation, each of which compiles on every shape."""
    params, grads, values = beside_the_rule()
    tx, rule = learned(), meta_opt.hand_designed(NUM_STEPS)
    fused, *_ = run_learned(zero_theta(), params, grads, values)

    # A scalar is a vector to the rule.
    params, *grads = [{**tree} for tree in (params, *grads)]
    for tree in (params, *grads):
        del tree["temperature"]
    with jax.disable_jit():
        found = run(tx.update, tx.init(params), params, grads, values)
        expected = run(rule.update, rule.init(params), params, grads, values)
    assert int(found[1].guard.skipped) == 2
    for a, b in leaves(found[0::2], expected[0::2]):
        np.testing.assert_array_equal(a, b)
    for a, b in leaves(found[1].momentum, expected[1].momentum):
        np.testing.assert_array_equal(a, b)
    for a, b in leaves(found[0], {k: fused[k] for k in params}):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# What the controller sees


def test_output_weights_change_the_updates():
    params, values = make_params(), [1.0] * 4
    grads = make_grads(params, 4)
    moved, *_ = run_learned(noisy_theta(SMALL), params, grads, values)
    plain, *_ = run_learned(zero_theta(), params, grads, values)
    for a, b, c in leaves(moved, plain, params):
        assert np.abs(a - b).max() > 0.01 * np.abs(b - c).max()
    for a, b in leaves(moved, plain):
        assert np.isfinite(a).all() and np.abs(a - b).max() < 0.1


@pytest.mark.parametrize("scale", [2.0**20, 2.0**-20])
def test_updates_do_not_depend_on_the_scale_of_the_loss(scale):
    # Powers of two (about 1e6), so that rounding to bfloat16 is the same as well.
    params = make_params()
    grads = make_grads(params, 6)
    values = jnp.array([3.0, 2.0, 2.5, 1.5, 1.0, 1.2])
    theta = noisy_theta(SMALL)
    _, _, expected = run_learned(theta, params, grads, values, jnp.float32(2.0))
    scaled = [jax.tree.map(lambda x: scale * x, g) for g in grads]
    _, _, found = run_learned(
        theta, params, scaled, scale * values, jnp.float32(2.0 * scale)
    )
    for a, b in leaves(found, expected):
        size = np.sqrt(np.mean(np.square(b)))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * size)


def test_feedback_is_heard_and_nan_is_not():
    params, values = make_params(), [1.0] * 3
    grads = make_grads(params, 3)
    theta = noisy_theta(SMALL, scale=0.1)
    silent, state, _ = run_learned(theta, params, grads, values)
    assert float(state.progress.feedback_step) == -1
    infinite, *_ = run_learned(theta, params, grads, values, jnp.float32(jnp.inf))
    for a, b in leaves(silent, infinite):
        np.testing.assert_array_equal(a, b)
    heard, state, _ = run_learned(theta, params, grads, values, jnp.float32(4.0))
    assert float(state.progress.feedback_step) == 2
    assert float(state.progress.gap) == pytest.approx(3.0)
    assert any(np.any(a != b) for a, b in leaves(silent, heard))


def test_a_broken_step_leaves_everything_as_it_was():
    params = make_params()
    grads = make_grads(params, 3)
    theta = noisy_theta(SMALL)
    update = functools.partial(compiled(), theta)
    _, state, _ = run_learned(theta, params, grads, [1.0] * 3)
    bad = {**grads[0], "temperature": jnp.float32(jnp.inf)}
    for g, value in ((bad, 1.0), (grads[0], jnp.nan)):
        updates, after = update(g, state, params, jnp.float32(value), NONE)
        assert not any(np.any(x) for x in jax.tree.leaves(updates))
        assert int(after.guard.skipped) == 1 and int(after.count) == 4
        for name in ("momentum", "second", "history", "progress", "controller"):
            for a, b in leaves(getattr(after, name), getattr(state, name)):
                np.testing.assert_array_equal(a, b)


def test_steps_past_the_end_are_zero():
    params = make_params()
    grads = make_grads(params, 1)
    state = learned().init(params)._replace(count=jnp.int32(NUM_STEPS))
    updates, _ = compiled()(noisy_theta(SMALL), grads[0], state, params, 1.0, NONE)
    assert not any(np.any(x) for x in jax.tree.leaves(updates))


# Bounds of the outputs


def decided(theta, config=SMALL):
    """What is decided of one kernel on the first step."""
    params = {"kernel": jnp.full((4, 6), 0.5)}
    tx = meta_opt.learned_optimizer(NUM_STEPS, theta=theta, config=config)
    _, state = tx.update(params, tx.init(params), params)
    return {k.partition("/")[2]: v for k, v in read_decisions(state).items()}


def pushed(**outputs):
    """Weights that add to outputs, whatever the features are."""
    theta = zero_theta()
    for name, value in outputs.items():
        place = output_index(SMALL, f"constant>{name}")
        theta["output"]["kernel"] = theta["output"]["kernel"].at[place].set(value)
    return theta


def test_controls_stay_within_their_bounds():
    usual = decided(zero_theta())
    bounds = {
        "step": (-4.0, 2.5),
        "one_minus_b1": (-0.7, 0.7),
        "one_minus_b2": (-1.0, 1.0),
        "weight_decay": (-3.0, 1.5),
    }
    low, high = (decided(pushed(**dict.fromkeys(bounds, x))) for x in (-1e3, 1e3))
    slight = decided(pushed(**dict.fromkeys(bounds, 1e-2)))
    for name, (least, most) in bounds.items():
        assert low[name] == pytest.approx(usual[name] * np.exp(least), rel=1e-4)
        assert high[name] == pytest.approx(usual[name] * np.exp(most), rel=1e-4)
        assert slight[name] == pytest.approx(usual[name] * np.exp(1e-2), rel=1e-4)
    mixed = decided(pushed(adam=1e3, sign=-1e3, momentum=0.5))
    total = 3 + np.tanh(0.5)
    expected = {
        "orthogonal": 1 / total,
        "adam": 1 / total,
        "sign": -1 / total,
        "momentum": np.tanh(0.5) / total,
    }
    for name, value in expected.items():
        assert mixed[name] == pytest.approx(value, rel=1e-4)


def test_features_out_of_range_fade_the_outputs():
    theta = pushed(step=-1.0)
    wide = ((-100.0, 100.0),) * len(FEATURES)

    def step(least, most):
        """The step under a range of the constant, which is 1."""
        ranges = list(wide)
        ranges[FEATURES.index("constant")] = (least, most)
        config = dataclasses.replace(SMALL, feature_range=tuple(ranges))
        return np.log(decided(theta, config)["step"])

    inside = -4.0 * np.tanh(1.0 / 4.0)
    assert step(-100.0, 100.0) == pytest.approx(inside, rel=1e-4)
    # Clipped to 0.9, and a tenth of the range's width (0.1 more than 0.9) outside.
    by = 0.9 * np.exp(-0.1)
    assert step(0.0, 0.9) == pytest.approx(-4.0 * np.tanh(by / 4.0), rel=1e-4)
    # Ten widths outside nothing is left of it.
    assert abs(step(0.0, 0.0)) < 1e-4
    # A feature that has no weight takes part in this, too.
    ranges = list(wide)
    ranges[FEATURES.index("loss_known")] = (0.4, 1.0)
    config = dataclasses.replace(SMALL, feature_range=tuple(ranges))
    by = np.exp(-0.4 / 0.7)
    found = np.log(decided(theta, config)["step"])
    assert found == pytest.approx(-4.0 * np.tanh(by / 4.0), rel=1e-4)


@pytest.mark.parametrize("weights", ["noise", "shipped"])
def test_updates_do_not_depend_on_names(weights):
    """Nor on the order that names give the parameters."""
    start = make_params()
    names = dict(zip(start, ("zeta/lora_B", "b", "vision", "head"), strict=True))
    settings = {"theta": noisy_theta(SMALL), "config": SMALL}
    if weights == "shipped":
        settings = {}
    tx = meta_opt.learned_optimizer(NUM_STEPS, **settings)
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, value=1.0, feedback=2.0))

    def updates(rename):
        params = rename(start)
        state = tx.init(params)
        for grads in make_grads(start, 3):
            out, state = step(rename(grads), state, params)
            params = optax.apply_updates(params, out)
        return params

    plain = updates(lambda tree: tree)
    renamed = updates(lambda tree: {names[k]: v for k, v in tree.items()})
    for name, other in names.items():
        for a, b in leaves(plain[name], renamed[other]):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# Size of the state


def transformer_like(width=256, layers=4, vocabulary=4096):
    """Shapes of a small language model, its layers stacked."""
    kernel = {
        "attention/query/kernel": (layers, width, 4, width // 4),
        "attention/out/kernel": (layers, 4, width // 4, width),
        "mlp/up/kernel": (layers, width, 4 * width),
        "mlp/up/bias": (layers, 4 * width),
        "mlp/down/kernel": (layers, 4 * width, width),
        "norm/scale": (layers, width),
    }
    shapes = {f"layers/{k}": s for k, s in kernel.items()}
    shapes["tokens/embedding"] = (vocabulary, width)
    return {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}


@pytest.mark.parametrize("name", RULES)
def test_state_is_at_most_2_2_bytes_a_parameter(name):
    params = transformer_like()
    stacked = None if name == "hand_designed" else "^layers/"
    if name == "learned":  # the controller of the default width
        theta = jax.eval_shape(lambda: meta_opt.init_theta(jax.random.key(0)))
        tx = meta_opt.learned_optimizer(NUM_STEPS, theta=theta, stacked=stacked)
    else:
        tx = meta_opt.hand_designed(NUM_STEPS, stacked="^layers/")
    state = jax.eval_shape(tx.init, params)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert size / sum(x.size for x in jax.tree.leaves(params)) <= 2.2


@pytest.mark.parametrize(("platform", "tied"), [("cpu", True), ("tpu", False)])
def test_a_cpu_widens_large_momenta_no_sooner_than_there_are_gradients(platform, tied):
    # It is up to a tenth of the peak of whole steps. In small programs XLA orders these
    # operations well by itself, so that what is looked at here is the order asked for.
    params = {"w": jax.ShapeDtypeStruct((256, 128), jnp.float32)}
    tx = meta_opt.learned_optimizer(NUM_STEPS)
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, value=jnp.float32(1.0)))
    traced = update.trace(params, jax.eval_shape(tx.init, params), params)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    both = r"optimization_barrier .*256x128xf32>, tensor<[0-9x]*256x128xbf16>"
    assert bool(re.search(both, text)) == tied


# Kinds of parameters


class Tower(nnx.Module):
    def __init__(self, rngs):
        self.tokens = nnx.Embed(8, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_trees_of_every_kind(rule):
    """NNX State, lists and tuples, one array, nothing: types go through unchanged."""
    state = nnx.state(Tower(nnx.Rngs(0)), nnx.Param)
    trees = [state, [jnp.ones((3, 2)), (jnp.ones(2), {})], jnp.ones((2, 2)), {}, ()]
    for params in trees:
        tx = rule(NUM_STEPS)
        updates, _ = jax.eval_shape(
            lambda p, tx=tx: tx.update(p, tx.init(p), p, value=1.0), params
        )
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert [x.shape for x in jax.tree.leaves(updates)] == [
            x.shape for x in jax.tree.leaves(params)
        ]


# Numbers


def test_x64_changes_nothing_and_takes_float64_parameters():
    params, values = make_params(), [2.0, 1.0, 1.5]
    grads = make_grads(params, 3)
    theta = noisy_theta(SMALL)
    _, state, expected = run_learned(theta, params, grads, values)
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(True):
            args = jax.tree.map(lambda x, t=dtype: np.asarray(x, t), (params, grads))
            _, found_state, found = run_learned(theta, *args, values)
        assert types(found_state) == types(state)
        for a, b in leaves(found, expected):
            assert a.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_x64_takes_a_length_of_any_integer_type():
    params = {"kernel": jnp.ones((2, 3))}
    with jax.enable_x64(True):
        for num_steps in (40, np.int64(40), jnp.asarray(40), jnp.int16(40)):
            tx = learned(num_steps, theta=noisy_theta(SMALL))
            state = jax.eval_shape(tx.init, params)
            updates, after = jax.eval_shape(
                lambda s, tx=tx: tx.update(params, s, params, value=1.0), state
            )
            assert types(after) == types(state) and types(updates) == types(params)


def test_half_precision_parameters_are_warned_of_once_and_measured():
    half = jnp.asarray([0.25, -1.0, 8.0, 0.0], jnp.bfloat16)
    params = {"kernel": half, "scale": jnp.float16(100.0), "bias": jnp.ones(5)}
    for rule in RULES.values():
        tx = rule(NUM_STEPS)
        text = (
            r"5 parameters in 2 tensors are bfloat16 and float16: .*"
            r"At 3 of them .* RMS 0\.002, .* float32 and cast them"
        )
        with pytest.warns(UserWarning, match=text):
            tx.init(params)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tx.init(params)  # Said once.
            jax.eval_shape(rule(NUM_STEPS).init, params)
            rule(NUM_STEPS).init({"bias": params["bias"]})


# What surrounds a run


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_orbax_alone_saves_and_restores_the_state(rule, tmp_path):
    """Without `meta_opt.checkpoints`, which also takes what Orbax does not."""
    params = make_params()
    tx = rule(NUM_STEPS)
    grads = jax.tree.map(jnp.sin, params)
    _, state = tx.update(grads, tx.init(params), params, value=2.0)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", tx.init(params))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_jax_debug_nans_finds_none(rule):
    params = make_params()
    tx = rule(NUM_STEPS)
    with jax.debug_nans(True), jax.debug_infs(True):
        state = tx.init(params)
        for given in ({}, {"value": 2.0}):
            updates, state = tx.update(params, state, params, **given)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_tensor_whose_squares_overflow_spoils_no_other(rule):
    params = {"huge": jnp.full((4, 3), 3e19), "other": jnp.ones((4, 3))}
    tx = rule(NUM_STEPS)
    state = tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    for _ in range(2):
        updates, state = tx.update(grads, state, params, value=1.0)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))
    assert np.abs(updates["other"]).max() > 0


# Bad input


BAD_LENGTHS = {
    "'100' of type str": "100",
    "100.0 of type float": 100.0,
    "True of type bool": True,
    "None of type NoneType": None,
    r"shape \(1,\) and type int32": np.ones(1, np.int32),
    r"shape \(\) and type float32": np.float32(100.0),
    r"shape \(\) and type bool": np.bool_(True),
}


@pytest.mark.parametrize("given", BAD_LENGTHS)
def test_a_length_that_is_no_integer(given):
    bad = BAD_LENGTHS[given]
    arrays = [jnp.asarray(bad)] if isinstance(bad, np.ndarray | np.generic) else []
    for make in (*RULES.values(), functools.partial(baseline, "adamw")):
        for num_steps in (bad, *arrays):
            with pytest.raises(TypeError, match=f"num_steps (is|has) {given}; .* int"):
                make(num_steps)
        for num_steps in (np.int32(0), jnp.int32(-1)):
            with pytest.raises(ValueError, match=r"num_steps is .*at least 1"):
                make(num_steps)
        with pytest.raises(ValueError, match=r"10000000000; .* at most 2147483647"):
            make(10**10)
        make(np.int64(3))
        jax.eval_shape(lambda n, make=make: make(n) and n, jnp.int32(3))
    config = meta_opt.OptimizerConfig(name="learned", num_steps=bad)
    with pytest.raises(TypeError, match="num_steps"):
        meta_opt.make_optimizer(config)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_loss_that_is_no_scalar(rule):
    params = {"kernel": jnp.ones((2, 3))}
    tx = rule(NUM_STEPS)
    state = tx.init(params)
    for name in ("value", "feedback"):
        for shape in ((1,), (8,)):
            text = rf"{name} has shape \({shape[0]},\); .* jnp.mean\({name}\)"
            with pytest.raises(ValueError, match=text):
                tx.update(params, state, params, **{name: jnp.ones(shape)})
        with pytest.raises(TypeError, match=rf"{name} is a tuple of 2; .*has_aux=True"):
            tx.update(params, state, params, **{name: (jnp.float32(1.0), {"n": 1})})
        with pytest.raises(TypeError, match=f"{name} is complex"):
            tx.update(params, state, params, **{name: 1 + 2j})
    with pytest.raises(TypeError, match="gradient of 'kernel' has type complex64"):
        tx.update({"kernel": 1j * params["kernel"]}, state, params)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_loss_of_one_device_beside_gradients_of_all(rule):
    params = {"kernel": jnp.ones((2, 3))}
    tx = rule(NUM_STEPS)
    mesh = Mesh(jax.devices()[:2], ("data",))
    everywhere, apart = PartitionSpec(), PartitionSpec("data")

    def step(state, params, losses, mean, name):
        loss = jnp.mean(losses)
        if mean:
            loss = jax.lax.pmean(loss, "data")
        return tx.update(params, state, params, **{name: loss})

    for name in ("value", "feedback"):
        for mean in (False, True):
            mapped = jax.shard_map(
                functools.partial(step, mean=mean, name=name),
                mesh=mesh,
                in_specs=(everywhere, everywhere, apart),
                out_specs=everywhere,
            )
            given = (tx.init(params), params, jnp.ones(4))
            if mean:
                jax.eval_shape(mapped, *given)
                continue
            text = rf"{name} varies over .* data, .* jax.lax.pmean\({name}, 'data'\)"
            with pytest.raises(ValueError, match=text):
                jax.eval_shape(mapped, *given)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_python_numbers_among_the_parameters(rule):
    tx = rule(NUM_STEPS)
    good = {"dense": {"kernel": jnp.ones((2, 3)), "scale": jnp.float32(1.0)}}
    for number in (1.0, 2):
        bad = {"dense": {**good["dense"], "scale": number}}
        text = f"'dense/scale' is {number} of type .*jnp.asarray"
        with pytest.raises(TypeError, match=text):
            tx.init(bad)
        with pytest.raises(TypeError, match=text):
            tx.update(good, tx.init(good), bad)
    with pytest.raises(TypeError, match=r"'act' is .*eqx\.filter\(model"):
        tx.init({"act": jnp.tanh, **good})


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_state_of_another_optimizer(rule):
    params = {"kernel": jnp.ones((2, 3))}
    tx = rule(NUM_STEPS)
    others = {name: make(NUM_STEPS).init(params) for name, make in RULES.items()}
    wrong = [
        ("a ScaleByAdamState", optax.scale_by_adam().init(params)),
        ("a tuple", optax.adam(0.1).init(params)),
        ("a NoneType", None),
    ]
    if rule is learned:
        wrong.append(("that of the hand-designed rule", others["hand_designed"]))
    else:
        wrong.append(("that of the learned optimizer", others["learned"]))
    for found, state in wrong:
        with pytest.raises(TypeError, match=rf"state is {found}, .*tx.init\(params\)"):
            tx.update(params, state, params)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_bad_arguments(rule):
    with pytest.raises(ValueError, match="num_steps is 0; it must be at least 1"):
        rule(0)
    params = {"dense": {"kernel": jnp.ones((2, 3))}}
    with pytest.raises(ValueError, match=r"stacked pattern 'leyers' .*dense/kernel"):
        rule(NUM_STEPS, stacked="leyers").init(params)
    with pytest.raises(ValueError, match=r"stacked pattern 'Dense' .*dense/kernel"):
        rule(NUM_STEPS, stacked="Dense").init(params)
    with pytest.raises(ValueError, match=r"groups pattern 'visoin' matches no"):
        rule(NUM_STEPS, groups=[("visoin", "vision")]).init(params)
    with pytest.raises(ValueError, match="unknown group 'visual'; groups: vision"):
        rule(NUM_STEPS, groups=[("dense", "visual")]).init(params)
    with pytest.raises(ValueError, match=r"'scale' is a scalar but stacked"):
        rule(NUM_STEPS, stacked="scale").init({"scale": jnp.ones(())})
    with pytest.raises(TypeError, match=r"parameter 'dense/steps' has type int32"):
        rule(NUM_STEPS).init({"dense": {"steps": jnp.int32(1)}})


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_bad_updates(rule):
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    tx = rule(NUM_STEPS)
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"tx.update\(grads, state, params\)"):
        tx.update(params, state)
    fewer = {"dense": {"kernel": jnp.ones((2, 3))}}
    with pytest.raises(ValueError, match=r"'dense/bias'.*gradients have nothing"):
        tx.update(fewer, state, params)
    transposed = {"dense": {**params["dense"], "kernel": jnp.ones((3, 2))}}
    with pytest.raises(ValueError, match=r"'dense/kernel': .*\(3, 2\).*\(2, 3\)"):
        tx.update(transposed, state, params)
    with pytest.raises(ValueError, match="'extra'"):
        tx.update({**params, "extra": jnp.ones(1)}, state, params)
    # A state of other parameters, as after a wrong restore.
    with pytest.raises(ValueError, match="parameters and the optimizer's state"):
        tx.update(fewer, state, fewer)
    sequence = {"dense": [params["dense"]["bias"], params["dense"]["kernel"]]}
    with pytest.raises(ValueError, match="gradients and parameters"):
        tx.update(sequence, state, params)


def test_bad_configs():
    with pytest.raises(ValueError, match=r"unknown optimizer 'adamm'; did you mean"):
        meta_opt.make_optimizer(meta_opt.OptimizerConfig(name="adamm"))
    with pytest.raises(ValueError, match=r"'learned' has no learning rate.*0\.1"):
        meta_opt.make_optimizer(meta_opt.OptimizerConfig(learning_rate=0.1))
    for name in ("sgd", "hand_designed"):
        with pytest.raises(ValueError, match="num_steps is 0"):
            meta_opt.make_optimizer(meta_opt.OptimizerConfig(name=name, num_steps=0))
    with pytest.raises(TypeError, match=r"directions=\['adam'\] of .* must be a tuple"):
        ControllerConfig(directions=["adam"])
    with pytest.raises(ValueError, match=r"1 pairs; there are"):
        ControllerConfig(feature_range=((0.0, 1.0),))
    with pytest.raises(ValueError, match=r"'learning_rte'; did you mean 'learning_r"):
        from_config(meta_opt.OptimizerConfig, {"learning_rte": 0.1})
    with pytest.raises(ValueError, match="config belongs to theta"):
        meta_opt.learned_optimizer(10, config=SMALL)
    config = from_config(
        meta_opt.OptimizerConfig, {"name": "sgd", "groups": [["a", "text"]]}
    )
    assert config.groups == (("a", "text"),) and hash(config)


def test_public_names():
    assert sorted(meta_opt.__all__) == sorted(meta_opt._MODULES)
    for name in meta_opt.__all__:
        assert getattr(meta_opt, name).__name__ == name
    assert set(meta_opt.__all__) <= set(dir(meta_opt))
    with pytest.raises(AttributeError, match=re.escape("'learned_optimiser'")):
        meta_opt.learned_optimiser  # noqa: B018


def test_types_are_part_of_the_package():
    root = Path(meta_opt.__file__).parent
    assert (root / "py.typed").is_file()
    project = tomllib.loads((root.parent / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["meta_opt"]
