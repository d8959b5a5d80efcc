"""The search of direct weights: it finds what is there, and resumes to the bit."""

import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from meta_training_toy import SMALL, long_task

from meta_opt.leases import Leases
from meta_opt.meta_training import direct_search as direct_search_module
from meta_opt.meta_training.direct_search import DirectSearchConfig, direct_search
from meta_opt.meta_training.feature_range import with_feature_range
from meta_opt.meta_training.scoring import meta_objective, over_tasks
from meta_opt.optimizers.controller import (
    FEATURES,
    ControllerConfig,
    init_theta,
    output_index,
)
from meta_opt.optimizers.weights import save_theta
from meta_opt.text_files import write_json


def settings(**changes):
    return dataclasses.replace(
        DirectSearchConfig(
            families=("line",),
            direct=(("constant>step", 0.0, 0.7),),
            generations=4,
            population=4,
            budgets=(1.0,),
            rates=(1e-1,),
            decays=(1e-2,),
            controller=SMALL,
        ),
        **changes,
    )


def search(config, workdir, **arguments):
    return direct_search(config, long_task, workdir, show_progress=False, **arguments)


def step_weight(theta):
    return float(theta["output"]["kernel"][output_index(SMALL, "constant>step")])


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_search_takes_larger_steps_where_they_pay_and_resumes_to_the_bit(tmp_path):
    # Weights of size 2 are 1,000 of the hand-designed steps away.
    whole = search(settings(), tmp_path / "whole")
    assert whole.steps == 4 and whole.finished
    assert step_weight(whole.theta) > 0.5
    rows = [
        json.loads(line)
        for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["score/centre"] < rows[0]["score/centre"]
    assert rows[-1]["weight/constant>step"] == pytest.approx(step_weight(whole.theta))
    # A kill between generations leaves the first ones.
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("history.json", "references.json", "config.json"):
        (folder / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    history = json.loads((folder / "history.json").read_text())
    (folder / "history.json").write_text(json.dumps(history[:2]))
    assert same(search(settings(), folder).theta, whole.theta)
    assert json.loads((folder / "history.json").read_text()) == history


def test_a_kill_between_log_and_history_loses_no_line(tmp_path, monkeypatch):
    whole = search(settings(), tmp_path / "whole")
    written = []

    def write(path, value, indent=2):
        if Path(path).name == "history.json":
            written.append(path)
            if len(written) == 3:
                raise KeyboardInterrupt
        write_json(path, value, indent)

    with monkeypatch.context() as patch:
        patch.setattr(direct_search_module, "write_json", write)
        with pytest.raises(KeyboardInterrupt):
            search(settings(), tmp_path / "broken")
    assert same(search(settings(), tmp_path / "broken").theta, whole.theta)
    logs = [(tmp_path / d / "metrics.jsonl").read_bytes() for d in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_centre_with_the_best_validation_is_kept(tmp_path):
    seen, scores = [], iter([0.3, 0.1, 0.2, 0.4])

    def validation(theta):
        seen.append(theta)
        return {"line": next(scores)}

    result = search(settings(validate_every=1), tmp_path, validation=validation)
    assert result.score == 0.1 and same(result.theta, seen[1])


def test_names_may_share_a_number(tmp_path):
    shared = (("constant>step+loss_known>weight_decay", 0.25, 0.1),)
    theta = search(settings(direct=shared, generations=1), tmp_path).theta
    kernel = theta["output"]["kernel"]
    places = [output_index(SMALL, n) for n in shared[0][0].split("+")]
    assert kernel[places[0]] == kernel[places[1]] != 0


def test_price_of_a_run():
    def objective(*numbers):
        return float(meta_objective(*map(np.float32, numbers), 2.0))

    assert objective(1.0, 0.2, 1.0, 0.2) == 0
    assert objective(np.nan, np.nan, 1.0, 0.2) == pytest.approx(
        np.log1p(4.0) + 2 * np.log1p(0.8), rel=1e-5
    )
    better, worse = objective(0.5, 0.2, 1.0, 0.2), objective(2.0, 0.2, 1.0, 0.2)
    assert better == pytest.approx(-worse / 3, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": ()}, "families is empty"),
        ({"population": 3}, "population=3 must be at least 4"),
        ({"budgets": (1.5,)}, r"budgets=\(1.5,\) must be in"),
        ({"direct": (("constant>step", 0.0, 0.0),)}, "scale of constant>step"),
        ({"workers": -1}, "workers=-1 must be at least 0"),
        ({"num_steps": {"lin": 3}}, r"\['lin'\], which are not in families"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_unknown_direct_weight_is_named(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'constant'"):
        search(settings(direct=(("constnt>step", 0.0, 1.0),)), tmp_path)


@pytest.mark.slow
def test_candidates_one_after_the_other_score_as_side_by_side(tmp_path):
    config = settings(generations=1)
    search(config, tmp_path / "one")
    search(dataclasses.replace(config, side_by_side=False), tmp_path / "two")
    scores = [
        json.loads((tmp_path / name / "history.json").read_text())[0]["scores"]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(*scores, rtol=1e-4)


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def scores_of(folder):
    rows = json.loads((folder / "history.json").read_text())
    return [row["scores"] for row in rows]


@pytest.mark.slow
def test_workers_give_the_scores_of_one_process(tmp_path):
    config = settings(
        families=("line", "steep"), generations=2, num_steps={"line": 10, "steep": 10}
    )
    search(config, tmp_path / "one")
    search(dataclasses.replace(config, workers=2), tmp_path / "two")
    one, two = (scores_of(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)
    measured = [
        json.loads((tmp_path / name / "references.json").read_text())
        for name in ("one", "two")
    ]
    assert list(measured[0]) and set(measured[0]) == set(measured[1])


@pytest.mark.slow
def test_a_shared_search_takes_what_other_processes_have_done(tmp_path):
    config = settings(
        families=("line", "steep"), generations=2, num_steps={"line": 10, "steep": 10}
    )
    validated = []

    def validation(theta):
        validated.append(theta)
        return {"line": 0.5}

    one, two = tmp_path / "one", tmp_path / "two"
    alone = search(config, one, validation=validation)
    leases = Leases(two / "leases")
    # What another process has done already.
    references = json.loads((one / "references.json").read_text())
    write_json(two / "shared" / "references" / "steep.json", references["steep"])
    write_json(two / "shared" / "generation 1" / "line.json", [5.0, 2.0, 1.0, 2.0, 3.0])
    shared = search(config, two, validation=validation, leases=leases)
    assert len(validated) == 2 and shared.score == alone.score == 0.5
    assert json.loads((two / "references.json").read_text()) == references
    # Its numbers count, and not those that were to be computed here.
    rows = [read_json_lines(folder / "metrics.jsonl") for folder in (one, two)]
    assert rows[0][0]["score/steep"] == rows[1][0]["score/steep"]
    assert rows[1][0]["score/line"] == 3.0 != rows[0][0]["score/line"]
    assert len(rows[1]) == 2 and not leases.held("generation 1")
    # One that comes late only reads.
    files = {path: path.stat().st_mtime_ns for path in two.rglob("*.json*")}
    late = search(config, two, validation=validation, leases=leases)
    assert same(late.theta, shared.theta) and len(validated) == 2
    assert files == {path: path.stat().st_mtime_ns for path in files}
    with pytest.raises(ValueError, match="holds a run with other settings"):
        search(dataclasses.replace(config, seed=5), two, leases=leases)


def test_an_error_ends_a_shared_search_though_another_process_has_work(tmp_path):
    leases = Leases(tmp_path / "leases")

    def make(name):
        raise ValueError(f"no data of {name}")

    config = settings(families=("line", "steep"))
    with leases.take("references, steep"):
        with pytest.raises(ValueError, match="no data of line"):
            direct_search(config, make, tmp_path, show_progress=False, leases=leases)
    # Threads that were about to look at it may have it for a moment.
    ends = time.monotonic() + 20
    while leases.held("references, line"):
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_sharing_changes_no_bit(tmp_path):
    config = settings(generations=2)
    alone = search(config, tmp_path / "one")
    shared = search(config, tmp_path / "two", leases=Leases(tmp_path / "leases"))
    assert same(alone.last, shared.last)
    texts = [(tmp_path / d / "metrics.jsonl").read_text() for d in ("one", "two")]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_generations_on_some_families_resume_to_the_bit(tmp_path):
    config = settings(families=("line", "steep"), families_per_generation=1, seed=1)
    whole = search(config, tmp_path / "whole")
    rows = [
        json.loads(line)
        for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    ]
    drawn = [{f for f in config.families if f"score/{f}" in row} for row in rows]
    assert all(len(names) == 1 for names in drawn) and len(drawn) == 4
    assert set().union(*drawn) == {"line", "steep"}
    for row, (name,) in zip(rows, drawn, strict=True):
        # One family is its own worst fifth.
        assert row["score/centre"] == pytest.approx(1.5 * row[f"score/{name}"])
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("references.json", "config.json"):
        (folder / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    history = json.loads((tmp_path / "whole" / "history.json").read_text())
    (folder / "history.json").write_text(json.dumps(history[:2]))
    assert same(search(config, folder).theta, whole.theta)


def test_the_worst_fifth_of_the_families_counts_again():
    scores = np.array([[3.0, 0.0], [1.0, 0.0], *[[0.0, 0.0]] * 7, [2.0, 10.0]])
    mean = np.array([0.6, 1.0])
    worst = np.array([2.5, 5.0])  # Two of ten.
    np.testing.assert_allclose(over_tasks(scores, 0.0), mean)
    np.testing.assert_allclose(over_tasks(scores, 0.5), mean + 0.5 * worst)
    np.testing.assert_allclose(over_tasks(scores[:2], 1.0), [2.0 + 3.0, 0.0])


def test_without_generations_the_centre_is_taken(tmp_path):
    config = settings(generations=0, direct=(("constant>step", 0.3, 0.7),))
    found = search(config, tmp_path)
    assert found.steps == 0 and found.finished
    assert step_weight(found.theta) == pytest.approx(0.3)


def test_what_is_searched_is_added_to_given_weights(tmp_path):
    start = init_theta(jax.random.key(3), SMALL)
    start["output"]["kernel"] = start["output"]["kernel"] + 0.25
    save_theta(tmp_path / "start", start, SMALL)
    file = str(tmp_path / "start.safetensors")
    config = settings(generations=1, start=file)
    found = search(config, tmp_path / "run").theta
    moved = step_weight(found)
    assert moved != 0.25
    row, column = output_index(SMALL, "constant>step")
    kernel = np.asarray(found["output"]["kernel"]).copy()
    kernel[row, column] = 0.25
    np.testing.assert_array_equal(kernel, start["output"]["kernel"])
    other = dataclasses.replace(config, controller=ControllerConfig())
    with pytest.raises(ValueError, match="belong to another controller"):
        search(other, tmp_path / "other")


def test_the_range_of_features_spans_the_runs_of_all_budgets():
    theta = init_theta(jax.random.key(0), SMALL)

    def found(*budgets):
        task, steps = long_task("line"), {"line": 40}
        return with_feature_range([task], theta, SMALL, steps, budgets).feature_range

    short, full, both = found(0.25), found(1.0), found(1.0, 0.25)
    for a, b, (low, high) in zip(short, full, both, strict=True):
        assert (low, high) == (min(a[0], b[0]), max(a[1], b[1]))
    # tanh(log10(steps) - 2)
    lengths = both[FEATURES.index("log_num_steps")]
    np.testing.assert_allclose(lengths, np.tanh(np.log10([10, 40]) - 2), atol=1e-4)
    with pytest.raises(ValueError, match="at least one task"):
        with_feature_range([], theta, SMALL, {})
