"""The learned optimizer in the training loops of other libraries, and under wrappers.

Each loop trains the same small net on the same numbers; all have to trace their step
once and to end where a plain loop over a dict does.
"""

import functools
import itertools

import equinox
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState
from optimizer_cases import noisy_theta, types

import meta_opt
from meta_opt.optimizers.controller import ControllerConfig

CONFIG = ControllerConfig(global_hidden=4, tensor_hidden=3)
STEPS = 6
LAYERS = ("linear_0", "linear_1")
WRAPPERS = {
    "plain": lambda tx: tx,
    "multi_steps": lambda tx: optax.MultiSteps(tx, every_k_schedule=2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, max_consecutive_errors=3),
}


def make_tx(wrapper):
    tx = meta_opt.learned_optimizer(40, theta=noisy_theta(CONFIG), config=CONFIG)
    return WRAPPERS[wrapper](tx)


def start():
    rng = np.random.default_rng(0)
    shapes = {"linear_0": (3, 4), "linear_1": (4, 2)}
    return {
        name: {
            "kernel": jnp.asarray(rng.normal(size=shape), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=shape[1:]), jnp.float32),
        }
        for name, shape in shapes.items()
    }


def batches():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(STEPS, 8, 3)).astype(np.float32)
    return list(zip(x, np.sin(x[..., :2]) + 1.0, strict=True))


def mse(predicted, target):
    return jnp.mean(jnp.square(predicted - target))


def apply_net(params, x):
    first, last = (params[name] for name in LAYERS)
    hidden = jnp.tanh(jnp.dot(x, first["kernel"]) + jnp.expand_dims(first["bias"], 0))
    return jnp.dot(hidden, last["kernel"]) + jnp.expand_dims(last["bias"], 0)


def plain_loop(tx, traces, with_value=True):
    @jax.jit
    def step(params, state, x, y):
        traces.append("plain")
        loss, grads = jax.value_and_grad(lambda p: mse(apply_net(p, x), y))(params)
        extra = {"value": loss} if with_value else {}
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    params = start()
    state = tx.init(params)
    before = types(state)
    for x, y in batches():
        params, state = step(params, state, x, y)
        assert types(state) == before
    return params


def nnx_loop(tx, traces):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear_0 = nnx.Linear(3, 4, rngs=rngs)
            self.linear_1 = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.linear_1(jnp.tanh(self.linear_0(x)))

    @nnx.jit
    def step(net, optimizer, x, y):
        traces.append("nnx")
        loss, grads = nnx.value_and_grad(lambda net: mse(net(x), y))(net)
        optimizer.update(net, grads, value=loss)

    net = Net(nnx.Rngs(0))
    for name, layer in start().items():
        getattr(net, name).kernel.set_value(layer["kernel"])
        getattr(net, name).bias.set_value(layer["bias"])
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
    for x, y in batches():
        step(net, optimizer, x, y)
    return {
        name: {
            "kernel": getattr(net, name).kernel.get_value(),
            "bias": getattr(net, name).bias.get_value(),
        }
        for name in LAYERS
    }


def linen_loop(tx, traces):
    """Without the loss: `TrainState.apply_gradients` hands on none."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = jnp.tanh(linen.Dense(4, name="linear_0")(x))
            return linen.Dense(2, name="linear_1")(x)

    @jax.jit
    def step(state, x, y):
        traces.append("linen")
        grads = jax.grad(lambda p: mse(state.apply_fn({"params": p}, x), y))(
            state.params
        )
        return state.apply_gradients(grads=grads)

    state = TrainState.create(apply_fn=Net().apply, params=start(), tx=tx)
    # TrainState counts from a Python int, which is traced as another type.
    state = state.replace(step=jnp.int32(0))
    for x, y in batches():
        state = step(state, x, y)
    return state.params


def equinox_loop(tx, traces):
    class Linear(equinox.Module):
        bias: jax.Array
        kernel: jax.Array

    class Net(equinox.Module):
        linear_0: Linear
        linear_1: Linear
        activation: str = "tanh"

    def loss_of(net, x, y):
        params = {name: vars(getattr(net, name)) for name in LAYERS}
        return mse(apply_net(params, x), y)

    @equinox.filter_jit
    def step(net, state, x, y):
        traces.append("equinox")
        loss, grads = equinox.filter_value_and_grad(loss_of)(net, x, y)
        params = equinox.filter(net, equinox.is_array)
        updates, state = tx.update(grads, state, params, value=loss)
        return equinox.apply_updates(net, updates), state

    net = Net(**{name: Linear(**layer) for name, layer in start().items()})
    state = tx.init(equinox.filter(net, equinox.is_array))
    for x, y in batches():
        net, state = step(net, state, x, y)
    return {name: dict(vars(getattr(net, name))) for name in LAYERS}


def haiku_loop(tx, traces):
    net = haiku.without_apply_rng(
        haiku.transform(lambda x: haiku.nets.MLP([4, 2], activation=jnp.tanh)(x))
    )

    @jax.jit
    def step(params, state, x, y):
        traces.append("haiku")
        loss, grads = jax.value_and_grad(lambda p: mse(net.apply(p, x), y))(params)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    params = net.init(jax.random.key(0), batches()[0][0])
    assert sorted(params) == [f"mlp/~/{name}" for name in LAYERS]
    params = {
        f"mlp/~/{name}": {"w": layer["kernel"], "b": layer["bias"]}
        for name, layer in start().items()
    }
    state = tx.init(params)
    for x, y in batches():
        params, state = step(params, state, x, y)
    found = {name: params[f"mlp/~/{name}"] for name in LAYERS}
    return {name: {"kernel": x["w"], "bias": x["b"]} for name, x in found.items()}


@functools.cache
def expected(wrapper, with_value):
    traces = []
    params = plain_loop(make_tx(wrapper), traces, with_value)
    assert len(traces) == 1
    return params


LOOPS = {
    "nnx": nnx_loop,
    "linen": linen_loop,
    "equinox": equinox_loop,
    "haiku": haiku_loop,
}


# Every wrapper at once, the other pairs in slow tests.
QUICK = {("nnx", "plain"), ("nnx", "multi_steps"), ("equinox", "apply_if_finite")}


@pytest.mark.parametrize(
    ("loop", "wrapper"),
    [
        pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow)
        for pair in itertools.product(LOOPS, WRAPPERS)
    ],
)
def test_a_loop_is_traced_once_and_ends_where_the_plain_one_does(loop, wrapper):
    traces = []
    with jax.numpy_rank_promotion("allow"):  # Layers of other libraries add biases.
        found = LOOPS[loop](make_tx(wrapper), traces)
    assert len(traces) == 1
    target, began = expected(wrapper, loop != "linen"), start()
    for name in LAYERS:
        for leaf in ("kernel", "bias"):
            assert np.all(found[name][leaf] != began[name][leaf])
            np.testing.assert_allclose(
                found[name][leaf], target[name][leaf], rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("rule", ["learned", "hand_designed"])
def test_tree_map_params_tells_leaves_like_parameters_from_the_rest(rule):
    tx = make_tx("plain") if rule == "learned" else meta_opt.hand_designed(40)
    params = start()
    state = tx.init(params)
    _, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    same = optax.tree_map_params(tx, lambda x: x, state)
    doubled = optax.tree_map_params(tx, lambda x: 2 * x, state)
    for after in (same, doubled):
        assert types(after) == types(state)
    for name in state._fields:
        like_params = name == "momentum"
        before, after = (jax.tree.leaves(getattr(s, name)) for s in (state, doubled))
        kept = jax.tree.leaves(getattr(same, name))
        for a, b, c in zip(before, after, kept, strict=True):
            np.testing.assert_array_equal(c, a)
            np.testing.assert_array_equal(b, 2 * a if like_params else a)
    assert any(np.any(x != 0) for x in jax.tree.leaves(state.momentum))
