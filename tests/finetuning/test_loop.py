"""The training step and the loop around it."""

import dataclasses
import math

import finetuning_toy as toy
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_opt.finetuning import loop_config
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.objective import single_loss
from meta_opt.finetuning.state import fingerprint, init_state
from meta_opt.finetuning.step import make_train_step
from meta_opt.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from meta_opt.parallel.sharding import FSDP_RULES, Rule
from meta_opt.types import from_config

TENSOR_RULES = (
    Rule(r"(in|layers)/kernel", (None, "tensor"), largest="fsdp"),
    *FSDP_RULES,
)


def make_batch(count=16):
    return {k: jnp.asarray(v) for k, v in toy.make_data(count=count).items()}


def take_steps(tx, mesh=None, rules=FSDP_RULES, accumulation_steps=1, steps=3):
    mesh = make_mesh(mesh or MeshConfig())
    frozen = {"noise": jnp.float32(0.0)}
    state = init_state(toy.make_params(), frozen, tx, mesh, rules)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    batch = jax.device_put(make_batch(), batch_sharding(mesh))
    step = jax.jit(
        make_train_step(single_loss(toy.loss_fn), tx, accumulation_steps),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    # Compiled ahead, it rejects a state that comes back in another layout.
    step = step.lower(state, batch).compile()
    metrics = {}
    for _ in range(steps):
        state, metrics = step(state, batch)
    assert jax.tree.map(lambda x: x.sharding, state) == shardings
    return state, metrics


def assert_close(found, expected, rtol=2e-5, atol=2e-6):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def reference():
    return take_steps(toy.tuned())


def test_step_equals_optax_by_hand(reference):
    tx, params = toy.tuned(), toy.make_params()
    opt_state = tx.init(params)
    grad_fn = jax.jit(
        jax.value_and_grad(lambda p: toy.loss_fn(p, (), make_batch(), None)[0])
    )
    for _ in range(3):
        loss, grads = grad_fn(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    state, metrics = reference
    assert int(state.step) == 3
    assert_close(state.params, params)
    assert_close(metrics["loss"], loss)
    assert_close(metrics["grad_norm"], optax.tree.norm(grads))
    assert_close(metrics["update_norm"], optax.tree.norm(updates))


@pytest.mark.parametrize(
    ("mesh", "rules"),
    [
        (MeshConfig(data=8), FSDP_RULES),
        (MeshConfig(fsdp=4), FSDP_RULES),
        (MeshConfig(data=2, fsdp=2, tensor=2), TENSOR_RULES),
    ],
    ids=["data", "fsdp", "data-fsdp-tensor"],
)
def test_sharded_equals_unsharded(reference, mesh, rules):
    state, metrics = take_steps(toy.tuned(), mesh, rules)
    assert_close(state.params, reference[0].params)
    assert_close(metrics, reference[1])
    kernel = state.params["layers"]["kernel"]
    shard = kernel.addressable_shards[0].data
    assert kernel.size // shard.size == mesh.fsdp * mesh.tensor
    (momentum,) = (
        leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
        if "mu" in jax.tree_util.keystr(path) and "layers" in jax.tree_util.keystr(path)
    )
    assert momentum.sharding.is_equivalent_to(kernel.sharding, kernel.ndim)


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=2)])
def test_accumulation_equals_the_full_batch(reference, mesh):
    state, metrics = take_steps(toy.tuned(), mesh, accumulation_steps=4)
    assert_close(state.params, reference[0].params)
    assert_close(metrics, reference[1])


def test_accumulation_that_does_not_divide():
    with pytest.raises(ValueError, match="batch of 16 cannot be cut into 3"):
        take_steps(optax.sgd(0.1), accumulation_steps=3)
    with pytest.raises(ValueError, match="accumulation_steps=0"):
        make_train_step(single_loss(toy.loss_fn), optax.sgd(0.1), 0)


def recording_tx():
    """An optimizer that keeps what it was told."""

    def update(grads, state, params=None, *, value=None, feedback=None, **extra):
        told = {"value": value, "feedback": jnp.float32(feedback)}
        return jax.tree.map(lambda g: -0.01 * g, grads), told

    return optax.GradientTransformationExtraArgs(
        lambda params: {"value": jnp.float32(0), "feedback": jnp.float32(0)}, update
    )


def test_loss_and_feedback_reach_the_optimizer():
    frozen = {"noise": jnp.float32(0.0)}
    tx = recording_tx()
    state = init_state(toy.make_params(), frozen, tx, make_mesh(MeshConfig()))
    step = jax.jit(make_train_step(single_loss(toy.loss_fn), tx))
    state, metrics = step(state, make_batch(), jnp.float32(0.5))
    assert float(state.opt_state["value"]) == float(metrics["loss"]) > 0
    assert float(state.opt_state["feedback"]) == 0.5


def test_feedback_is_given_in_the_step_after_an_evaluation():
    seen = []
    config = LoopConfig(
        num_steps=5, batch_size=8, eval_every=2, feedback=True, progress=False
    )
    inner = recording_tx()

    def update(grads, state, params=None, *, feedback, **extra):
        jax.debug.callback(lambda x: seen.append(float(x)), feedback, ordered=True)
        return inner.update(grads, state, params, feedback=feedback, **extra)

    tx = optax.GradientTransformationExtraArgs(inner.init, update)
    result = toy.train(config=config, tx=tx)
    jax.effects_barrier()
    scores = [r["validation/loss"] for r in result.history if "validation/loss" in r]
    expected = [scores[0], math.nan, scores[1], math.nan, scores[2]]
    np.testing.assert_array_equal(seen, np.float32(expected))


def test_loop_logs_means_and_learns():
    result = toy.train()
    train = [record for record in result.history if "train/loss" in record]
    assert [record["step"] for record in train] == [4, 8, 12, 16, 20, 24, 28, 30]
    validation = [r["step"] for r in result.history if "validation/loss" in r]
    assert validation == [0, 8, 16, 24, 30]
    assert train[-1]["train/loss"] < train[0]["train/loss"]
    assert 0 < result.train_seconds < 60 and result.compile_seconds > 0
    assert 0 < result.input_seconds < result.train_seconds
    size = sum(x.size for x in jax.tree.leaves(result.state.params))
    assert result.trainable == size
    assert result.optimizer_bytes == 8 * size + 4

    every = dataclasses.replace(toy.CONFIG, log_every=1)
    losses = [
        r["train/loss"]
        for r in toy.train(config=every).history
        if r.get("train/loss") and r["step"] <= 4
    ]
    assert train[0]["train/loss"] == math.fsum(losses) / 4


def test_a_long_run_has_no_more_records_than_a_short_one(monkeypatch):
    monkeypatch.setattr(loop_config, "MAX_RECORDS", 10)
    config = dataclasses.replace(toy.CONFIG, log_every=1, eval_every=30)
    history = toy.train(config=config).history
    steps = [record["step"] for record in history if "train/loss" in record]
    assert steps == list(range(3, 31, 3))


def test_nonfinite_losses_are_counted():
    def loss_fn(params, frozen, batch, rng):
        loss, metrics = toy.loss_fn(params, (), batch, rng)
        return jnp.where(batch["x"][0, 0] > 0, jnp.nan, loss), metrics

    config = dataclasses.replace(toy.CONFIG, num_steps=12)
    batches = toy.make_batches(toy.make_data(), 8)
    begin = batches.get_state()
    expected = sum(int(next(batches)["x"][0, 0] > 0) for _ in range(12))
    batches.set_state(begin)
    result = toy.train(
        config=config, loss_fn=loss_fn, batches=batches, tx=optax.sgd(0.0)
    )
    assert int(result.state.nonfinite) == expected > 0
    assert result.history[-2]["train/nonfinite"] == expected


@pytest.mark.parametrize("kind", [np.array, jnp.array])
@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=8), MeshConfig(fsdp=8)])
def test_the_callers_arrays_survive(mesh, kind):
    params, frozen = jax.tree.map(kind, (toy.make_params(), {"noise": np.ones(3)}))
    state = init_state(params, frozen, toy.tuned(), make_mesh(mesh))
    double = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)
    jax.block_until_ready(double((state.params, state.frozen)))
    assert_close(params, toy.make_params(), rtol=0, atol=0)
    assert_close(frozen, {"noise": np.ones(3)}, rtol=0, atol=0)


def test_fingerprint_tells_contents_apart_and_ignores_the_layout():
    x = jnp.arange(32.0).reshape(8, 4)
    sharded = jax.device_put(x, batch_sharding(make_mesh(MeshConfig(data=8))))
    tree = {"x": x, "h": jnp.ones(3, jnp.bfloat16), "b": jnp.array(True)}
    assert fingerprint(tree) == fingerprint({**tree, "x": sharded})
    others = [x.at[0, 0].set(-0.0), x[::-1], x.reshape(4, 8), x.T.reshape(8, 4)]
    found = {fingerprint({**tree, "x": other}) for other in others}
    assert len(found | {fingerprint(tree)}) == 5
    assert fingerprint({}) == 0


class Ending:
    """Two batches, and no more."""

    def __init__(self, rows):
        self._batches = iter([toy.make_data(count=rows)] * 2)

    def __next__(self):
        return next(self._batches)

    def get_state(self):
        return None

    def set_state(self, state):
        pass


def test_bad_data_is_named():
    with pytest.raises(ValueError, match="ended after 2 of 30 steps"):
        toy.train(batches=Ending(8))
    with pytest.raises(ValueError, match=r"shape \(5, 6\); batch_size=8"):
        toy.train(batches=Ending(5))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="num_steps=-1 must be at least 0"):
        LoopConfig(num_steps=-1, batch_size=8)
    with pytest.raises(ValueError, match="num_steps=0: a run needs at least one step"):
        toy.train(config=dataclasses.replace(toy.CONFIG, num_steps=0))
    with pytest.raises(ValueError, match=r"eval_evry.*did you mean 'eval_every'"):
        from_config(LoopConfig, {"num_steps": 1, "batch_size": 8, "eval_evry": 2})
    config = dataclasses.replace(toy.CONFIG, best_metric="r1")
    with pytest.raises(ValueError, match=r"best_metric='r1' is not among.*: loss"):
        toy.train(config=config)
    with pytest.raises(ValueError, match="batch_size=8 must be a positive multiple"):
        toy.train(mesh=MeshConfig(data=3))
