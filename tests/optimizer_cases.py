"""What the tests of optimizers share: trees, a compiled step, comparisons."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import meta_opt

OURS = ("hand_designed", "learned")
# The baselines' defaults are for long runs; ours have no rate.
RATES = {
    "sgd": 0.05,
    "adam": 4e-3,
    "adamw": 4e-3,
    "rmsprop": 2e-3,
    "lion": 2e-3,
    "muon": 2e-2,
    "schedule_free_adamw": 2e-2,
    "prodigy": 1.0,
}
NUM_STEPS = 40


def noisy_theta(config=None, scale=0.165):
    """Weights that decide something: the hand-designed rule plus noise.

    Of one size in the outputs, however many inputs they read.
    """
    theta = meta_opt.init_theta(jax.random.key(0), config)
    scale /= np.sqrt(len(theta["output"]["kernel"]))
    rng = np.random.default_rng(0)
    theta["output"] = {
        name: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32)
        for name, x in theta["output"].items()
    }
    return theta


def make_params(dtype=jnp.float32):
    """A dict as Linen makes it, with a scalar and an empty leaf."""
    rng = np.random.default_rng(1)
    return {
        "dense": {
            "kernel": jnp.asarray(rng.normal(size=(4, 6)), dtype),
            "bias": jnp.asarray(rng.normal(size=(6,)), dtype),
        },
        "temperature": jnp.asarray(0.5, dtype),
        "unused": jnp.zeros((0, 3), dtype),
    }


def make_grads(params, steps, seed=2):
    """Noise around a common direction, one tree a step."""
    rng = np.random.default_rng(seed)
    common = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
    return [
        jax.tree.map(
            lambda p, c: jnp.asarray(0.3 * (c + rng.normal(size=p.shape)), p.dtype),
            params,
            common,
        )
        for _ in range(steps)
    ]


class Case:
    """One optimizer and its compiled update, shared by the tests."""

    def __init__(self, name: str, make: Callable):
        self.name = name
        self.make = make
        self.tx = make(NUM_STEPS)
        self.step = jax.jit(lambda g, s, p, v: self.tx.update(g, s, p, value=v))

    @functools.cached_property
    def trajectory(self):
        """Parameters, state and updates of each of five plain steps."""
        params = make_params()
        state = self.tx.init(params)
        out = []
        for i, grads in enumerate(make_grads(params, 5)):
            updates, state = self.step(grads, state, params, jnp.float32(5.0 - i))
            params = optax.apply_updates(params, updates)
            out.append((params, state, updates))
        self.compiled = self.step._cache_size()
        return out


def assert_close(found, expected, rtol=2e-5, atol=2e-7):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def types(tree):
    """Structure and types of a tree, the weakness of types included."""
    return jax.tree.structure(tree), [
        (x.shape, x.dtype, jax.typeof(x).weak_type) for x in jax.tree.leaves(tree)
    ]


def optimize(tx, loss, params, steps):
    """Losses of a whole run, as one scan."""

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), value

        (params, _), losses = jax.lax.scan(
            step, (params, tx.init(params)), length=steps
        )
        return params, jnp.append(losses, loss(params))

    return run(params)


# Shapes that no two kinds of state leaves share; 3-D as attention has it.
SPECS = {
    "kernel": ((16, 20), PartitionSpec("data", "model")),
    "attention": ((32, 2, 4), PartitionSpec("data", "model", None)),
    "bias": ((40,), PartitionSpec("model")),
    "layers": ((2, 48, 56), PartitionSpec(None, "model", "data")),
    "scalar": ((), PartitionSpec()),
}
# What factored moments of them are reduced to: rows and columns.
REDUCED = {
    (16,): ("data",),
    (20,): ("model",),
    (32,): ("data",),
    (2, 4): ("model", None),
    (2, 48): (None, "model"),
    (2, 56): (None, "data"),
}


def sharded_params(axis_type):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    rng = np.random.default_rng(4)
    plain = {k: rng.normal(size=s).astype(np.float32) for k, (s, _) in SPECS.items()}
    shardings = {k: NamedSharding(mesh, spec) for k, (_, spec) in SPECS.items()}
    return mesh, plain, jax.device_put(plain, shardings)


def assert_follows(state, mesh):
    """State leaves that are shaped like parameters lie as these do."""
    by_shape = {shape: tuple(spec) for shape, spec in SPECS.values() if shape}
    count = 0
    for x in jax.tree.leaves(state):
        spec = {**by_shape, **REDUCED}.get(x.shape)
        if spec is not None:
            expected = NamedSharding(mesh, PartitionSpec(*spec))
            assert x.sharding.is_equivalent_to(expected, x.ndim), (x.shape, x.sharding)
            count += 1
        else:
            assert x.sharding.is_fully_replicated or x.size == 1, x.shape
    assert count >= len(by_shape)
