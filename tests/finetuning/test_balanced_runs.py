"""Runs that balance modalities or losses: gradients, resume, devices, refusals."""

import dataclasses
import functools
import signal

import finetuning_toy as toy
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meta_opt.data.array_batches import array_batches
from meta_opt.finetuning.balancing import (
    OF_LOSSES,
    BalancingConfig,
    balanced_objective,
)
from meta_opt.finetuning.privacy import PrivacyConfig
from meta_opt.finetuning.run_config import RunConfig, read_run_config
from meta_opt.finetuning.runs import run
from meta_opt.finetuning.state import init_state
from meta_opt.finetuning.step import make_train_step
from meta_opt.interruption import Interrupted
from meta_opt.losses.balancing import modality_strengths
from meta_opt.meta_loss.settings import MetaLossConfig
from meta_opt.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from meta_opt.parallel.placement import place
from meta_opt.workloads.image_text import ImageTextConfig
from meta_opt.workloads.workload import Losses, Unimodal, Workload

LOOP = dataclasses.replace(toy.CONFIG, num_steps=12, eval_every=100)
OGM = BalancingConfig("ogm_ge", alpha=0.4, noise=False)
OGM_GE = BalancingConfig("ogm_ge", alpha=0.4)
MODALITIES = ("sound", "sight")


def make_params():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    encoders = {m: {"kernel": normal(6, 8), "bias": normal(8)} for m in MODALITIES}
    heads = {m: normal(8, 4) for m in MODALITIES}
    return {"encoders": encoders, "heads": heads}


def make_data(count=40):
    """Only sight tells the class; some examples lack the sound."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, 4, count)
    sight = rng.normal(size=(count, 6)) + 2 * np.eye(4, 6)[label]
    return {
        "sound": rng.normal(size=(count, 6)).astype(np.float32),
        "sight": sight.astype(np.float32),
        "sound_present": np.arange(count) % 3 > 0,
        "label": label,
    }


def logits_of(params, batch):
    """Of each modality alone: a linear fusion, whose logits are their sum."""
    found = {}
    for m in MODALITIES:
        encoder = params["encoders"][m]
        hidden = jnp.tanh(batch[m] @ encoder["kernel"] + encoder["bias"][None])
        found[m] = hidden @ params["heads"][m]
    present = batch["sound_present"][:, None]
    return {**found, "sound": jnp.where(present, found["sound"], 0.0)}


def loss_of(params, frozen, batch, rng):
    logits = logits_of(params, batch)
    nats = optax.softmax_cross_entropy_with_integer_labels(
        logits["sound"] + logits["sight"], batch["label"]
    )
    return jnp.mean(nats), {}


def unimodal_fn(params, frozen, batch, rng):
    loss, metrics = loss_of(params, frozen, batch, rng)
    alone = logits_of(jax.lax.stop_gradient(params), batch)
    there = [batch["sound_present"], jnp.ones(len(batch["label"]), bool)]
    strengths = modality_strengths(
        [alone[m] for m in MODALITIES], batch["label"], there
    )
    return loss, (strengths, jnp.stack([jnp.sum(x) * 1.0 for x in there]), metrics)


def multimodal(**changes):
    parts = {
        "params": make_params(),
        "loss_fn": loss_of,
        "train_batches": functools.partial(array_batches, make_data()),
        "unimodal": Unimodal(
            MODALITIES, tuple(f"^encoders/{m}/" for m in MODALITIES), unimodal_fn
        ),
        "name": "the toy",
    }
    return Workload(**{**parts, **changes})


def losses_of(params, frozen, batch, rng):
    out = toy.forward(params, batch["x"] + 0.1 * jax.random.normal(rng, (6,))[None])
    distance = jnp.mean((out - batch["y"]) ** 2)
    return jnp.stack([distance, jnp.mean(jnp.abs(out))]), {}


def several_losses(**changes):
    parts = {
        "params": toy.make_params(),
        "loss_fn": toy.loss_fn,
        "train_batches": functools.partial(array_batches, toy.make_data()),
        "losses": Losses(("distance", "size"), "distance", losses_of),
    }
    return Workload(**{**parts, **changes})


def step_of(workload, balancing, parts=1, mesh=None):
    """What one step of plain descent subtracts, and its metrics."""
    mesh, tx = make_mesh(mesh or MeshConfig()), optax.sgd(1.0)
    objective = balanced_objective(workload, None, balancing)
    state = init_state(workload.params, (), tx, mesh, init_objective=objective.init)
    batch = place(next(workload.train_batches(24)), batch_sharding(mesh))
    with jax.set_mesh(mesh):
        step = jax.jit(make_train_step(objective, tx, parts))
        new, metrics = step(state, batch)
    moved = jax.tree.map(lambda a, b: a - np.asarray(b), workload.params, new.params)
    return moved, jax.device_get(metrics)


# The gradient


def numpy_factors(workload, alpha):
    """Factors from the mean probability of the right class, and these means."""
    batch = next(workload.train_batches(24))
    logits = jax.device_get(logits_of(workload.params, batch))
    means = {}
    for m in MODALITIES:
        e = np.exp(logits[m].astype(np.float64))
        right = (e / e.sum(1, keepdims=True))[np.arange(24), batch["label"]]
        means[m] = right[batch.get(f"{m}_present", np.ones(24, bool))].mean()
    sound, sight = means["sound"], means["sight"]
    factors = {"sound": 1.0, "sight": 1.0}
    stronger, ratio = max(("sound", sound / sight), ("sight", sight / sound),
                          key=lambda x: x[1])  # fmt: skip
    factors[stronger] = 1 - np.tanh(alpha * ratio)
    return factors, means


@pytest.mark.parametrize("parts", [1, 3])
def test_the_stronger_modalitys_encoder_is_scaled_and_nothing_else(parts):
    workload = multimodal()
    factors, means = numpy_factors(workload, OGM.alpha)
    assert min(factors.values()) < 1
    plain, before = step_of(workload, None, parts)
    found, metrics = step_of(workload, OGM, parts)
    for m in MODALITIES:
        expected = jax.tree.map(lambda g, m=m: factors[m] * g, plain["encoders"][m])
        toy.assert_close(found["encoders"][m], expected, rtol=1e-4, atol=1e-6)
        assert metrics[f"gradient_factor/{m}"] == pytest.approx(factors[m], rel=1e-4)
        assert metrics[f"strength/{m}"] == pytest.approx(means[m], rel=1e-4)
    toy.assert_close(found["heads"], plain["heads"], rtol=1e-4, atol=1e-6)
    assert metrics["loss"] == pytest.approx(before["loss"], rel=1e-6)


def test_balanced_modalities_get_the_plain_gradient():
    """Both see the same by the same weights: neither is scaled, and no noise comes."""
    data = make_data()
    data["sound"], data["sound_present"] = data["sight"], np.ones(40, bool)
    params = make_params()
    for part in params.values():
        part["sound"] = part["sight"]
    workload = multimodal(
        params=params, train_batches=functools.partial(array_batches, data)
    )
    plain, _ = step_of(workload, None)
    found, metrics = step_of(workload, OGM_GE)
    assert metrics["gradient_factor/sound"] == metrics["gradient_factor/sight"] == 1
    toy.assert_close(found, plain, rtol=1e-6, atol=1e-7)


def test_a_modality_that_no_example_has_is_compared_with_none():
    data = {**make_data(), "sound_present": np.zeros(40, bool)}
    workload = multimodal(train_batches=functools.partial(array_batches, data))
    plain, _ = step_of(workload, None)
    found, metrics = step_of(workload, OGM)
    assert metrics["strength/sound"] == 0
    toy.assert_close(found, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", OF_LOSSES)
def test_losses_are_combined_as_by_meta_loss(method):
    workload = several_losses()
    found, metrics = step_of(workload, BalancingConfig(method))
    objective = balanced_objective(workload, MetaLossConfig(method))
    assert balanced_objective(workload).combiner is None
    state, tx = objective.init(jax.random.key(0)), optax.sgd(1.0)
    begin = init_state(workload.params, (), tx, make_mesh(MeshConfig()),
                       init_objective=lambda key: state)  # fmt: skip
    batch = next(workload.train_batches(24))
    new, expected = jax.jit(make_train_step(objective, tx))(begin, batch)
    moved = jax.tree.map(lambda a, b: a - np.asarray(b), workload.params, new.params)
    toy.assert_close(found, moved, rtol=1e-5, atol=1e-6)
    assert {"loss/distance", "loss/size"} <= metrics.keys() == expected.keys()


# Whole runs


def train(workload, balancing, workdir=None, **changes):
    return run(workload, toy.tuned(), LOOP, balancing=balancing, workdir=workdir,
               **changes)  # fmt: skip


@pytest.mark.parametrize(
    "balancing",
    [
        OGM_GE,
        pytest.param(BalancingConfig("gradnorm"), marks=pytest.mark.slow),
        pytest.param(BalancingConfig("uncertainty"), marks=pytest.mark.slow),
    ],
    ids=lambda b: b.method,
)
def test_an_interrupted_run_ends_in_the_same_bits(tmp_path, balancing):
    make = multimodal if balancing.method == "ogm_ge" else several_losses
    whole = train(make(), balancing, tmp_path / "whole")

    def striking(*arguments):
        opened = make().train_batches(*arguments)
        return toy.SignallingBatches(opened, signal.SIGTERM, 7)

    with pytest.raises(Interrupted):
        train(make(train_batches=striking), balancing, tmp_path / "cut")
    resumed = train(make(), balancing, tmp_path / "cut")
    assert resumed.steps_taken < LOOP.num_steps
    assert toy.digest(resumed.state.params) == toy.digest(whole.state.params)
    assert toy.digest(resumed.state.objective) == toy.digest(whole.state.objective)
    metrics = [(tmp_path / n / "metrics.jsonl").read_bytes() for n in ("whole", "cut")]
    assert metrics[0] == metrics[1]
    begin = balanced_objective(make(), None, balancing).init(jax.random.key(0))
    learned = toy.digest(whole.state.objective) != toy.digest(begin)
    assert learned == (balancing.method != "ogm_ge")
    if balancing.method == "ogm_ge":
        shown = [r["train/gradient_factor/sight"] for r in whole.history
                 if "train/loss" in r]  # fmt: skip
        assert min(shown) < 1


@pytest.mark.parametrize("balancing", [OGM_GE, BalancingConfig("gradnorm")],
                         ids=lambda b: b.method)  # fmt: skip
def test_sharded_is_unsharded(balancing):
    workload = multimodal() if balancing is OGM_GE else several_losses()
    one = step_of(workload, balancing)
    many = step_of(workload, balancing, mesh=MeshConfig(data=2, fsdp=4))
    toy.assert_close(one, many, rtol=1e-4, atol=1e-5)


# What makes no sense


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "pcgard"}, "balancing.method='pcgard' .*did you mean 'pcgrad'"),
        ({"alpha": 0.0}, "balancing.alpha=0.0 must be positive"),
        ({"learning_rate": -1.0}, "balancing.learning_rate=-1.0 must be positive"),
    ],
)
def test_errors_of_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        BalancingConfig(**settings)


@pytest.mark.parametrize(
    ("workload", "method", "message"),
    [
        (several_losses, "ogm_ge", "classification from at least two modalities"),
        (multimodal, "pcgrad", "the toy has one: set .*'none' or 'ogm_ge'"),
        (functools.partial(several_losses, losses=None), "gradnorm",
         "balances several losses, and this workload has one: set .*'none'$"),
    ],
)  # fmt: skip
def test_methods_that_have_nothing_to_do(workload, method, message):
    with pytest.raises(ValueError, match=message):
        train(workload(), BalancingConfig(method))


def test_one_setting_decides_the_gradient():
    with pytest.raises(ValueError, match=r"'gradnorm' and meta_loss.combiner='meltr'"):
        balanced_objective(
            several_losses(), MetaLossConfig("meltr"), BalancingConfig("gradnorm")
        )
    private = PrivacyConfig(1.0, delta=1e-3, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="private run must not use"):
        run(multimodal(), optax.sgd(0.1), LOOP, balancing=OGM, privacy=private)
    none = BalancingConfig()
    assert balanced_objective(multimodal(), None, none).modulate is None


def test_it_is_a_section_of_a_runs_config():
    settings = {"num_steps": 4, "batch_size": 2, "balancing": {"method": "ogm_ge"}}
    config = read_run_config(ImageTextConfig, settings)
    assert isinstance(config, RunConfig)
    assert config.balancing == BalancingConfig("ogm_ge")
    assert config.settings()["balancing"]["alpha"] == 0.5
    with pytest.raises(ValueError, match=r"config.balancing has no setting 'metod'"):
        read_run_config(ImageTextConfig, {**settings, "balancing": {"metod": "none"}})
    with pytest.raises(ValueError, match=r"balancing.method='ogm_ge' and meta_loss"):
        read_run_config(ImageTextConfig, {**settings, "meta_loss": {}})
