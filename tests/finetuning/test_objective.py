"""Several losses in one run: how they are combined, meta-steps, resume, faults."""

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
from meta_opt.finetuning.meta_step import make_meta_step
from meta_opt.finetuning.objective import make_objective
from meta_opt.finetuning.runs import run
from meta_opt.finetuning.state import init_state
from meta_opt.finetuning.step import make_train_step
from meta_opt.interruption import Interrupted
from meta_opt.losses.balancing import gradnorm_loss, gradnorm_weights, pcgrad
from meta_opt.meta_loss.combiner import CombinerConfig
from meta_opt.meta_loss.hypergradients import HypergradientConfig
from meta_opt.meta_loss.settings import MetaLossConfig, read_meta_loss
from meta_opt.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from meta_opt.parallel.placement import place
from meta_opt.workloads.workload import Losses, Workload

NAMES = ("distance", "size", "sign")
SMALL = CombinerConfig(1, hidden_size=8, width=16, ffn_size=16, num_heads=2)
MELTR = MetaLossConfig(network=SMALL, interval=4, learning_rate=3e-2)


def losses_fn(params, frozen, batch, rng):
    """Three views of one error; the first has the step's randomness."""
    out = toy.forward(params, batch["x"] + 0.1 * jax.random.normal(rng, (6,))[None])
    losses = [
        jnp.mean((out - batch["y"]) ** 2),
        jnp.mean(jnp.abs(out)),
        jnp.mean(jax.nn.softplus(-out * jnp.sign(batch["y"]))),
    ]
    return jnp.stack(losses), {"out": jnp.mean(out)}


def primary_fn(params, frozen, batch, rng):
    losses, metrics = losses_fn(params, frozen, batch, rng)
    return losses[0], metrics


def make_workload(fn=losses_fn, **changes):
    parts = {
        "params": toy.make_params(),
        "loss_fn": primary_fn,
        "train_batches": batches(0),
        "meta_batches": batches(5),
        "evaluate": toy.make_evaluate(toy.make_data(seed=1)),
        "losses": Losses(NAMES, "distance", fn),
    }
    return Workload(**{**parts, **changes})


def whole(programs):
    """A meta-step as one function of a state and two batches."""

    def meta_step(state, first, second):
        return programs.finish(state, *programs.primary(state, first), second)

    return meta_step


def batches(data_seed):
    def make(batch_size, seed=0, rows=None):
        rows = slice(None) if rows is None else rows
        return toy.make_batches(toy.make_data(data_seed), batch_size, seed, rows)

    return make


def train(meta_loss, workdir=None, workload=None, config=toy.CONFIG, **settings):
    workload, settings["meta_loss"] = workload or make_workload(), meta_loss
    return run(workload, toy.tuned(), config, workdir=workdir, **settings)


def first_gradients(config, state=None):
    """Gradients of a batch at the start, of the objective and of each loss."""
    workload = make_workload()
    objective = make_objective(workload, config)
    state = objective.init(jax.random.key(1)) if state is None else state
    batch, rng = next(workload.train_batches(8)), jax.random.key(2)
    params = jax.tree.map(jnp.asarray, workload.params)
    found = jax.jit(objective.gradient)(state, params, (), batch, rng)

    def each(rng):
        jacobian = jax.jacrev(lambda p: losses_fn(p, (), batch, rng)[0])(params)
        return [jax.tree.map(lambda g, i=i: g[i], jacobian) for i in range(3)]

    return objective, state, found, each, rng


def weighted(parts, weights):
    return jax.tree.map(lambda *g: sum(w * x for w, x in zip(weights, g, strict=True)),
                        *parts)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        (MetaLossConfig("primary"), (1, 0, 0)),
        (MetaLossConfig("equal"), (1 / 3, 1 / 3, 1 / 3)),
        (MetaLossConfig("fixed", weights=(1.0, 0.5, -2.0)), (1, 0.5, -2)),
        (MetaLossConfig("uncertainty"), (0.5, 0.5, 0.5)),
        (MetaLossConfig("gradnorm"), (1, 1, 1)),
    ],
    ids=lambda x: getattr(x, "combiner", ""),
)
def test_the_first_gradient_is_a_weighted_sum(config, weights):
    _, _, found, each, rng = first_gradients(config)
    if config.combiner not in ("primary", "gradnorm"):
        rng = jax.random.split(rng)[1]
    toy.assert_close(found.grads, weighted(each(rng), weights), rtol=1e-5, atol=1e-6)
    shown = {k for k in found.metrics if k.startswith("loss/")}
    assert "loss/distance" in shown
    assert len(shown) == (1 if config.combiner == "primary" else 3)


def test_meltr_weighs_each_gradient_by_the_networks_derivative():
    config = dataclasses.replace(MELTR, network=dataclasses.replace(SMALL, dropout=0.0))
    objective, state, found, each, rng = first_gradients(config)
    losses = jnp.stack([found.metrics[f"loss/{name}"] for name in NAMES])
    weights = jax.grad(objective.combiner.apply, argnums=1)(state["phi"], losses)
    expected = weighted(each(jax.random.split(rng)[1]), weights)
    toy.assert_close(found.grads, expected, rtol=1e-4, atol=1e-6)
    assert float(jnp.max(jnp.abs(weights))) > 0


def test_pcgrad_projects_what_conflicts():
    objective, _, found, each, rng = first_gradients(MetaLossConfig("pcgrad"))
    stacked, key = jax.tree.map(lambda *g: jnp.stack(g), *each(rng)), jax.random.key(3)
    grads, _ = objective.modulate(found.grads, found.signals, key)
    toy.assert_close(grads, pcgrad(stacked, key)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("combiner", ["equal", "pcgrad"])
def test_a_loss_left_out_is_not_in_the_mean(combiner):
    """Nor does it shrink the step, as a loss and a gradient of 0 would."""

    def two_of(params, frozen, batch, rng):
        losses, metrics = losses_fn(params, frozen, batch, rng)
        return losses[jnp.array([0, 2])], metrics

    def broken(params, frozen, batch, rng):
        losses, metrics = losses_fn(params, frozen, batch, rng)
        return losses.at[1].set(jnp.nan), metrics

    params = jax.tree.map(jnp.asarray, toy.make_params())
    batch, rng = next(batches(0)(8)), jax.random.key(2)
    found = []
    for names, fn in ((NAMES, broken), (NAMES[::2], two_of)):
        workload = make_workload(losses=Losses(names, "distance", fn))
        objective = make_objective(workload, MetaLossConfig(combiner))
        state = objective.init(jax.random.key(1))
        one = jax.jit(objective.gradient)(state, params, (), batch, rng)
        if objective.modulate is not None:
            one = one._replace(grads=objective.modulate(one.grads, one.signals, rng)[0])
        found.append(one)
    assert found[0].metrics["masked_losses"] == 1
    assert found[0].loss == pytest.approx(float(found[1].loss), rel=1e-6)
    toy.assert_close(found[0].grads, found[1].grads, rtol=1e-4, atol=1e-6)


def test_uncertainty_learns_its_variances_with_the_meta_optimizer():
    config = MetaLossConfig("uncertainty", learning_rate=0.1)
    objective, state, found, _, _ = first_gradients(config)
    new = objective.update(state, found.signals)
    losses = np.asarray([found.metrics[f"loss/{name}"] for name in NAMES])
    # d/ds of (e^-s l + s) / 2 at s = 0; Adam's first step is its sign.
    expected = -0.1 * np.sign(0.5 * (1 - losses))
    np.testing.assert_allclose(new["phi"]["log_variances"], expected, rtol=1e-3)


def test_gradnorm_moves_its_weights_and_keeps_their_sum():
    config = MetaLossConfig("gradnorm", learning_rate=0.1)
    objective, state, found, each, rng = first_gradients(config)
    norms = jnp.asarray([optax.tree.norm(g) for g in each(rng)])
    losses = found.signals["losses"]
    new = objective.update(state, found.signals)
    grads = jax.grad(gradnorm_loss)(jnp.ones(3), norms, losses, losses)
    expected = gradnorm_weights(1 - 0.1 * jnp.sign(grads))
    np.testing.assert_allclose(new["phi"], expected, rtol=1e-3)
    np.testing.assert_allclose(jnp.sum(new["phi"]), 3.0, rtol=1e-6)
    np.testing.assert_array_equal(new["first"], losses)


@pytest.mark.parametrize("broken", ["losses", "gradients"])
def test_gradnorm_survives_a_loss_or_gradient_that_is_not_finite(broken):
    objective = make_objective(make_workload(), MetaLossConfig("gradnorm"))
    state = objective.init(jax.random.key(1))
    signals = {
        "losses": jnp.array([1.0, 2.0, 3.0]),
        "gradients": jnp.array([[4.0, 0.0], [0.6, 0.8], [0.0, 2.0]]),
    }
    signals[broken] = signals[broken].at[1].set(jnp.nan)
    new = objective.update(state, signals)
    assert np.all(np.isfinite(new["phi"])) and float(new["phi"][1]) > 0
    # The other two still move apart, as without the third: 4 and 2 around 3.
    assert new["phi"][0] < new["phi"][1] < new["phi"][2]


@pytest.mark.parametrize("combiner", ["equal", "gradnorm", "pcgrad"])
def test_micro_batches_give_the_gradient_of_the_whole(combiner):
    """As without accumulation, for losses that are means over examples.

    GradNorm's norms and PCGrad's projections are those of the mean gradients.
    """
    config = MetaLossConfig(combiner)
    whole, parts = (
        train(
            config,
            workload=make_workload(without_noise),
            config=dataclasses.replace(toy.CONFIG, accumulation_steps=count),
        ).state
        for count in (1, 4)
    )
    toy.assert_close(whole.params, parts.params, rtol=1e-3, atol=1e-5)
    toy.assert_close(whole.objective, parts.objective, rtol=1e-3, atol=1e-5)


def without_noise(params, frozen, batch, rng):
    return losses_fn(params, frozen, batch, jax.random.key(0))


@pytest.mark.parametrize(
    "kind",
    ["jvp", *(pytest.param(k, marks=pytest.mark.slow) for k in ("sama", "neumann"))],
)
def test_a_run_trains_its_combiner_every_few_steps(kind):
    config = dataclasses.replace(MELTR, hypergradient=HypergradientConfig(kind))
    result = train(config)
    begin = make_objective(make_workload(), config).init(
        jax.random.fold_in(jax.random.key(toy.CONFIG.seed), 1)
    )
    moved = optax.tree.norm(
        jax.tree.map(lambda a, b: a - b, result.state.objective["phi"], begin["phi"])
    )
    assert float(moved) > 0.1
    # 30 steps, one in four: seven; logged every fourth step.
    rows = [row for row in result.history if "meta/primary" in row]
    assert len(rows) == 7
    names = {
        f"meta/{kind}/{name}" for kind in ("weight", "alignment") for name in NAMES
    }
    assert names <= set(rows[0])
    assert all(row["meta/skipped"] == 0 and row["meta/masked"] == 0 for row in rows)
    adam = optax.tree.get(result.state.objective["opt_state"], "count")
    assert int(adam) == 7


@pytest.mark.slow
def test_the_primary_loss_falls_under_a_trained_combiner():
    """The network starts with any sign of its weights, and meta-steps mend it."""
    config = dataclasses.replace(MELTR, interval=1, gamma=0.0)
    loop = dataclasses.replace(toy.CONFIG, num_steps=150)
    history = train(config, config=loop).history
    rows = [row["meta/primary"] for row in history if "meta/primary" in row]
    assert np.mean(rows[-5:]) < 0.8 * np.mean(rows[:3])


@pytest.mark.slow
def test_one_batch_for_both_is_the_meta_step_on_it_twice():
    workload, tx = make_workload(), optax.sgd(0.1)
    twice = dataclasses.replace(MELTR, gamma=0.1, direct_term=True)
    once = dataclasses.replace(twice, same_batch=True)
    objective = make_objective(workload, twice)
    state = init_state(workload.params, (), tx, make_mesh(MeshConfig()),
                       init_objective=objective.init)  # fmt: skip
    batch = next(workload.train_batches(8))
    two = make_meta_step(workload, objective, twice, tx)
    one = make_meta_step(workload, objective, once, tx)
    assert one.primary is None
    expected = jax.jit(whole(two))(state, batch, batch)
    toy.assert_close(jax.jit(one.finish)(state, batch), expected, rtol=2e-4, atol=1e-6)
    assert expected[1]["grad_norm"] > 0


@pytest.mark.slow
def test_a_run_draws_one_batch_a_meta_step():
    """And one more to compile for."""
    drawn = []

    def counted(*arguments):
        opened = batches(5)(*arguments)

        class Counting:
            get_state, set_state = opened.get_state, opened.set_state

            def __next__(self):
                drawn.append(next(opened))
                return drawn[-1]

        return Counting()

    config = dataclasses.replace(MELTR, same_batch=True)
    loop = dataclasses.replace(toy.CONFIG, num_steps=8)
    rows = train(config, None, make_workload(meta_batches=counted), loop).history
    assert len(drawn) == 1 + 8 // MELTR.interval
    assert [r["meta/skipped"] for r in rows if "meta/skipped" in r] == [0, 0]


@pytest.mark.slow
def test_an_interrupted_run_ends_in_the_same_bits(tmp_path):
    whole = train(MELTR, tmp_path / "whole")

    def striking(*arguments):
        return toy.SignallingBatches(batches(0)(*arguments), signal.SIGTERM, 7)

    with pytest.raises(Interrupted):
        train(MELTR, tmp_path / "cut", workload=make_workload(train_batches=striking))
    resumed = train(MELTR, tmp_path / "cut")
    assert toy.digest(resumed.state.params) == toy.digest(whole.state.params)
    assert toy.digest(resumed.state.objective) == toy.digest(whole.state.objective)
    metrics = [(tmp_path / n / "metrics.jsonl").read_bytes() for n in ("whole", "cut")]
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_sharded_is_unsharded():
    """Of parameters whose gradient is zero, Adam would follow the rounding: SGD."""
    workload, tx = make_workload(without_noise), optax.sgd(0.05)
    objective = make_objective(workload, MELTR)
    states = []
    for mesh in (make_mesh(MeshConfig()), make_mesh(MeshConfig(data=2, fsdp=4))):
        state = init_state(
            *(workload.params, (), tx, mesh), init_objective=objective.init
        )
        batch = place(next(workload.train_batches(8)), batch_sharding(mesh))
        step = make_meta_step(workload, objective, MELTR, tx)
        with jax.set_mesh(mesh):
            _, metrics = jax.jit(whole(step))(state, batch, batch)
            new, shown = jax.jit(make_train_step(objective, tx))(state, batch)
        states.append((new.params, metrics, shown))
    toy.assert_close(*states, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "combiner", ["meltr", pytest.param("gradnorm", marks=pytest.mark.slow)]
)
def test_a_loss_that_is_nan_is_left_out_and_counted(combiner):
    def broken(params, frozen, batch, rng):
        losses, metrics = losses_fn(params, frozen, batch, rng)
        # The root of a negative number: NaN, and so is its derivative.
        bad = jnp.sqrt(jnp.min(batch["x"]) + 2.5)
        return losses.at[1].set(losses[1] * bad), metrics

    config = dataclasses.replace(MELTR, combiner=combiner)
    result = train(config, workload=make_workload(broken))
    rows = [row for row in result.history if "train/masked_losses" in row]
    masked = [row["train/masked_losses"] for row in rows]
    assert 0 < np.mean(masked) < 1
    assert all(np.isfinite(row["train/loss"]) for row in rows)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(result.state.params))
    assert int(result.state.nonfinite) == 0


@pytest.mark.slow
def test_a_meta_step_that_is_not_finite_changes_nothing():
    def broken(params, frozen, batch, rng):
        losses, metrics = losses_fn(params, frozen, batch, rng)
        return losses.at[0].set(jnp.nan * losses[0]), metrics

    workload, tx = make_workload(broken), optax.sgd(0.1)
    objective = make_objective(workload, MELTR)
    state = init_state(workload.params, (), tx, make_mesh(MeshConfig()),
                       init_objective=objective.init)  # fmt: skip
    batch = next(workload.train_batches(8))
    step = make_meta_step(workload, objective, MELTR, tx)
    new, metrics = jax.jit(whole(step))(state, batch, batch)
    assert metrics["skipped"] == 1
    assert toy.digest(new) == toy.digest(state.objective)


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({"losses": None}, MELTR, "combiner='meltr': this workload has a single loss"),
        ({"meta_batches": None}, MELTR, "learns from meta-validation data, which"),
        (
            {"losses": Losses(NAMES, "depth", losses_fn)},
            MELTR,
            "primary loss 'depth' is not among the losses: distance, size, sign",
        ),
        (
            {"losses": Losses(("size", "size"), "size", losses_fn)},
            MELTR,
            "two losses have one name, among size, size",
        ),
        ({}, MetaLossConfig("fixed", weights=(1.0,)), "1 weights for 3 losses"),
        *(
            ({}, MetaLossConfig(x, weights=(1.0,) * 3), f"'{x}' has no weights to set")
            for x in ("meltr", "equal", "primary", "gradnorm", "pcgrad")
        ),
    ],
)
def test_what_does_not_fit_is_an_error(changes, config, message):
    with pytest.raises(ValueError, match=message):
        train(config, workload=make_workload(**changes))


def test_a_combiner_that_is_never_trained_is_warned_of(caplog):
    short = dataclasses.replace(toy.CONFIG, num_steps=2)
    train(dataclasses.replace(MELTR, interval=3), config=short)
    assert "meta_loss.interval=3 is more than num_steps=2" in caplog.text


def test_too_few_examples_for_a_meta_batch_are_named():
    held_out = functools.partial(array_batches, {"x": np.zeros((5, 2), np.float32)})
    message = r"meta-validation data, meta_loss.batch_size=8: .* there are 5"
    with pytest.raises(ValueError, match=message):
        train(MELTR, workload=make_workload(meta_batches=held_out))


class Few:
    """Batches that end after three."""

    def __init__(self, batches):
        self._batches, self._left = batches, 3

    def __iter__(self):
        return self

    def __next__(self):
        if not self._left:
            raise StopIteration
        self._left -= 1
        return next(self._batches)


def test_meta_validation_data_that_end_are_named():
    def few(*arguments):
        return Few(batches(5)(*arguments))

    with pytest.raises(ValueError, match=r"meta-validation data ended .* must repeat"):
        train(MELTR, workload=make_workload(meta_batches=few))


def test_settings_of_a_config_file():
    config = read_meta_loss({"published": "univl", "combiner": "equal"}, "config.m")
    assert (config.combiner, config.clip_norm) == ("equal", 50.0)
    with pytest.raises(ValueError, match=r"config.m has no setting 'intervl'"):
        read_meta_loss({"intervl": 2}, "config.m")
    with pytest.raises(ValueError, match=r"config.m.published='univ' must be one of"):
        read_meta_loss({"published": "univ"}, "config.m")
    with pytest.raises(ValueError, match="same_batch=True shares the pass of"):
        read_meta_loss({"same_batch": True, "hypergradient": {"kind": "sama"}})
    with pytest.raises(ValueError, match="interval=0 must be at least 1"):
        read_meta_loss({"interval": 0})
    with pytest.raises(ValueError, match=r"config.m must be settings by name"):
        read_meta_loss("meltr", "config.m")
    with pytest.raises(ValueError, match=r"config.m.network must be settings by"):
        read_meta_loss({"published": "univl", "network": 8}, "config.m")
