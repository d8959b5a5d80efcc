"""The meta-test's numbers from known outcomes, its runs, and its resumption."""

import csv
import dataclasses
import functools
import importlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import ROOT

from configs import calibrate, meta_evaluate
from meta_opt.meta_training.calibration import (
    CalibrationConfig,
    best_settings,
    task_objectives,
)
from meta_opt.optimizers.baselines import (
    CORE_BASELINES,
    DEFAULT_LEARNING_RATE,
    EXTRA_BASELINES,
    averaged_params,
    baseline,
)
from meta_opt.optimizers.untuned import (
    CALIBRATED,
    Setting,
    calibrated,
    learning_rate_free,
)
from meta_opt.studies.meta_test import contenders as contenders_module
from meta_opt.studies.meta_test import side_by_side
from meta_opt.studies.meta_test.comparison import (
    BUDGETS,
    MISS,
    budget_to,
    compare,
    final,
    interval,
    summarise,
)
from meta_opt.studies.meta_test.contenders import RIVALS, MetaTestConfig, contenders
from meta_opt.studies.meta_test.records import (
    Record,
    fresh_record,
    make_run,
    read_record,
    write_record,
)
from meta_opt.studies.meta_test.report import write_meta_test
from meta_opt.tasks.families import FAMILIES, SPLIT_OF_DATASET, make_task
from meta_opt.tasks.fingerprint import same_task, task_fingerprint
from meta_opt.tasks.inner_run import InnerRun, Outcome, train_and_evaluate
from meta_opt.tasks.task import Splits, Task
from meta_opt.tuning.baseline_spaces import baseline_space
from meta_opt.tuning.on_task import tune_on_task
from meta_opt.tuning.search import SearchConfig
from meta_opt.types import from_config

MACHINE = {"platform": "p", "device": "d", "device_count": 1}


def run_of(budget, losses, errors=None, seconds=1.0):
    losses = np.array(losses, np.float64)
    errors = np.full(len(losses), 0.5) if errors is None else np.array(errors)
    outcome = Outcome(losses, errors, losses, errors)
    return make_run(budget, round(100 * budget), outcome, seconds)


def record_of(name, losses, errors, *, parts=(), seconds=1.0, tuning=0.0, task="t"):
    runs = [run_of(1.0, losses, errors, seconds)]
    return Record(
        task=task,
        optimizer=name,
        fingerprint={"exact": "x", "numbers": {}},
        setup={"num_steps": 100, "seeds": [1, 2, 3]},
        settings={},
        trials=(),
        runs=(*runs, *(run_of(b, x) for b, x in parts)),
        tuning_seconds=tuning,
        environment=MACHINE,
    )


# The protocol, from known outcomes


def test_equal_accuracies_are_equal_whatever_float32_makes_of_them():
    # 45 wrong of 165 in all, in two orders of summation.
    one, two = np.float32([14 / 55, 16 / 55, 15 / 55]), np.float32([0.27272725] * 3)
    losses = (1.0, 1.0, 1.0)
    baselines = {name: record_of(name, losses, one) for name in CORE_BASELINES}
    assert compare(
        record_of("ours", losses, two), baselines
    ).as_accurate_as_best_of_five
    rounded = compare(record_of("ours", losses, two + 2e-8), baselines)
    assert rounded.as_accurate_as_best_of_five
    worse = compare(
        record_of("ours", losses, one + np.float32([0, 0, 1 / 55])), baselines
    )
    assert not worse.as_accurate_as_best_of_five


def test_budget_is_the_least_that_reaches_the_target():
    runs = [
        run_of(b, [x, x]) for b, x in zip(BUDGETS, [1, 2, 1, 3, 1.5, 4], strict=True)
    ]
    assert budget_to(runs, 0.9) == MISS
    assert budget_to(runs, 1.0) == 0.6  # at or below, and not only from there on
    assert budget_to(runs, 1.5) == 0.35
    assert budget_to(runs, 9.0) == 0.25
    # One seed that failed: that budget reaches nothing, not even a failed target.
    failed = [*runs[:-1], run_of(0.25, [0.1, math.nan])]
    assert failed[-1].failures == 1 and failed[-1].validation_loss == (0.1, None)
    assert budget_to(failed, math.inf) == 0.35


def test_interval_is_students():
    found = interval([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.30265
    assert found.mean == 2.0
    assert found.high - 2.0 == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert 2.0 - found.low == pytest.approx(found.high - 2.0)
    assert dataclasses.astuple(interval([0.5])) == (0.5, None, None)


def known_baselines(task="t"):
    """AdamW; core baselines best in loss, and in accuracy; one failed; the best."""
    entries = [
        record_of("adamw", [1.0, 1.2, 0.8], [0.3, 0.3, 0.3], seconds=2.0, tuning=38.0),
        record_of("sgd", [0.5, 0.5, 0.5], [0.4, 0.4, 0.4]),
        record_of("lion", [3.0, 3.0, 3.0], [0.2, 0.2, 0.2]),
        record_of("adam", [math.nan, 0.1, 0.1], [math.nan, 0.1, 0.1]),
        record_of("muon", [0.4, 0.4, 0.4], [0.1, 0.1, 0.1]),
    ]
    return {e.optimizer: dataclasses.replace(e, task=task) for e in entries}


def test_a_row_of_known_outcomes():
    parts = [(0.75, [0.6] * 3), (0.5, [0.9] * 3), (0.25, [1.1, 1.1, math.nan])]
    subject = record_of(
        "learned", [0.41, 0.42, 0.43], [0.21, 0.22, 0.2], parts=parts, seconds=3.0
    )
    row = compare(subject, known_baselines())
    assert row.budget_to_adamw == 0.5 and row.adamw_validation_loss == pytest.approx(1)
    assert row.budget_to_best_of_five == 1.0
    assert (row.best_of_five, row.best_of_all) == ("sgd", "muon")
    assert row.test_accuracy == pytest.approx(79.0)
    assert row.accuracy_over_adamw.mean == pytest.approx(9.0)
    half = 4.30265 / math.sqrt(3)
    assert row.accuracy_over_adamw.high == pytest.approx(9.0 + half, rel=1e-5)
    # The most accurate core baseline is Lion: a failed seed of Adam's counts as 0.
    assert row.accuracy_over_best_of_five.mean == pytest.approx(-1.0)
    assert row.accuracy_over_best_of_all.mean == pytest.approx(-11.0)
    assert not row.as_accurate_as_best_of_five
    assert row.close_to_best_of_all  # 0.42 is 1.05 times 0.4
    assert (row.failures, row.runs) == (1, 12)
    assert row.time_ratio == 1.5 and row.time_ratio_with_tuning == 3.0 / 40.0
    # Paired by seed: equal differences have no spread.
    even = record_of("learned", [0.43] * 3, [0.2] * 3)
    row = compare(even, known_baselines())
    assert dataclasses.astuple(row.accuracy_over_best_of_five) == (0.0, 0.0, 0.0)
    assert row.as_accurate_as_best_of_five and not row.close_to_best_of_all


def test_a_failed_subject_misses_and_is_counted():
    subject = record_of("learned", [math.nan] * 3, [math.nan] * 3)
    row = compare(subject, known_baselines())
    assert row.budget_to_adamw == MISS and row.failures == 3
    assert row.test_accuracy == 0.0 and math.isinf(row.validation_loss)
    assert not row.close_to_best_of_all and not row.as_accurate_as_best_of_five


def test_the_hand_designed_rule_and_poor_runs():
    # AdamW's accuracy is 70%: under 63% is poor.
    rule = record_of("hand_designed", [0.5, 0.6, 0.7], [0.3] * 3)
    subject = record_of("ours", [1.2] * 3, [0.36, 0.38, 0.3])
    row = compare(subject, known_baselines(), rule)
    assert row.loss_over_hand_designed == pytest.approx(2.0) and row.poor_runs == 1
    assert compare(rule, known_baselines(), rule).loss_over_hand_designed == 1.0
    assert compare(subject, known_baselines()).loss_over_hand_designed is None
    lost = record_of("hand_designed", [math.nan] * 3, [0.3] * 3)
    assert compare(subject, known_baselines(), lost).loss_over_hand_designed is None
    failed = record_of("ours", [math.nan, 0.3, 0.3], [math.nan, 0.3, 0.3])
    other = compare(failed, known_baselines(), rule)
    assert math.isinf(other.loss_over_hand_designed) and other.poor_runs == 1
    found = summarise("ours", [row, dataclasses.replace(row, task="u", poor_runs=2)])
    assert found.worst_over_hand_designed == pytest.approx(2.0)
    assert (found.worst_task, found.poor_runs) == ("t", 3)
    worst = summarise("ours", [row, dataclasses.replace(other, task="u")])
    assert math.isinf(worst.worst_over_hand_designed) and worst.worst_task == "u"
    wrong = dataclasses.replace(rule, task="other")
    with pytest.raises(ValueError, match="do not compare"):
        compare(subject, known_baselines(), wrong)


def test_records_that_do_not_compare_are_errors():
    subject = record_of("learned", [1.0] * 3, [0.5] * 3)
    with pytest.raises(ValueError, match="no result of adamw"):
        compare(subject, {"sgd": known_baselines()["sgd"]})
    other = {"num_steps": 100, "seeds": [4, 5, 6]}
    with pytest.raises(ValueError, match="seeds is"):
        compare(dataclasses.replace(subject, setup=other), known_baselines())
    with pytest.raises(ValueError, match="do not compare"):
        compare(subject, known_baselines(task="other"))


def test_the_summary_and_its_files(tmp_path):
    def subject(task, losses, errors, parts=(), **changes):
        found = record_of("ours", losses, errors, parts=parts, task=task, seconds=4.0)
        return dataclasses.replace(found, **changes)

    records = [
        subject("a", [0.4] * 3, [0.1] * 3, [(0.25, [1.0] * 3)]),
        subject("b", [9.0] * 3, [0.5] * 3),
        subject("c", [0.9] * 3, [0.2] * 3, environment={"device": "another"}),
    ]
    rows = [compare(r, known_baselines(r.task)) for r in records]
    found = summarise("ours", rows)
    assert found.budget_to_adamw == pytest.approx((0.25 * 4 * 1) ** (1 / 3))
    assert found.budget_to_best_of_five == pytest.approx((1 * 4 * 4) ** (1 / 3))
    assert found.accuracy_over_adamw.mean == pytest.approx((20 - 20 + 10) / 3)
    assert found.share_as_accurate_as_best_of_five == pytest.approx(2 / 3)
    assert found.share_close_to_best_of_all == pytest.approx(1 / 3)
    assert (found.misses, found.failures, found.runs) == (1, 0, 12)
    # Seconds of another machine do not compare.
    assert rows[2].time_ratio is None and found.time_ratio == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no task"):
        summarise("ours", [])

    everyone = [*records, *known_baselines("a").values()]
    text = write_meta_test(
        tmp_path,
        summaries=[dataclasses.asdict(found)],
        rows={"ours": [dataclasses.asdict(row) for row in rows]},
        finals=[dataclasses.asdict(final(record)) for record in everyone],
        facts={"seeds": "1, 2, 3"},
    )
    assert "+3.3 [" in text and "0.67" in text
    markdown = (tmp_path / "meta_test.md").read_text("utf-8")
    assert "| b | 4 | 4 | 9 |" in markdown and "failed" in markdown
    values = json.loads((tmp_path / "meta_test.json").read_text("utf-8"))
    assert values["summaries"][0]["misses"] == 1
    (adam,) = [f for f in values["finals"] if f["optimizer"] == "adam"]
    assert adam["validation_loss"] is None and adam["failures"] == 1
    with (tmp_path / "meta_test.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["task"] for line in lines] == ["a", "b", "c"]
    assert float(lines[0]["accuracy_over_adamw"]) == pytest.approx(20)
    assert float(lines[0]["accuracy_over_adamw_low"]) == pytest.approx(20)

    finals = [dataclasses.asdict(final(record)) for record in everyone[3:]]
    alone = write_meta_test(tmp_path, summaries=[], rows={}, finals=finals)
    assert "validation loss" in alone and "adamw" in alone


def test_a_report_of_more_tasks_is_not_replaced(experiment, tmp_path, capsys):
    results, workdir = tmp_path / "results", tmp_path / "work"
    assert experiment.report_folder(["a"], results, workdir) == results
    finals = [{"task": task, "optimizer": "adamw"} for task in "ab"]
    write_meta_test(results, summaries=[], rows={}, finals=finals)
    for tasks in (["a", "b"], ["a", "b", "c"]):
        assert experiment.report_folder(tasks, results, workdir) == results
    assert capsys.readouterr().out == ""
    assert experiment.report_folder(["a", "c"], results, workdir) == workdir
    assert "has 1 further tasks (b) and is kept" in capsys.readouterr().out
    (results / "meta_test.json").write_text("{}")
    with pytest.raises(ValueError, match=r"meta_test.json is not a report"):
        experiment.report_folder(["a"], results, workdir)


# Records


def test_a_stale_record_is_an_error_that_says_what_to_do(tmp_path):
    path = tmp_path / "r.json"
    record = record_of("adamw", [1.0, 2.0, math.nan], [0.1, 0.2, math.nan])
    assert fresh_record(path, record.fingerprint, record.setup) is None
    write_record(path, record)
    assert fresh_record(path, record.fingerprint, record.setup) == record
    with pytest.raises(ValueError, match=r"'t' changed\. Delete it"):
        fresh_record(path, {"exact": "y", "numbers": {}}, record.setup)
    with pytest.raises(ValueError, match="num_steps was 100, is 50"):
        fresh_record(path, record.fingerprint, {**record.setup, "num_steps": 50})
    path.write_text("{}")
    with pytest.raises(ValueError, match="delete it"):
        read_record(path)


def line_task(**changes):
    """Least squares with a matrix and a bias: compiles in a second."""
    x = jax.random.normal(jax.random.key(7), (24, 3))
    y = x @ jnp.array([[1.0], [-2.0], [0.5]]) + 0.3

    def part(s):
        return {"x": x[s], "y": y[s]}

    def loss(params, arrays):
        error = arrays["x"] @ params["w"] + params["b"][None] - arrays["y"]
        return jnp.mean(jnp.square(error)), jnp.mean((jnp.abs(error) > 1) * 1.0)

    def init(key):
        return {"w": jax.random.normal(key, (3, 1)), "b": jnp.zeros(1)}

    splits = Splits(part(slice(0, 12)), part(slice(12, 18)), part(slice(18, 24)))
    task = Task("line", "line", init, loss, splits, batch_size=4, horizons=(3, 8))
    return dataclasses.replace(task, **changes)


def test_fingerprint_tells_tasks_apart_and_forgives_rounding():
    task = line_task()
    found = task_fingerprint(task)
    assert same_task(found, json.loads(json.dumps(found)))
    train = task.splits.train
    rounded = task.splits._replace(train={**train, "x": train["x"] * (1 + 1e-6)})
    assert same_task(found, task_fingerprint(line_task(splits=rounded)))
    shuffled = task.splits._replace(train={k: v[::-1] for k, v in train.items()})
    others = (
        {"splits": shuffled},
        {"batch_size": 5},
        {"feedback_every": 2},
        {"loss": lambda p, x: (2 * task.loss(p, x)[0], task.loss(p, x)[1])},
    )
    for other in others:
        assert not same_task(found, task_fingerprint(line_task(**other)))


def test_fingerprints_are_those_of_the_committed_results():
    """Another hash makes every stored result stale: convert them all, then this one."""
    found = task_fingerprint(make_task("digits_mlp"))
    assert found["exact"].startswith("c34e81958cca54aec619f05a6285055f")


# Inner runs


def telling(num_steps):
    """Gradient descent that shows which ``value`` and ``feedback`` it was given."""

    def update(grads, state, params=None, *, value, feedback, **extra):
        seen = 0.1 * value + jnp.where(jnp.isnan(feedback), 0.0, feedback)
        step = 0.05 / (1.0 + seen) * (1.0 - state / num_steps)
        return jax.tree.map(lambda g: -step * g, grads), state + 1

    return optax.GradientTransformationExtraArgs(lambda params: jnp.float32(0), update)


def test_train_and_evaluate_equals_a_plain_loop():
    task = line_task(feedback_every=2)
    key = jax.random.key(3)
    outcome = jax.jit(lambda k: train_and_evaluate(task, telling, k, 5))(key[None])
    init_key, batch_key = jax.random.split(key)
    tx = telling(5)
    params = task.init(init_key)
    state = tx.init(params)
    loss = jax.jit(task.loss)

    @jax.jit
    def step(params, state, t, told):
        picks = jax.random.randint(jax.random.fold_in(batch_key, t), (4,), 0, 12)
        batch = {k: v[picks] for k, v in task.splits.train.items()}
        (value, _), grads = jax.value_and_grad(task.loss, has_aux=True)(params, batch)
        updates, state = tx.update(grads, state, params, value=value, feedback=told)
        return optax.apply_updates(params, updates), state

    for t in range(5):
        told = loss(params, task.splits.validation)[0] if t % 2 == 0 else math.nan
        params, state = step(params, state, t, jnp.float32(told))
    expected = [*loss(params, task.splits.validation), *loss(params, task.splits.test)]
    np.testing.assert_allclose(jnp.stack(outcome)[:, 0], jnp.stack(expected), rtol=1e-5)


@pytest.mark.parametrize("name", DEFAULT_LEARNING_RATE)
def test_traced_settings_are_untraced_ones(name):
    """One program serves two settings and two lengths; each as if it were constant."""
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    noise = jax.random.normal(jax.random.key(0), (7, 3, 2))
    grads = {"w": 1.0 + noise, "b": 0.5 + noise[:, 0]}

    def train(num_steps, settings):
        tx = baseline(name, num_steps, **settings)

        def step(carry, grads):
            updates, state = tx.update(grads, carry[1], carry[0], value=1.0)
            return (optax.apply_updates(carry[0], updates), state), None

        (final, state), _ = jax.lax.scan(step, (params, tx.init(params)), grads)
        return averaged_params(state, final)

    program, rate = jax.jit(train), DEFAULT_LEARNING_RATE[name]
    seen = []
    for steps, *values in ((7, 10 * rate, 0.8, 0.1, 0.3), (12, rate, 0.95, 0.0, 0.0)):
        names = ("learning_rate", "momentum", "weight_decay", "warmup_fraction")
        settings = dict(zip(names, values, strict=True))
        found = program(steps, settings)
        plain = jax.jit(functools.partial(train, steps, settings))()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
            found,
            plain,
        )
        seen.append(float(found["w"][0, 0]))
    assert seen[0] != seen[1] and program._cache_size() == 1


def test_seeds_side_by_side_are_seeds_alone():
    task = line_task()

    def make(n, settings):
        return optax.sgd(settings["rate"])

    alone, _ = InnerRun(task, make)([3, 4, 5], 6, {"rate": 0.1})
    pairs, _ = InnerRun(task, make, seeds_at_once=2)([3, 4, 5], 6, {"rate": 0.1})
    np.testing.assert_allclose(np.stack(alone), np.stack(pairs), rtol=1e-5)
    assert len(set(alone.validation_loss.tolist())) == 3


def test_divergence_is_an_outcome_and_a_search_survives_it(tmp_path):
    task = line_task()
    run = InnerRun(task, lambda n, settings: optax.sgd(1e30 * settings["momentum"]))
    outcome, _ = run([1, 2], 8, dict.fromkeys(baseline_space("sgd"), 1.0))
    assert outcome.failed().all()
    found = tune_on_task(
        run,
        "sgd",
        8,
        SearchConfig(num_trials=2, progress=False),
        seeds=[0],
        storage=tmp_path / "s.sqlite3",
        setup={},
    )
    assert [t["state"] for t in found.trials] == ["pruned", "pruned"]
    assert found.settings == found.trials[0]["params"]


@pytest.mark.parametrize("name", RIVALS)
def test_untuned_rivals_take_the_loss_and_reduce_it(name):
    task = line_task(provides_loss=False)
    config = MetaTestConfig(tasks=("line",), untuned=(name,))
    rival, *tuned = contenders(config)
    assert rival.name == name and not rival.tuned and all(e.tuned for e in tuned)
    needs = name in ("momo_default", "momo_adam_default")
    assert rival.needs_value == needs
    task = dataclasses.replace(task, provides_loss=needs)
    run = InnerRun(task, rival.make(task))
    start, _ = run([1], 0, rival.settings)
    found, _ = run([1], 60, rival.settings)
    assert not found.failed().any()
    assert found.validation_loss[0] < start.validation_loss[0]


def test_the_calibrated_settings_are_those_of_the_stored_calibration():
    path = ROOT / "results/calibrated_baselines.json"
    stored = json.loads(path.read_text())
    found = best_settings(stored["objectives"])
    assert found == stored["best"]
    for name, setting in CALIBRATED.items():
        assert setting == Setting(
            found[name]["learning_rate"], found[name]["weight_decay"]
        )


def test_calibrated_rivals_are_stale_under_another_setting(monkeypatch):
    config = MetaTestConfig(tasks=("t",), untuned=("lion_calibrated",))
    one = contenders(config)[0]
    assert one.setup == {"learning_rate": 1e-3, "weight_decay": 1.0} == one.settings
    monkeypatch.setitem(CALIBRATED, "lion", Setting(3e-4, 0.1))
    assert contenders(config)[0].setup != one.setup
    with pytest.raises(ValueError, match="did you mean 'nadamw'"):
        calibrated("nadam", 10)
    with pytest.raises(ValueError, match="unknown untuned baseline"):
        learning_rate_free("adamw", 10)


def test_a_calibration_takes_the_best_setting_over_all_tasks():
    config = CalibrationConfig(
        families=("line",),
        rivals=("adamw", "lion"),
        learning_rates={"adamw": (1e-3, 0.1), "lion": (1e-3, 0.03)},
        weight_decays={"adamw": (0.01,), "lion": (0.1,)},
        horizon_shares=(1.0, 0.5),
    )
    task = dataclasses.replace(line_task(), horizons=(3, 60))
    objectives = task_objectives(task, config)
    # The first of AdamW's is the reference itself.
    assert (
        objectives["adamw"][0]["objective"] == 0 > objectives["adamw"][1]["objective"]
    )
    assert best_settings({"line": objectives})["adamw"]["learning_rate"] == 0.1
    for wrong, why in (
        ({"rivals": ("adam",)}, "unknown rival 'adam'"),
        ({"rivals": ("muon",)}, "muon needs"),
        ({"families": ()}, "families is empty"),
    ):
        with pytest.raises(ValueError, match=why):
            dataclasses.replace(config, **wrong)
    for variant in ("families", "smoke"):
        settings = calibrate.get_config(variant).to_dict()["calibration"]
        families = from_config(CalibrationConfig, settings).families
        assert {SPLIT_OF_DATASET[f.split("_")[0]] for f in families} == {"train"}


def test_baselines_are_told_apart():
    assert not set(CORE_BASELINES) & set(EXTRA_BASELINES)
    assert {*CORE_BASELINES, *EXTRA_BASELINES} == set(DEFAULT_LEARNING_RATE)
    for name, default in DEFAULT_LEARNING_RATE.items():
        rate = baseline_space(name)["learning_rate"]
        assert rate.low < default < rate.high
    with pytest.raises(ValueError, match="did you mean 'prodigy'"):
        baseline("prodgy", 10)
    with pytest.raises(ValueError, match="no search space"):
        baseline_space("hand_designed")


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 8.0 - 1.0, jnp.float32), jnp.asarray(labels)

    def loss(params, arrays):
        hidden = jax.nn.relu(arrays["x"] @ params["in"])
        logits = hidden @ params["out"] + params["bias"][None]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, arrays["y"])
        return loss.mean(), jnp.mean((logits.argmax(-1) != arrays["y"]) * 1.0)

    def init(key):
        one, two = jax.random.split(key)
        return {
            "in": 0.15 * jax.random.normal(one, (64, 32)),
            "out": 0.2 * jax.random.normal(two, (32, 10)),
            "bias": jnp.zeros(10),
        }

    parts = (slice(0, 1000), slice(1000, 1300), slice(1300, None))
    splits = Splits(*({"x": x[s], "y": y[s]} for s in parts))
    return Task("digits", "digits", init, loss, splits, horizons=(50, 150))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTRA_BASELINES)
def test_extra_baselines_train_digits(digits, name):
    run = InnerRun(digits, lambda n, settings: baseline(name, n, **settings))
    rate = {"muon": 0.03, "schedule_free_adamw": 0.03, "prodigy": 3.0}[name]
    outcome, _ = run([0], 150, {"learning_rate": rate})
    assert outcome.test_error[0] < 0.2 and outcome.validation_loss[0] < 0.6
    start, _ = run([0], 0, {"learning_rate": rate})
    assert start.test_error[0] > 0.7


# The experiment


@pytest.fixture
def experiment():
    return importlib.import_module("experiments.meta_evaluate")


def config_of(variant):
    return meta_evaluate.get_config(variant).to_dict()


@pytest.mark.slow
def test_smoke_is_resumed_after_an_interruption(
    experiment, digits, monkeypatch, tmp_path
):
    settings = config_of("smoke")
    config = from_config(MetaTestConfig, settings["meta_test"])
    search = from_config(SearchConfig, settings["search"])
    named = dataclasses.replace(digits, name="digits_mlp")
    monkeypatch.setattr(experiment, "make_task", lambda name, data_dir: named)
    # In place of the hand-designed rule, which compiles three times as long.
    cheap = lambda task: lambda n, settings: optax.sgd(0.1)  # noqa: E731
    monkeypatch.setattr(contenders_module, "_make_hand_designed", cheap)
    calls, call = [], InnerRun.__call__

    def counted(self, seeds, num_steps, values):
        calls.append(tuple(seeds))
        if len(calls) == 4:  # 2 budgets of the hand-designed rule, then sgd's trials
            raise KeyboardInterrupt
        return call(self, seeds, num_steps, values)

    monkeypatch.setattr(InnerRun, "__call__", counted)
    where = (config, search, None, tmp_path / "results", tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        experiment.measure_all(*where)
    folder = tmp_path / "results" / "digits_mlp"
    assert [f.name for f in folder.iterdir()] == ["hand_designed.json"]
    found = experiment.measure_all(*where)
    # sgd's second trial again, then its seeds; adamw's trials and seeds.
    assert calls[3:] == [(0,), (0,), (1, 2), (0,), (0,), (1, 2)]
    assert experiment.measure_all(*where) == found and len(calls) == 9
    records = found["digits_mlp"]
    assert [len(records[n].trials) for n in ("hand_designed", "sgd")] == [0, 2]
    assert [run.num_steps for run in records["hand_designed"].runs] == [30, 15]
    best = min(t["value"] for t in records["adamw"].trials)
    (chosen,) = [t for t in records["adamw"].trials if t["value"] == best]
    assert records["adamw"].settings == chosen["params"]
    text = experiment.report(config, found, tmp_path / "results")
    assert "budget to tuned AdamW" in text
    assert (tmp_path / "results" / "meta_test.md").is_file()

    longer = dataclasses.replace(config, num_steps={"digits_mlp": 31})
    with pytest.raises(ValueError, match="num_steps was 30, is 31"):
        experiment.measure_all(longer, *where[1:])


def test_configs_build_and_the_sets_are_of_their_data():
    from meta_opt.tasks.foreign import FOREIGN, STYLE_VALIDATION

    for variant in ("test", "validation", "foreign", "style_validation", "smoke"):
        settings = config_of(variant)
        tasks = settings["meta_test"]["tasks"]
        from_config(SearchConfig, settings["search"])
        assert set(tasks) <= set(FAMILIES)
        if variant != "smoke":
            of_split = {k for k, v in SPLIT_OF_DATASET.items() if v == variant}
            assert all(name.split("_")[0] in of_split for name in tasks)
        whole = {"foreign": FOREIGN, "style_validation": STYLE_VALIDATION}
        assert set(tasks) == set(whole.get(variant, tasks))
        if tasks:
            config = from_config(MetaTestConfig, settings["meta_test"])
            assert "adamw" in config.core_baselines
    settings["meta_test"]["core_baselines"] = ("sgd", "adamv")
    with pytest.raises(ValueError, match="did you mean 'adam"):
        from_config(MetaTestConfig, settings["meta_test"])
    for wrong, why in (
        ({"tasks": ()}, "tasks is empty"),
        ({"core_baselines": ("sgd",)}, "lacks 'adamw'"),
        ({"budgets": (0.5,)}, "1 among them"),
        ({"seeds": (0, 1)}, "in tuning_seeds too"),
        ({"num_steps": {"other": 3}}, "not among the tasks"),
    ):
        with pytest.raises(ValueError, match=why):
            MetaTestConfig(**{"tasks": ("digits_mlp",), **wrong})


def test_learned_results_are_keyed_by_the_weights(tmp_path):
    from meta_opt.optimizers.controller import ControllerConfig, init_theta
    from meta_opt.optimizers.weights import save_theta

    small = ControllerConfig(global_hidden=3, tensor_hidden=2, directions=("adam",))
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        save_theta(tmp_path / name, init_theta(jax.random.key(seed), small), small)
    paths = tuple(str(tmp_path / f"{name}.safetensors") for name in "abc")
    config = MetaTestConfig(tasks=("t",), untuned=("learned",), weights=paths)
    a, b, c, *others = contenders(config)
    assert a.file == c.file != b.file and a.setup == c.setup != b.setup
    assert all(other.tuned for other in others) and not a.tuned
    assert [other.name for other in others] == [*CORE_BASELINES, *EXTRA_BASELINES]
    assert [other.setup["trials"] for other in others] == [20] * 5 + [8] * 3
    task = line_task()
    make = a.make(task)
    outcome = jax.eval_shape(
        lambda keys, n, theta: train_and_evaluate(
            task, lambda n: make(n, theta), keys, n
        ),
        *(jax.random.key(0)[None], jnp.int32(5), a.settings),
    )
    assert outcome.test_loss.shape == (1,)


def test_untuned_optimizers_side_by_side(tmp_path):
    errors = [0.5, 0.25]
    records = {
        r.optimizer: r
        for r in (
            record_of("dog_default", [2.0, 2.2], errors),
            record_of("lstm-v3", [1.0, 1.1], errors, seconds=3.0),
            record_of("hand_designed", [math.nan, 1.0], errors),
        )
    }
    order = [r.optimizer for r in side_by_side.ranked(records)]
    assert order == ["lstm-v3", "dog_default", "hand_designed"]
    # Variances of two seeds are half of the squared differences.
    spread = math.sqrt((0.2**2 / 2 + 0.1**2 / 2) / 2)
    assert side_by_side.noise(records) == pytest.approx(spread)
    lines = side_by_side.table_of(records).splitlines()[2:]
    assert lines[0] == "| learned, lstm-v3 | 1.050 ± 0.635 | 62.5% | 3.0 |"
    assert lines[2].startswith("| hand-designed rule | failed |")
    side_by_side.plot(tmp_path / "a.png", records, "title")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
