"""Shipped weights: what is written is read, and nothing damaged is."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_cases import make_params, optimize

import meta_opt
from configs import common
from meta_opt.optimizers import weights
from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.weights import (
    available,
    load_theta,
    save_theta,
    weights_digest,
)

CONFIG = ControllerConfig(global_hidden=3, tensor_hidden=2, directions=("adam", "sign"))


def make_theta(config=CONFIG):
    theta = meta_opt.init_theta(jax.random.key(0), config)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + jnp.asarray(rng.normal(size=x.shape), jnp.float32), theta
    )


@pytest.fixture
def saved(tmp_path):
    theta = make_theta()
    save_theta(tmp_path / "some-v1.2", theta, CONFIG, {"recipe": "noise"})
    return tmp_path / "some-v1.2.safetensors", theta


def edit(file, **entries):
    record_file = file.with_suffix(".json")
    record = json.loads(record_file.read_text())
    record_file.write_text(json.dumps({**record, **entries}))


def test_round_trip(saved):
    file, theta = saved
    assert {x.name for x in file.parent.iterdir()} == {
        "some-v1.2.safetensors",
        "some-v1.2.json",
    }
    assert json.loads(file.with_suffix(".json").read_text())["recipe"] == "noise"
    for name in (file, str(file)):
        found, config = load_theta(name)
        assert config == CONFIG
        assert jax.tree.structure(found) == jax.tree.structure(theta)
        for a, b in zip(*map(jax.tree.leaves, (found, theta)), strict=True):
            assert a.dtype == jnp.float32
            np.testing.assert_array_equal(a, b)
    params = {"w": jnp.ones((2, 3))}
    by_file = meta_opt.learned_optimizer(10, weights=file)
    by_theta = meta_opt.learned_optimizer(10, theta=theta, config=CONFIG)
    assert jax.eval_shape(by_file.init, params) == jax.eval_shape(by_theta.init, params)


def test_unknown_name_lists_those_there_are(monkeypatch, saved):
    with pytest.raises(ValueError, match=r"no weights 'lstm-vO'.*shipped: "):
        load_theta("lstm-vO")
    monkeypatch.setattr(weights, "_FOLDER", saved[0].parent)
    with pytest.raises(
        ValueError, match=r"did you mean 'some-v1.2'\?; shipped: some-v1.2; or give"
    ):
        meta_opt.learned_optimizer(10, weights="some-v12")
    assert load_theta("some-v1.2")[1] == CONFIG


def test_missing_files(saved):
    file, _ = saved
    with pytest.raises(ValueError, match=r"other.safetensors is missing"):
        load_theta(file.with_name("other.safetensors"))
    file.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"some-v1.2.json is missing"):
        load_theta(file)


def test_damaged_file(saved):
    file, _ = saved
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"damaged: its SHA-256 is [0-9a-f]{64}"):
        load_theta(file)
    file.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(ValueError, match="damaged"):
        load_theta(file)


def test_another_architecture(saved):
    file, _ = saved
    edit(file, config={"global_hidden": 5, "tensor_hidden": 2})
    with pytest.raises(
        ValueError, match=r"another architecture: .*global\.kernel is \(\d+, 12\), exp"
    ):
        load_theta(file)
    edit(file, config={"global_hiden": 5})
    with pytest.raises(ValueError, match="did you mean 'global_hidden'"):
        load_theta(file)
    edit(file, format=99)
    with pytest.raises(ValueError, match=r"has format 99; this code reads 1"):
        load_theta(file)


@pytest.mark.parametrize("name", available())
def test_shipped_weights_keep_parameters_of_size_one(name):
    """Weight decay of networks must not shrink what has to be large."""
    params = make_params()
    rng = np.random.default_rng(5)
    target = jax.tree.map(
        lambda p: p + 0.1 * np.sign(rng.normal(size=p.shape)).astype(np.float32), params
    )

    def loss(params):
        off = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), params, target)
        return sum(jax.tree.leaves(off))

    tx = meta_opt.learned_optimizer(200, weights=name)
    _, losses = optimize(tx, loss, params, 200)
    assert losses[-1] < 0.05 * losses[0]


def test_configs_name_the_default():
    assert common.WEIGHTS == weights.DEFAULT


@pytest.mark.parametrize("name", available())
def test_shipped_weights(name):
    """They load, are finite, have a model card, and beat the hand-designed rule."""
    theta, _ = load_theta(name)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(theta))
    assert (weights._FOLDER / f"{name}.md").is_file(), "a model card beside the file"
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 6)).astype(np.float32)
    y = np.tanh(x @ rng.normal(size=(6, 3)).astype(np.float32))
    params = {"kernel": jnp.zeros((6, 3)), "bias": jnp.zeros(3)}

    def loss(params):
        out = jnp.tanh(x @ params["kernel"] + params["bias"][None])
        return jnp.mean(jnp.square(out - y))

    def run(tx):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params, value=value)
            return (jax.tree.map(jnp.add, params, updates), state), value

        start = (params, tx.init(params))
        return jax.jit(lambda: jax.lax.scan(step, start, length=200))()

    (_, state), losses = run(meta_opt.learned_optimizer(200, weights=name))
    _, by_hand = run(meta_opt.hand_designed(200))
    assert losses[-1] < 0.9 * by_hand[-1] < 0.5 * losses[0]
    assert int(state.guard.skipped) == 0


def test_a_digest_covers_the_controllers_shape(tmp_path):
    theta, config = load_theta(weights.DEFAULT)
    digests = set()
    for last in (2, 3):
        changed = dataclasses.replace(config, iterations=(5, last))
        save_theta(tmp_path / str(last), theta, changed)
        assert load_theta(tmp_path / f"{last}.safetensors")[1] == changed
        digests.add(weights_digest(tmp_path / f"{last}.safetensors"))
    assert len(digests) == 2
    for bad in ((5,), (5, 0)):
        with pytest.raises(ValueError, match="two numbers from 1"):
            dataclasses.replace(config, iterations=bad)
