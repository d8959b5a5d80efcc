"""Masks, schedules and hyper-parameters of the user's own, of both optimizers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_cases import assert_close, assert_same, noisy_theta, types

import meta_opt
from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.decisions import read_decisions
from meta_opt.optimizers.masks import expand_mask
from meta_opt.optimizers.step import optimizer_step
from meta_opt.optimizers.update_rule import RMS_STEP, WEIGHT_DECAY, scheduled_step

SMALL = ControllerConfig(global_hidden=4, tensor_hidden=3)
NUM_STEPS = 40
STACKED = "^text/layers$"
RULES = {
    "hand_designed": meta_opt.hand_designed,
    "learned": functools.partial(
        meta_opt.learned_optimizer, theta=noisy_theta(SMALL), config=SMALL
    ),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def make_params():
    """A kernel in a modality group of its own, two stacked ones, a bias."""
    rng = np.random.default_rng(0)
    shapes = {
        "vision": {"kernel": (4, 6)},
        "text": {"layers": (2, 4, 6)},
        "head": {"bias": (6,)},
    }
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32),
        shapes,
        is_leaf=lambda s: isinstance(s, tuple),
    )


def make_grads(steps=3):
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(
            lambda p: jnp.asarray(1 + rng.normal(size=p.shape), jnp.float32),
            make_params(),
        )
        for _ in range(steps)
    ]


def run(tx, params, grads, state=None):
    """The updates of each step, and the last state."""
    state = tx.init(params) if state is None else state
    seen = []
    for g in grads:
        updates, state = tx.update(g, state, params, value=jnp.float32(1.0))
        params = optax.apply_updates(params, updates)
        seen.append(updates)
    return seen, state


# mask


FREEZE_TEXT = {
    "prefix": {"vision": True, "text": False, "head": True},
    "tree": jax.tree_util.tree_map_with_path(
        lambda path, _: "text" not in str(path), make_params()
    ),
    "function": lambda params: {name: name != "text" for name in params},
    "numpy": {"vision": np.True_, "text": np.False_, "head": jnp.asarray(True)},
}


@each_rule
@pytest.mark.parametrize("form", FREEZE_TEXT)
def test_a_mask_freezes_and_the_others_train_as_if_alone(rule, form):
    params, grads = make_params(), make_grads()
    tx = rule(NUM_STEPS, stacked=STACKED, mask=FREEZE_TEXT[form])
    found, state = run(tx, params, grads)

    def rest(tree):
        return {name: x for name, x in tree.items() if name != "text"}

    expected, alone = run(rule(NUM_STEPS), rest(params), [*map(rest, grads)])
    for updates, plain in zip(found, expected, strict=True):
        assert types(updates) == types(params)
        assert not np.any(updates["text"]["layers"])
        assert_same(rest(updates), plain)
    assert jax.tree.leaves(state.momentum["text"]) == []
    assert_same(jax.tree.leaves(state), jax.tree.leaves(alone))


@each_rule
def test_frozen_parameters_may_be_of_any_type(rule):
    params = {"kernel": jnp.ones((2, 3)), "table": jnp.arange(4, dtype=jnp.int8)}
    tx = rule(NUM_STEPS, mask={"kernel": True, "table": False})

    def loss(params):
        return jnp.sum(params["kernel"] ** 2) + params["table"][0]

    grads = jax.grad(loss, allow_int=True)(params)
    updates, state = jax.eval_shape(
        lambda g, p: tx.update(g, tx.init(p), p), grads, params
    )
    assert types(updates) == types(params)
    assert len(jax.tree.leaves(state.momentum)) == 1
    with pytest.raises(TypeError, match=r"'table' has type int8; .* with mask="):
        rule(NUM_STEPS).init(params)


@each_rule
def test_a_mask_that_trains_nothing(rule):
    params = make_params()
    updates, _ = jax.eval_shape(
        lambda p: (tx := rule(NUM_STEPS, mask=False)).update(p, tx.init(p), p), params
    )
    assert types(updates) == types(params)


@each_rule
@pytest.mark.parametrize("name", ["mask", "weight_decay_mask"])
def test_bad_masks_are_named(rule, name):
    params = make_params()

    def init(mask):
        rule(NUM_STEPS, **{name: mask}).init(params)

    bad = [
        (
            {"vision": True, "txet": True, "head": True},
            r"'txet', which is not a parameter",
        ),
        ({"vision": True, "head": True}, r"nothing for parameter 'text/layers'"),
        (lambda p: {"vision": {"kernel": True}}, r"nothing for parameter 'head/bias'"),
        ([True, False, True], r"'0', which is not a parameter"),
    ]
    for mask, text in bad:
        with pytest.raises(ValueError, match=rf"^{name} has {text}.*\Z") as caught:
            init(mask)
        assert "\n" not in str(caught.value)
    for mask, text in [
        ({"vision": 1.0, "text": True, "head": True}, r" at 'vision' is 1\.0 of type"),
        ("head", " is 'head' of type str; it must be True or False"),
    ]:
        with pytest.raises(TypeError, match=f"^{name}{text}"):
            init(mask)
    with pytest.raises(TypeError, match=rf"^{name} is .*known when the step is traced"):
        jax.eval_shape(init, jnp.asarray(True))


def test_a_tree_that_can_be_called_is_a_tree():
    @jax.tree_util.register_dataclass
    @__import__("dataclasses").dataclass
    class Module:
        kernel: object
        bias: object

        def __call__(self, x):
            raise AssertionError("a mask was called")

    params = Module(jnp.ones((2, 2)), jnp.ones(2))
    assert expand_mask("mask", Module(True, False), params) == (True, False)


# weight_decay_mask


def decay_terms(rule, on, off):
    """Updates under one decay mask minus those under another, and the state."""
    params, grads = make_params(), make_grads(1)
    with_decay, state = run(
        rule(NUM_STEPS, stacked=STACKED, weight_decay_mask=on), params, grads
    )
    without, _ = run(
        rule(NUM_STEPS, stacked=STACKED, weight_decay_mask=off), params, grads
    )
    return jax.tree.map(jnp.subtract, with_decay[0], without[0]), state


@each_rule
def test_the_decay_mask_makes_the_difference_of_the_decay_term(rule):
    params = make_params()
    found, state = decay_terms(rule, None, False)
    decided = read_decisions(state)
    first = float(scheduled_step(0, NUM_STEPS))
    for group, leaf in (("vision", "kernel"), ("text", "layers")):
        # Of the stacked ones both layers are decided alike, to a few percent.
        step = first * decided[f"{group}/step"]
        expected = -step * decided[f"{group}/weight_decay"] * params[group][leaf]
        bound = {"rtol": 1e-3, "atol": 1e-7} if group == "vision" else {"rtol": 0.1}
        np.testing.assert_allclose(found[group][leaf], expected, **bound)
    assert not np.any(found["head"]["bias"])


def test_the_decay_mask_replaces_the_built_in_choice():
    params = make_params()
    mask = {"vision": False, "text": True, "head": True}
    found, _ = decay_terms(meta_opt.hand_designed, mask, lambda params: False)
    step = float(scheduled_step(0, NUM_STEPS))
    assert not np.any(found["vision"]["kernel"])
    for group, leaf in (("text", "layers"), ("head", "bias")):
        expected = -step * WEIGHT_DECAY * params[group][leaf]
        np.testing.assert_allclose(found[group][leaf], expected, rtol=1e-3, atol=1e-7)


def test_decay_is_masked_for_parameters_that_a_mask_leaves():
    mask = {"vision": True, "text": False, "head": True}
    decays = {"vision": False, "text": True, "head": True}
    params, grads = make_params(), make_grads(1)
    both = meta_opt.hand_designed(NUM_STEPS, mask=mask, weight_decay_mask=decays)
    found, _ = run(both, params, grads)
    plain, _ = run(
        meta_opt.hand_designed(NUM_STEPS, weight_decay_mask=decays), params, grads
    )
    assert_close(found[0]["head"], plain[0]["head"])
    assert_close(found[0]["vision"], plain[0]["vision"])
    assert not np.any(found[0]["text"]["layers"])


# schedule


@each_rule
def test_a_schedule_replaces_warm_up_and_cosine(rule):
    params, grads = make_params(), make_grads(4)

    def built_in(step):
        return scheduled_step(step, NUM_STEPS) / RMS_STEP

    found, _ = run(rule(NUM_STEPS, schedule=built_in), params, grads)
    expected, _ = run(rule(NUM_STEPS), params, grads)
    assert_close(found, expected, rtol=1e-5, atol=1e-8)


@each_rule
def test_a_constant_schedule_scales_the_step_and_goes_on_beyond_the_end(rule):
    params, grads = make_params(), make_grads(1)
    state = rule(2).init(params)._replace(count=jnp.int32(5))
    sizes = {}
    for multiplier in (1.0, np.float32(0.5)):
        for schedule in (multiplier, lambda step, x=multiplier: x):
            (updates,), after = run(rule(2, schedule=schedule), params, grads, state)
            sizes.setdefault(float(multiplier), []).append(updates)
            assert float(after.step_size) == pytest.approx(RMS_STEP * multiplier)
    for whole, half in zip(sizes[1.0], sizes[0.5], strict=True):
        assert_close(half, jax.tree.map(lambda x: 0.5 * x, whole), rtol=1e-5)
        assert all(np.all(x != 0) for x in jax.tree.leaves(whole))
    (updates,), _ = run(rule(2), params, grads, state)
    assert not any(np.any(x) for x in jax.tree.leaves(updates))


def test_a_schedule_is_called_with_the_step():
    seen = []

    def schedule(step):
        seen.append((int(step), step.dtype))
        return 1.0

    run(
        meta_opt.hand_designed(NUM_STEPS, schedule=schedule),
        make_params(),
        make_grads(),
    )
    assert seen == [(0, jnp.int32), (1, jnp.int32), (2, jnp.int32)]


@each_rule
def test_bad_schedules_are_named(rule):
    for bad in ("cosine", True, {"peak": 1.0}):
        text = (
            f"schedule is {re.escape(repr(bad))} of type {type(bad).__name__}; .*step"
        )
        with pytest.raises(TypeError, match=text):
            rule(NUM_STEPS, schedule=bad)
    params = make_params()
    for bad in (lambda step: jnp.ones(3), jnp.ones(3)):
        tx = rule(NUM_STEPS, schedule=bad)
        with pytest.raises(ValueError, match=r"schedule has shape \(3,\); .*a scalar"):
            tx.update(params, tx.init(params), params)


# optax.inject_hyperparams and optax.tree_map_params


@each_rule
def test_hyper_parameters_can_be_injected(rule):
    params, grads = make_params(), make_grads(4)
    shape = optax.linear_schedule(1.0, 0.0, NUM_STEPS)
    make = optax.inject_hyperparams(rule)
    tx = make(num_steps=NUM_STEPS, schedule=shape)
    compiled = optimizer_step._cache_size()
    found, state = run(tx, params, grads)
    # The optimizer is created again for every step, but compiled once.
    assert optimizer_step._cache_size() == compiled + 1
    assert float(state.hyperparams["schedule"]) == pytest.approx(float(shape(3)))
    expected, plain = run(rule(NUM_STEPS, schedule=shape), params, grads)
    assert_close(found, expected)
    assert_close(state.inner_state.momentum, plain.momentum)
    # No buffer is in the state twice, so that it can be donated.
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)

    # The length is one of them, and may change on the way.
    step = jax.jit(make(num_steps=NUM_STEPS).update, donate_argnums=1)
    state = make(num_steps=NUM_STEPS).init(params)
    state.hyperparams["num_steps"] = jnp.int32(4)
    for g, size in zip(grads, (1.0, 1.0, 0.75, 0.25), strict=True):
        updates, state = step(g, state, params, value=jnp.float32(1.0))
        assert float(state.inner_state.step_size) == pytest.approx(RMS_STEP * size)
    assert int(state.inner_state.num_steps) == 4
    assert any(np.any(x) for x in jax.tree.leaves(updates))
    updates, state = step(g, state, params, value=jnp.float32(1.0))
    assert not any(np.any(x) for x in jax.tree.leaves(updates))


@each_rule
def test_a_donated_state_leaves_the_length_to_its_owner(rule):
    num_steps = jnp.int32(NUM_STEPS)
    state = rule(num_steps).init({"bias": jnp.ones(2)})
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
    assert state.num_steps.is_deleted() and int(num_steps) == NUM_STEPS


@each_rule
def test_an_injected_length_that_is_no_integer_is_named(rule):
    params = make_params()
    make = optax.inject_hyperparams(rule)
    for bad in (40.0, optax.constant_schedule(40.0)):
        with pytest.raises(
            TypeError, match=r"num_steps has shape \(\) and type float32"
        ):
            make(num_steps=bad).init(params)
    with pytest.raises(TypeError, match="num_steps is '40' of type str"):
        make(num_steps="40").init(params)


def wrap(name, rule):
    if name == "plain":
        return rule(NUM_STEPS)
    if name == "mask":
        return rule(NUM_STEPS, mask=FREEZE_TEXT["tree"])
    if name == "chain":
        return optax.chain(optax.clip_by_global_norm(1.0), rule(NUM_STEPS))
    if name == "masked":
        return optax.masked(rule(NUM_STEPS), FREEZE_TEXT["tree"])
    if name == "multi_steps":
        steps = optax.MultiSteps(rule(NUM_STEPS), 2)
        return optax.GradientTransformationExtraArgs(steps.init, steps.update)
    if name == "inject":
        return optax.inject_hyperparams(rule)(NUM_STEPS)
    return optax.apply_if_finite(rule(NUM_STEPS), 3)


WRAPPERS = ("plain", "mask", "chain", "masked", "multi_steps", "inject", "finite")


@each_rule
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_tree_map_params_sees_only_what_has_the_parameters_shapes(rule, wrapper):
    tx, params = wrap(wrapper, rule), make_params()
    state = tx.init(params)
    seen = []

    def check(leaf, param):
        if not isinstance(leaf, optax.MaskedNode):
            assert leaf.shape == param.shape
            seen.append(leaf.dtype)
        return leaf

    for tree_map_params in (optax.tree_map_params, optax.tree_utils.tree_map_params):
        seen.clear()
        found = tree_map_params(
            tx,
            check,
            state,
            params,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        )
        assert_same(found, state)
        # The momentum of each, and MultiSteps' own sums of gradients.
        trained = 2 if "mask" in wrapper else 3
        assert seen.count(jnp.bfloat16) == trained
        assert len(seen) == trained + 3 * (wrapper == "multi_steps")


# diagnostics


def rising_and_broken():
    """Seven steps: three good ones, three that are broken, a good one."""
    good = make_grads(4)
    bad = jax.tree.map(lambda g: g * jnp.nan, good[0])
    return [*good[:3], bad, bad, bad, good[3]]


@each_rule
def test_diagnostics_count_steps_and_skips(rule):
    params, tx = make_params(), rule(5, stacked=STACKED)
    found = [meta_opt.diagnostics(state := tx.init(params))]
    for g in rising_and_broken():
        _, state = tx.update(g, state, params, value=1.0)
        found.append(meta_opt.diagnostics(state))
    assert [d["steps"] for d in found] == [*range(8)]
    assert [d["steps_taken"] for d in found] == [0, 1, 2, 3, 3, 3, 3, 4]
    assert [d["skipped"] for d in found] == [0, 0, 0, 0, 1, 2, 3, 3]
    assert [d["consecutive_skips"] for d in found] == [0, 0, 0, 0, 1, 2, 3, 0]
    assert [d["steps_beyond"] for d in found] == [0, 0, 0, 0, 0, 0, 1, 2]
    assert {d["num_steps"] for d in found} == {5} and found[-1]["fallback"] == 0.0
    kinds = {k: float if k.partition("/")[0] in FLOATS else int for k in found[0]}
    for record in found:
        assert {k: type(v) for k, v in record.items()} == kinds
    assert [d["step_size"] > 0 for d in found] == [False, True, True, True] + [
        False
    ] * 4


FLOATS = ("fallback", "step_size", "step")


@each_rule
def test_the_step_of_a_group_is_its_updates_rms(rule):
    params, grads = make_params(), make_grads(2)
    # Without decay, and of one direction, the update's RMS is the step.
    tx = rule(NUM_STEPS, weight_decay_mask=False)
    seen, state = run(tx, params, grads)
    found = meta_opt.diagnostics(state)
    sizes = {
        f"step/{group}": float(jnp.sqrt(jnp.mean(jnp.square(x))))
        for group, tree in seen[-1].items()
        for x in jax.tree.leaves(tree)
    }
    assert set(sizes) == {k for k in found if k.startswith("step/")}
    for name, size in sizes.items():
        if rule is meta_opt.hand_designed:
            assert found[name] == pytest.approx(size, rel=1e-4)
        assert 0.5 * found[name] < size < 1.001 * found[name]


@pytest.mark.parametrize("wrapper", (*WRAPPERS, "multi_transform", "dict", "nnx"))
def test_diagnostics_find_the_state_anywhere(wrapper):
    rule, params = meta_opt.hand_designed, make_params()
    if wrapper == "nnx":
        from flax import nnx

        model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, rule(NUM_STEPS), wrt=nnx.Param)
        optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model)))
        assert meta_opt.diagnostics(optimizer.opt_state)["steps"] == 1
        return
    if wrapper == "multi_transform":
        labels = {"vision": "ours", "text": "adam", "head": "adam"}
        tx = optax.multi_transform(
            {"ours": rule(NUM_STEPS), "adam": optax.adam(1e-3)}, labels
        )
    else:
        tx = wrap("plain" if wrapper == "dict" else wrapper, rule)
    state = tx.init(params)
    for g in make_grads(2):
        _, state = tx.update(g, state, params)
    found = meta_opt.diagnostics({"train": [state]} if wrapper == "dict" else state)
    assert found["steps"] == (1 if wrapper == "multi_steps" else 2)
    assert found["num_steps"] == NUM_STEPS and found["step/vision"] > 0


def test_states_that_cannot_be_diagnosed():
    params = make_params()
    tx = meta_opt.hand_designed(NUM_STEPS)
    state = tx.init(params)
    for wrong, count in ((optax.adam(0.1).init(params), 0), ((state, state), 2)):
        with pytest.raises(ValueError, match=f"a tuple, holds {count} states of meta_"):
            meta_opt.diagnostics(wrong)
    with pytest.raises(TypeError, match=r"opt_state is traced: .* outside of jax\.jit"):
        jax.eval_shape(lambda s: meta_opt.diagnostics(s)["step_size"], state)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    with pytest.raises(ValueError, match=r"several runs, its count has shape \(2,\)"):
        meta_opt.diagnostics(both)


def test_the_figure_of_diagnostics(tmp_path):
    params, tx = make_params(), meta_opt.hand_designed(5)
    state, history = tx.init(params), []
    for g in rising_and_broken():
        _, state = tx.update(g, state, params)
        history.append(meta_opt.diagnostics(state))
    meta_opt.plot_diagnostics(tmp_path / "steps.png", history)
    assert (tmp_path / "steps.png").stat().st_size > 10_000
    for wrong in ([], [{"train/loss": 1.0}]):
        text = rf"history of {len(wrong)} records has no .*meta_opt\.diagnostics\(state"
        with pytest.raises(ValueError, match=text):
            meta_opt.plot_diagnostics(tmp_path / "none.png", wrong)
    assert not (tmp_path / "none.png").exists()
