"""The search resumes, repeats itself by seed and records what failed."""

import dataclasses
import json
import math

import jax
import numpy as np
import optuna
import pytest
from finetuning_toy import forward, make_data, make_params

from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.tuning.injected import injected_baseline, injected_learned
from meta_opt.tuning.results import describe_trials, read_results, write_results
from meta_opt.tuning.search import Pruned, SearchConfig, search
from meta_opt.tuning.space import Setting

SPACE = {
    "rate": Setting("log", low=1e-4, high=1.0),
    "decay": Setting("choice", choices=(0.9, 0.95)),
}
CONFIG = SearchConfig(num_trials=6, seed=3, startup_trials=3, progress=False)


def bowl(params, report):
    return (math.log10(params["rate"]) + 2) ** 2 + params["decay"]


def suggestions(study):
    """Settings of the trials that count, in order."""
    cut_off = study.user_attrs.get("interrupted", [])
    return [trial.params for trial in study.trials if trial.number not in cut_off]


def recorded(study):
    """The trials that are written, without their seconds."""
    return [
        {k: v for k, v in trial.items() if k != "seconds"}
        for trial in describe_trials(study)
    ]


def run_search(path, objective=bowl, config=CONFIG, **kwargs):
    return search(config, SPACE, objective, storage=path, name="s", **kwargs)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return run_search(tmp_path_factory.mktemp("study") / "s.sqlite3")


def test_the_same_seed_gives_the_same_suggestions(unbroken, tmp_path):
    again = run_search(tmp_path / "s.sqlite3")
    assert suggestions(again) == suggestions(unbroken)
    assert len({p["rate"] for p in suggestions(again)}) == CONFIG.num_trials
    other = dataclasses.replace(CONFIG, seed=4, num_trials=2)
    assert (
        suggestions(run_search(tmp_path / "other.sqlite3", config=other))
        != suggestions(unbroken)[:2]
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, StopIteration])
def test_an_interrupted_search_goes_on_as_if_unbroken(unbroken, tmp_path, error):
    calls = []

    def interrupted(params, report):
        calls.append(params)
        if len(calls) == 5:
            raise error
        return bowl(params, report)

    path = tmp_path / "s.sqlite3"
    with pytest.raises(error):
        run_search(path, interrupted, stop_on=(StopIteration,))
    study = run_search(path, interrupted, stop_on=(StopIteration,))
    assert suggestions(study) == suggestions(unbroken)
    assert recorded(study) == recorded(unbroken)
    # Only the trial that was cut off ran twice.
    assert len(calls) == CONFIG.num_trials + 1 and calls[4] == calls[5]
    run_search(path, interrupted)
    assert len(calls) == CONFIG.num_trials + 1


def test_a_killed_trial_is_set_aside(unbroken, tmp_path):
    path = tmp_path / "s.sqlite3"
    run_search(path, config=dataclasses.replace(CONFIG, num_trials=2))
    # What a kill leaves.
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    optuna.load_study(study_name="s", storage=storage).ask()
    storage.remove_session()
    storage.engine.dispose()
    study = run_search(path)
    assert suggestions(study) == suggestions(unbroken)
    assert recorded(study) == recorded(unbroken)
    best = write_results(tmp_path / "r.json", study, {})["best"]
    (trial,) = [t for t in recorded(unbroken) if t["number"] == best["number"]]
    assert trial["value"] == best["value"] == min(t["value"] for t in recorded(study))


def test_failed_pruned_and_diverged_trials_are_recorded(tmp_path):
    def mixed(params, report):
        mixed.calls += 1
        if mixed.calls == 2:
            raise FloatingPointError("no luck")
        if mixed.calls == 3:
            report(1, math.nan)
        if mixed.calls == 4:
            return math.inf
        report(1, 2.0)
        return bowl(params, report)

    mixed.calls = 0
    study = run_search(tmp_path / "s.sqlite3", mixed, setup={"task": "bowl"})
    record = write_results(tmp_path / "r.json", study, {"command": "c"})
    assert read_results(tmp_path / "r.json") == json.loads(json.dumps(record))
    states = [trial["state"] for trial in record["trials"]]
    assert states == ["complete", "fail", "pruned", "pruned", *["complete"] * 2]
    assert "no luck" in record["trials"][1]["error"]
    assert "nan" in record["trials"][2]["error"]
    assert record["trials"][0]["intermediate"] == {1: 2.0}
    values = [t["value"] for t in record["trials"] if t["state"] == "complete"]
    assert record["best"]["value"] == min(values)
    assert record["setup"] == {"task": "bowl"} and record["command"] == "c"
    assert record["space"]["rate"]["high"] == 1.0


def test_halving_stops_the_worse_trials(tmp_path):
    finished = []

    def curve(params, report):
        value = bowl(params, report)
        for step in (2, 4):
            report(step, value)
        finished.append(value)
        return value

    config = dataclasses.replace(CONFIG, num_trials=10, min_resource=4)
    study = run_search(tmp_path / "s.sqlite3", curve, config)
    states = [trial.state.name for trial in study.trials]
    assert 0 < states.count("PRUNED") < 10 and states.count("FAIL") == 0
    assert study.best_value == min(finished)
    assert all(
        max(t.intermediate_values) == 4
        for t in study.trials
        if t.state.name == "PRUNED"
    )


def test_bad_input(tmp_path):
    path = tmp_path / "s.sqlite3"
    one = dataclasses.replace(CONFIG, num_trials=1)
    run_search(path, config=one, setup={"steps": 10})
    with pytest.raises(ValueError, match="made under another setup"):
        run_search(path, config=one, setup={"steps": 20})
    with pytest.raises(ValueError, match="made under another search"):
        run_search(path, config=dataclasses.replace(one, seed=9), setup={"steps": 10})

    def broken(params, report):
        raise TypeError("always")

    with pytest.raises(RuntimeError, match=r"none of 1 trials .*always"):
        run_search(tmp_path / "b.sqlite3", broken, one)
    with pytest.raises(ValueError, match="num_trials=0"):
        SearchConfig(num_trials=0)
    with pytest.raises(ValueError, match="did you mean 'log'"):
        Setting("lg", low=1, high=2)
    with pytest.raises(ValueError, match="not positive"):
        Setting("log", low=0, high=2)
    with pytest.raises(ValueError, match="needs choices"):
        Setting("choice")
    with pytest.raises(ValueError, match=r"experiments\.tune_baselines"):
        read_results(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="not the result of a search"):
        read_results(tmp_path / "bad.json")
    assert issubclass(Pruned, Exception)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_injected_baseline_is_one_program_with_the_same_updates(name):
    data = make_data()

    def loss(params):
        return ((forward(params, data["x"]) - data["y"]) ** 2).mean()

    def train(tx, params):
        @jax.jit
        def step(params, state):
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params, value=value)
            return jax.tree.map(jax.numpy.add, params, updates), state

        state = tx.init(params)
        program = step.lower(params, state).as_text()
        for _ in range(5):
            params, state = step(params, state)
        return params, program

    programs = set()
    for rate, decay in ((0.03, 0.1), (0.01, 0.3)):
        config = OptimizerConfig(
            name, num_steps=8, learning_rate=rate, weight_decay=decay, momentum=0.8
        )
        ours, program = train(injected_baseline(config), make_params())
        plain, _ = train(make_optimizer(config), make_params())
        programs.add(program)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
            ours,
            plain,
        )
    assert len(programs) == 1
    with pytest.raises(ValueError, match="not a baseline"):
        injected_baseline(OptimizerConfig("learned"))


def test_injected_learned_optimizer_is_one_program_for_all_lengths():
    params = make_params()
    grads = jax.tree.map(jax.numpy.ones_like, params)
    programs = set()
    for num_steps in (10, 30):
        config = OptimizerConfig("learned", num_steps=num_steps)
        updates = []
        for tx in (injected_learned(config), make_optimizer(config)):
            state = tx.init(params)
            step = jax.jit(lambda s, tx=tx: tx.update(grads, s, params, value=2.0))
            if tx.update.__module__.startswith("optax"):
                programs.add(step.lower(state).as_text())
            for _ in range(3):
                found, state = step(state)
            updates.append(found)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8),
            *updates,
        )
    assert len(programs) == 1
    with pytest.raises(ValueError, match="name='adamw' must be 'learned'"):
        injected_learned(OptimizerConfig("adamw"))
