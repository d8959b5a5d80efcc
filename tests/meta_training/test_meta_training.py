"""Estimator against known gradients; unroll against a plain loop; exact resume."""

import dataclasses
import itertools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from meta_training_toy import SMALL, config, line_task, parametrisation

import meta_opt
from meta_opt.interruption import Interrupted
from meta_opt.meta_training import programs
from meta_opt.meta_training.config import ESTIMATORS
from meta_opt.meta_training.estimation import make_estimator
from meta_opt.meta_training.estimators.episode import Estimator
from meta_opt.meta_training.evolution import antithetic
from meta_opt.meta_training.outer_loop import meta_train
from meta_opt.meta_training.parametrisation import Parametrisation
from meta_opt.meta_training.scoring import CAP, relative_score
from meta_opt.meta_training.unroll import Augmentation, Unroll, unroll, unroll_with
from meta_opt.meta_training.validation import Validation
from meta_opt.optimizers.baselines import baseline
from meta_opt.optimizers.controller import output_index
from meta_opt.optimizers.transformation import learned_transformation
from meta_opt.tasks.families import make_task
from meta_opt.tasks.task import Splits


def same(a, b):
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_antithetic_mean_is_the_smoothed_gradient_within_its_interval():
    # f = sum a_i x_i^3 has smoothed gradient 3 a_i (x_i^2 + sigma^2).
    a = jnp.array([1.0, -2.0, 0.5, 3.0])
    theta = {"x": jnp.array([0.3, -0.2, 0.9, 0.0])}
    sigma = 0.4

    def objective(thetas):
        return jnp.power(thetas["x"], 3) @ a

    def one(key):
        return antithetic(objective, theta, key, pairs=8, sigma=sigma).gradient["x"]

    keys = jax.random.split(jax.random.key(0), 2000)
    samples = np.asarray(jax.jit(jax.vmap(one))(keys))
    a, theta = np.asarray(a), jax.tree.map(np.asarray, theta)
    expected = 3 * a * (theta["x"] ** 2 + sigma**2)
    error = np.std(samples, axis=0) / np.sqrt(len(samples))
    assert np.all(np.abs(np.mean(samples, axis=0) - expected) < 4 * error)
    # The interval is narrow enough to tell the smoothed gradient from the plain one.
    assert np.any(np.abs(3 * a * theta["x"] ** 2 - expected) > 8 * error)


def test_antithetic_evaluates_mirrored_pairs_and_the_centre():
    seen = []

    def objective(thetas):
        seen.append(thetas["x"])
        return jnp.sum(thetas["x"], axis=1)

    theta = {"x": jnp.array([1.0, 2.0])}
    estimate = antithetic(objective, theta, jax.random.key(1), pairs=3, sigma=0.1)
    (population,) = seen
    np.testing.assert_allclose(
        population[:3] + population[3:6], jnp.tile(2 * theta["x"], (3, 1)), rtol=1e-6
    )
    assert float(estimate.centre) == 3.0


def test_unroll_equals_a_plain_loop():
    task = line_task()
    key = jax.random.key(3)
    theta = meta_opt.init_theta(jax.random.key(1), SMALL)
    theta["output"] = jax.tree.map(lambda x: x + 0.1, theta["output"])
    outcome = jax.jit(lambda key: unroll(task, theta, SMALL, key, 5))(key)

    init_key, batch_key, _ = jax.random.split(key, 3)
    # Five batches of four from twelve examples.
    tx = meta_opt.learned_optimizer(5, theta=theta, config=SMALL)
    update, loss_of = jax.jit(tx.update), jax.jit(task.loss)
    value_and_grad = jax.jit(jax.value_and_grad(lambda p, b: task.loss(p, b)[0]))
    params = task.init(init_key)
    state = tx.init(params)
    for t in range(5):
        picks = jax.random.randint(jax.random.fold_in(batch_key, t), (4,), 0, 12)
        batch = {k: v[picks] for k, v in task.splits.train.items()}
        loss, grads = value_and_grad(params, batch)
        feedback = jnp.float32(jnp.nan)
        if t % 2 == 0:
            feedback = loss_of(params, task.splits.validation)[0]
        updates, state = update(grads, state, params, value=loss, feedback=feedback)
        params = optax.apply_updates(params, updates)
    expected = task.loss(params, task.splits.test)
    np.testing.assert_allclose(outcome.loss, expected[0], rtol=1e-5)
    np.testing.assert_allclose(outcome.error, expected[1])


def test_one_compiled_program_serves_all_horizons_and_populations_do_not_mix():
    task = line_task()
    theta = meta_opt.init_theta(jax.random.key(1), SMALL)
    # No more: far off, runs carry the rounding of batched products on.
    other = jax.tree.map(lambda x: x + 0.1, theta)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), theta, other)
    key = jax.random.key(0)
    twice = Augmentation(reparametrisation=2.0)

    def loss_of(theta, n):
        return unroll(task, theta, SMALL, key, n, twice).loss

    run = jax.jit(jax.vmap(loss_of, in_axes=(0, None)))
    run_alone = jax.jit(loss_of, static_argnums=1)
    for steps in (3, 6):
        losses = run(both, jnp.int32(steps))
        for loss, single in zip(losses, (theta, other), strict=True):
            np.testing.assert_allclose(loss, run_alone(single, steps), rtol=1e-5)
        assert abs(losses[0] - losses[1]) > 1e-3 * losses[0]
    assert run._cache_size() == 1


def test_reparametrisation_scales_parameters_only_inside():
    task = line_task()
    wide = Augmentation(reparametrisation=10.0)

    @jax.jit
    def both(key):
        return [
            unroll_with(task, optax.sgd(0.1), key, 0, *changes)
            for changes in ((), (wide,))
        ]

    plain, scaled = both(jax.random.key(0))
    np.testing.assert_allclose(plain.loss, scaled.loss, rtol=1e-5)


def moved_theta():
    theta = meta_opt.init_theta(jax.random.key(1), SMALL)
    noise = jax.random.normal(jax.random.key(2), theta["output"]["kernel"].shape)
    theta["output"]["kernel"] += 0.1 * noise
    return theta


@pytest.mark.slow
def test_differentiable_unroll_has_the_value_and_gradient_of_a_plain_loop():
    task = dataclasses.replace(line_task(), feedback_every=0)
    key = jax.random.key(3)

    # Compiled by itself: the loop around it need not be.
    @jax.jit
    def step(theta, params, state, batch):
        tx = learned_transformation(6, theta=theta, config=SMALL)
        (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(params, batch)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    def plain(theta):
        init_key, batch_key, _ = jax.random.split(key, 3)
        # Six batches of four from twelve examples.
        params = task.init(init_key)
        state = learned_transformation(6, theta=theta, config=SMALL).init(params)
        for t in range(6):
            picks = jax.random.randint(jax.random.fold_in(batch_key, t), (4,), 0, 12)
            batch = {k: v[picks] for k, v in task.splits.train.items()}
            params, state = step(theta, params, state, batch)
        return task.loss(params, task.splits.test)[0]

    def scanned(theta):
        return unroll(task, theta, SMALL, key, 6, differentiable_steps=8).loss

    theta = moved_theta()
    expected, slope = jax.value_and_grad(plain)(theta)
    value, gradient = jax.jit(jax.value_and_grad(scanned))(theta)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for got, want in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(slope), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
    assert float(optax.tree.norm(slope)) > 1e-2


@pytest.mark.slow
def test_meta_gradient_is_finite_where_a_tensor_has_no_gradient():
    task = line_task()
    silent = dataclasses.replace(
        task,
        init=lambda key: {**task.init(key), "unused": jnp.ones((3, 2))},
        loss=lambda p, x: task.loss({"w": p["w"]}, x),
    )
    gradient = jax.jit(
        jax.grad(
            lambda t: (
                unroll(
                    silent, t, SMALL, jax.random.key(0), 4, differentiable_steps=4
                ).loss
            )
        )
    )(moved_theta())
    leaves = jax.tree.leaves(gradient)
    assert all(np.all(np.isfinite(g)) for g in leaves)
    assert any(np.any(g) for g in leaves)


@pytest.mark.slow
def test_backpropagation_estimate_is_the_mean_of_unit_gradients():
    task = dataclasses.replace(line_task(), horizons=(5, 5))
    settings = config(estimator="bptt", particles=2, error_weight=0.0)
    theta, key = moved_theta(), jax.random.key(4)
    estimate, _ = make_estimator(task, settings, parametrisation()).estimate(
        theta, (), key
    )
    assert 0 < float(estimate.spread) <= 1 + 1e-6
    run_key, _ = jax.random.split(key)

    def log_loss(theta, key):
        outcome = unroll(
            task, theta, SMALL, key, 5, differentiable_steps=5, safeguard=False
        )
        return jnp.log(outcome.loss + 1e-2)

    # Mapped as in the estimate: momentum is rounded to bfloat16, and fused otherwise
    # it is rounded otherwise now and then.
    stacked = jax.jit(jax.vmap(jax.grad(log_loss), (None, 0)))(
        theta, jax.random.split(run_key, 2)
    )
    grads = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(2)]
    units = [jax.tree.map(lambda x, g=g: x / optax.tree.norm(g), g) for g in grads]
    for got, *parts in zip(
        jax.tree.leaves(estimate.gradient), *map(jax.tree.leaves, units), strict=True
    ):
        np.testing.assert_allclose(got, sum(parts) / 2, atol=5e-5)


@pytest.mark.slow
def test_subset_leaves_examples_out_and_label_noise_exchanges_labels():
    images = jnp.arange(40.0)[:, None]
    part = {"image": images, "label": jnp.arange(40, dtype=jnp.int32)}
    seen = []

    def loss(params, arrays):
        jax.debug.callback(lambda i, y: seen.append((i, y)), *arrays.values())
        return jnp.sum(params["w"] ** 2), jnp.float32(0)

    task = dataclasses.replace(
        line_task(), loss=loss, splits=Splits(part, part, part), feedback_every=0
    )
    theta = meta_opt.init_theta(jax.random.key(1), SMALL)
    few, noisy = [], []

    for k in range(6):
        seen.clear()
        changes = Augmentation(subset=0.1, label_noise=1.0)
        unroll(task, theta, SMALL, jax.random.key(k), 30, changes)
        jax.effects_barrier()
        batches = [(i, y) for i, y in seen if len(i) == task.batch_size]
        shown = np.concatenate([i[:, 0] for i, _ in batches])
        labels = np.concatenate([y for _, y in batches])
        few.append(len(set(shown.tolist())))
        noisy.append(np.mean(labels != shown))
    assert min(few) < 12 and max(few) > 30
    assert min(noisy) == 0 and 0 < max(noisy) < 1


def test_smaller_batches_are_repeated():
    images = jnp.arange(1e6)[:, None]
    part = {"image": images}
    seen, found = [], []

    def loss(params, arrays):
        jax.debug.callback(lambda i: seen.append(i[:, 0]), arrays["image"])
        return jnp.sum(params["w"] ** 2), jnp.float32(0)

    task = dataclasses.replace(
        line_task(),
        loss=loss,
        splits=Splits(part, part, part),
        batch_size=16,
        feedback_every=0,
    )

    @jax.jit
    def five_steps(key):
        run = Unroll(task, optax.sgd(0.1), key, Augmentation(batch=0.1))
        return run.run(run.start(), 0, 5, 0)

    for k in range(6):
        seen.clear()
        jax.block_until_ready(five_steps(jax.random.key(k)))
        jax.effects_barrier()
        sizes = {len(np.unique(batch)) for batch in seen}
        assert len(sizes) == 1 and {len(batch) for batch in seen} == {16}
        found += sizes
    assert min(found) < 8 and max(found) == 16


def test_sparse_gradients_are_those_of_rows_others_each_step():
    task = line_task()
    weights = {"w": jnp.ones((200, 3))}
    task = dataclasses.replace(
        task, init=lambda key: weights, loss=lambda p, x: (jnp.sum(p["w"]), 0.0)
    )

    @jax.jit
    def two_steps(key):
        run = Unroll(task, optax.sgd(1.0), key, Augmentation(sparse=0.5))
        first = run.step(jnp.int32(0), run.start())
        return first[0], run.step(jnp.int32(1), first)[0]

    seen = []
    for k in range(20):
        steps = [weights, *two_steps(jax.random.key(k))]
        moved = [np.asarray(a["w"] != b["w"]) for a, b in itertools.pairwise(steps)]
        for rows in moved:
            assert (rows == rows[:, :1]).all()
        share = np.mean(moved)
        seen.append(share)
        assert share == 1.0 or (moved[0] != moved[1]).any()
        assert share > 0.02
    assert 5 <= sum(share == 1.0 for share in seen) <= 15
    assert min(seen) < 0.4


def test_augmentation_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"reparametrisation=0.5"):
        Augmentation(reparametrisation=0.5)
    with pytest.raises(ValueError, match=r"subset=0"):
        Augmentation(subset=0.0)
    with pytest.raises(ValueError, match=r"label_noise=2"):
        Augmentation(label_noise=2.0)
    with pytest.raises(ValueError, match=r"sparse=-1"):
        Augmentation(sparse=-1.0)


@pytest.mark.slow
def test_validation_scores_against_the_reference_and_keeps_the_best(tmp_path):
    task = line_task()
    theta = moved_theta()
    validation = Validation({"line": task}, {"line": (4.0, 4.0)}, SMALL)
    losses = Validation({"line": task}, {"line": (8.0, 8.0)}, SMALL)(theta)
    np.testing.assert_allclose(
        validation(theta)["line"] - losses["line"], np.log(2.0), 1e-5
    )
    with pytest.raises(ValueError, match="no tuned baseline for line"):
        Validation({"line": task}, {}, SMALL)
    scores = iter([0.5, 0.1, 0.3])
    kept = []

    def pretended(theta):
        kept.append(theta)
        return {"line": next(scores)}

    settings = config(validate_every=2)
    result = meta_train(
        settings, {"line": task}, tmp_path, show_progress=False, validation=pretended
    )
    np.testing.assert_allclose(result.score, 0.1, rtol=1e-6)
    assert same(result.theta, kept[1]) and not same(result.theta, kept[2])


@pytest.mark.slow
def test_direct_weights_are_the_only_ones_that_move(tmp_path):
    names = ("constant>step", "loss_level>weight_decay")
    start = moved_theta()
    result = meta_train(
        config(outer_steps=2, direct=names),
        {"line": line_task()},
        tmp_path,
        show_progress=False,
        start=start,
    )
    after, before = (np.asarray(t["output"]["kernel"]) for t in (result.theta, start))
    moved = np.argwhere(after != before)
    places = [output_index(SMALL, name) for name in names]
    assert sorted(map(tuple, moved.tolist())) == sorted(places)
    for part in ("global", "tensor"):
        assert same(result.theta[part], start[part])


@pytest.mark.slow
def test_direct_weights_can_be_kept(tmp_path):
    start = moved_theta()
    result = meta_train(
        config(outer_steps=2, keep_direct=True),
        {"line": line_task()},
        tmp_path,
        show_progress=False,
        start=start,
    )
    memory = SMALL.tensor_hidden + SMALL.global_hidden
    kernels = [t["output"]["kernel"] for t in (result.theta, start)]
    np.testing.assert_array_equal(*(k[memory:] for k in kernels))
    moved = np.any(kernels[0][:memory] != kernels[1][:memory], axis=1)
    assert moved.all()
    assert not same(result.theta["tensor"], start["tensor"])
    with pytest.raises(ValueError, match="keep_direct freezes the direct weights"):
        Parametrisation(start, SMALL, ("constant>step",), keep_direct=True)


def test_direct_weight_does_what_its_name_says():
    few = parametrisation(("constant>step",))
    # The bound of 2.5 lets through what multiplies the step by two.
    weight = 2.5 * np.arctanh(np.log(2.0) / 2.5)
    theta, plain = few.theta(jnp.array([weight])), few.theta(few.trained())
    params = {"w": jnp.ones(3)}

    def first_update(theta):
        tx = learned_transformation(10, theta=theta, config=SMALL)
        return tx.update(params, tx.init(params), params)[0]["w"]

    np.testing.assert_allclose(
        first_update(theta), 2.0 * first_update(plain), rtol=1e-5
    )


def test_direct_weights_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match=r"no feature .*did you mean 'loss_level'"):
        parametrisation(("loss_levl>step",))
    with pytest.raises(ValueError, match=r"no output .*did you mean 'step'"):
        parametrisation(("loss_level>steps",))
    with pytest.raises(ValueError, match="direct has size>step more than once"):
        parametrisation(("size>step", "size>step"))


def test_relative_score_is_zero_at_the_reference_and_worst_for_nan():
    score = relative_score(jnp.array([2.0, 1.0, 1e9, jnp.nan]), jnp.float32(2.0))
    assert score[0] == 0 and score[1] < 0
    assert score[2] == score[3] == CAP


@pytest.mark.slow
def test_evolution_scores_against_adamw_at_its_best_rate_on_the_same_run():
    task = dataclasses.replace(line_task(), horizons=(8, 8))
    settings = config(rates=(1e-2, 1.0), particles=1, error_weight=0.0)
    theta, key = moved_theta(), jax.random.key(2)
    estimate, _ = make_estimator(task, settings, parametrisation()).estimate(
        theta, (), key
    )
    run_key = jax.random.split(jax.random.split(key, 4)[1], 1)[0]
    ours = unroll(task, theta, SMALL, run_key, 8).loss
    adamw = min(
        float(
            unroll_with(
                task,
                baseline("adamw", 8, learning_rate=rate, weight_decay=1e-2),
                run_key,
                8,
            ).loss
        )
        for rate in settings.rates
    )
    ratio = np.log((ours + 1e-2) / (adamw + 1e-2))
    expected = np.log1p(ratio) if ratio > 0 else -np.log1p(-ratio) / 3
    assert abs(ratio) > 0.05
    np.testing.assert_allclose(estimate.loss, expected, rtol=1e-3)
    assert float(estimate.spread) > 0


@pytest.fixture(scope="module")
def estimator():
    """One compiled estimator for every run of the outer loop below."""
    return make_estimator(line_task(), config(), parametrisation())


@pytest.fixture
def use_estimator(monkeypatch, estimator):
    monkeypatch.setattr(programs, "make_estimator", lambda *args, **settings: estimator)


class BadLoss:
    """A loss that cannot be fetched, when the state is that of the next step."""

    def __float__(self):
        raise OSError("the device is gone")


@pytest.mark.usefixtures("use_estimator")
@pytest.mark.parametrize("fault", ["error", "late error", "SIGTERM"])
def test_interrupted_run_resumes_to_the_bit(tmp_path, monkeypatch, estimator, fault):
    tasks = {"line": line_task()}
    whole = meta_train(config(), tasks, tmp_path / "whole", show_progress=False)
    calls = []

    def breaking(theta, state, key):
        calls.append(key)
        estimate, moved = estimator.estimate(theta, state, key)
        if len(calls) == 5:  # The first call compiles.
            if fault == "error":
                raise OSError("the device is gone")
            if fault == "late error":
                estimate = estimate._replace(loss=BadLoss())
            else:
                os.kill(os.getpid(), signal.SIGTERM)
        return estimate, moved

    broken = Estimator(estimator.init, breaking)
    message = "SIGTERM at step 4" if fault == "SIGTERM" else "the device is gone"
    with monkeypatch.context() as patch:
        patch.setattr(programs, "make_estimator", lambda *args, **settings: broken)
        with pytest.raises((Interrupted, OSError), match=message):
            meta_train(config(), tasks, tmp_path / "broken", show_progress=False)
    resumed = meta_train(config(), tasks, tmp_path / "broken", show_progress=False)
    assert resumed.steps == whole.steps == 6 and resumed.finished
    assert same(whole.theta, resumed.theta)
    logs = [(tmp_path / d / "metrics.jsonl").read_bytes() for d in ("whole", "broken")]
    assert logs[0] == logs[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - {"es", "bptt"}))
def test_windows_of_runs_under_way_are_kept_over_an_interruption(
    tmp_path, monkeypatch, name
):
    tasks = {"line": line_task()}
    settings = config(estimator=name, windows=3, outer_steps=4)
    # One compiled estimator for all runs.
    estimator = make_estimator(tasks["line"], settings, parametrisation())
    monkeypatch.setattr(programs, "make_estimator", lambda *args, **more: estimator)
    whole = meta_train(settings, tasks, tmp_path / "whole", show_progress=False)
    parts = [
        meta_train(
            dataclasses.replace(settings, stop_after=stop),
            tasks,
            tmp_path / "parts",
            show_progress=False,
        )
        for stop in (2, 0)
    ]
    assert [p.steps for p in parts] == [2, 4]
    assert same(whole.theta, parts[1].theta)
    start = meta_opt.init_theta(jax.random.fold_in(jax.random.key(0), 0), SMALL)
    assert not same(whole.theta, start)


@pytest.mark.slow
def test_runs_grow_by_schedule_and_resume_to_the_bit(tmp_path):
    tasks = {"line": line_task()}
    settings = config(longest=((0, 3), (2, 5)), outer_steps=4)
    assert [settings.longest_at(s) for s in range(4)] == [3, 3, 5, 5]
    assert config(longest=((2, 5),)).longest_at(1) is None
    whole = meta_train(settings, tasks, tmp_path / "whole", show_progress=False)
    for stop in (3, 0):
        parts = meta_train(
            dataclasses.replace(settings, stop_after=stop),
            tasks,
            tmp_path / "parts",
            show_progress=False,
        )
    assert same(whole.theta, parts.theta)
    # Every run has three steps until the bound is five.
    fixed = {"line": dataclasses.replace(line_task(), horizons=(3, 3))}
    early = [
        meta_train(config(outer_steps=2, **changes), given, folder, show_progress=False)
        for given, changes, folder in (
            (tasks, {"longest": ((0, 3),)}, tmp_path / "bound"),
            (fixed, {}, tmp_path / "fixed"),
        )
    ]
    assert same(early[0].theta, early[1].theta)
    with pytest.raises(ValueError, match=r"longest=\(\(2, 5\), \(0, 3\)\) must be"):
        config(longest=((2, 5), (0, 3)))


def test_window_needs_a_step():
    with pytest.raises(ValueError, match="shortest horizon 3 is below windows=4"):
        make_estimator(
            line_task(), config(estimator="pes", windows=4), parametrisation()
        )


@pytest.mark.usefixtures("use_estimator")
def test_another_seed_gives_other_weights(tmp_path):
    tasks = {"line": line_task()}
    runs = [
        meta_train(config(seed=s), tasks, tmp_path / str(s), show_progress=False)
        for s in (0, 1)
    ]
    assert not same(runs[0].theta, runs[1].theta)


@pytest.mark.usefixtures("use_estimator")
def test_budget_stops_and_goes_on(tmp_path):
    tasks = {"line": line_task()}
    slice_ = config(budget_seconds=1e-6)
    result = meta_train(slice_, tasks, tmp_path, show_progress=False)
    assert not result.finished and result.steps < 6
    rest = meta_train(config(), tasks, tmp_path, show_progress=False)
    assert rest.finished


@pytest.mark.usefixtures("use_estimator")
def test_task_that_is_broken_at_init_is_left_out_by_name(tmp_path, caplog):
    tasks = {"line": line_task(), "bad": line_task("bad", init_scale=jnp.nan)}
    settings = config(families=("line", "bad"), outer_steps=1)
    meta_train(settings, tasks, tmp_path, show_progress=False)
    assert "'bad' is left out" in caplog.text
    only_bad = config(families=("bad",))
    with pytest.raises(ValueError, match="no family left"):
        meta_train(only_bad, tasks, tmp_path / "none", show_progress=False)


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="families is empty"):
        config(families=())
    with pytest.raises(ValueError, match="pairs=0"):
        config(pairs=0)
    with pytest.raises(ValueError, match="sigma=0"):
        config(sigma=0)
    with pytest.raises(ValueError, match="did you mean 'bptt'"):
        config(estimator="bpt")


def test_unknown_family_names_the_nearest_one():
    with pytest.raises(ValueError, match="did you mean 'digits_mlp'"):
        make_task("digit_mlp")


def test_digits_task_has_disjoint_parts_and_learns():
    task = make_task("digits_mlp")
    rows = [{x.tobytes() for x in np.asarray(part["image"])} for part in task.splits]
    assert not rows[0] & rows[2] and not rows[0] & rows[1] and not rows[1] & rows[2]
    theta = meta_opt.init_theta(jax.random.key(0), SMALL)
    key = jax.random.key(0)
    start = jax.jit(lambda key: unroll_with(task, optax.sgd(0.1), key, 0))(key)
    end = jax.jit(lambda key: unroll(task, theta, SMALL, key, jnp.int32(60)))(key)
    assert end.loss < 0.7 * start.loss and end.error < 0.6 * start.error
