"""Leave-one-style-out: folds by hand, candidates, and a measurement that resumes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from meta_training_toy import SMALL, long_task

from configs import style_choice as configs
from meta_opt.meta_training import family_scores
from meta_opt.meta_training.scoring import over_tasks
from meta_opt.optimizers.controller import init_theta, output_index
from meta_opt.optimizers.weights import save_theta
from meta_opt.studies.style_choice.choice import (
    Fold,
    choose,
    leave_one_style_out,
    totals_of,
    transferred,
)
from meta_opt.studies.style_choice.measure import (
    Candidate,
    StyleChoiceConfig,
    measure,
    score,
)
from meta_opt.studies.style_choice.report import write_style_choice
from meta_opt.tasks.families import FAMILIES
from meta_opt.types import from_config

STYLES = {"dense": ("a", "b"), "adapters": ("c",), "heads": ("d",)}
SCORES = {
    "a": {"small": 0.0, "large": 0.4},
    "b": {"small": 0.1, "large": 0.3},
    "c": {"small": 0.6, "large": -0.2},
    "d": {"small": 0.3, "large": 0.1},
}


def test_each_style_is_read_with_what_the_others_choose():
    folds = leave_one_style_out(SCORES, STYLES, 0.0)
    assert folds == [
        # c and d choose; a and b would have chosen otherwise.
        Fold("dense", "large", pytest.approx(0.35), "small", pytest.approx(0.05)),
        Fold("adapters", "small", 0.6, "large", -0.2),
        Fold("heads", "large", 0.1, "large", 0.1),
    ]
    assert transferred(SCORES, STYLES, folds, 0.0) == pytest.approx(
        (0.4 + 0.3 + 0.6 + 0.1) / 4
    )


def test_the_worst_fifth_counts_in_a_choice():
    scores = {
        **{f"f{i}": {"steady": 0.2, "daring": 0.0} for i in range(4)},
        "f4": {"steady": 0.2, "daring": 0.9},
    }
    assert choose(scores, list(scores), worst_weight=0.0) == "daring"
    assert choose(scores, list(scores), worst_weight=0.5) == "steady"
    found = totals_of(scores, list(scores), 0.5)["daring"]
    assert found == pytest.approx(
        over_tasks(np.array([0.0, 0.0, 0.0, 0.0, 0.9]), 0.5).item()
    )


def test_candidates_are_made_of_the_output_weights():
    start = init_theta(jax.random.key(0), SMALL)
    output = {k: v + 0.5 for k, v in start["output"].items()}
    start = {**start, "output": output}
    place = output_index(SMALL, "constant>step")
    halved = Candidate("x", 0.5, {"constant>step": 0.3}).theta(start, SMALL)["output"]
    expected = 0.5 * np.asarray(output["kernel"])
    expected[place] += 0.3
    np.testing.assert_allclose(halved["kernel"], expected, rtol=1e-6)
    rule = Candidate("rule", 0.0).theta(start, SMALL)
    assert not any(np.any(x) for x in jax.tree.leaves(rule["output"]))
    same = Candidate("same").theta(start, SMALL)
    assert all(map(np.array_equal, jax.tree.leaves(same), jax.tree.leaves(start)))
    with pytest.raises(ValueError, match="height>step"):
        Candidate("x", 1.0, {"height>step": 1.0}).theta(start, SMALL)


@pytest.fixture
def config(tmp_path):
    save_theta(tmp_path / "start", init_theta(jax.random.key(0), SMALL), SMALL)
    return StyleChoiceConfig(
        weights=str(tmp_path / "start.safetensors"),
        candidates=(
            {"name": "as it is"},
            {"name": "larger steps", "change": {"constant>step": 2.0}},
        ),
        styles={"flat": ("line",), "steep": ("steep",)},
        budgets=(1.0,),
        rates=(1e-1,),
        seeds=1,
    )


def test_a_stopped_measurement_goes_on_after_the_last_family(
    config, tmp_path, monkeypatch
):
    whole = measure(config, long_task, tmp_path / "whole", show_progress=False)
    alone = score(config, "steep", "larger steps", long_task)
    assert alone == pytest.approx(whole["steep"]["larger steps"], abs=1e-6)
    # Parameters of size 2 are 1,000 hand-designed steps away.
    for scores in whole.values():
        assert scores["larger steps"] < scores["as it is"]
    folder = tmp_path / "stopped"
    folder.mkdir()
    for name in ("references.json", "config.json"):
        (folder / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    (folder / "scores.json").write_text(json.dumps({"line": whole["line"]}))
    scored, of_worker = [], family_scores._Worker.score

    def recorded(self, name, *arguments):
        scored.append(name)
        return of_worker(self, name, *arguments)

    monkeypatch.setattr(family_scores._Worker, "score", recorded)
    assert measure(config, long_task, folder, show_progress=False) == whole
    assert scored == ["steep"]
    # AdamW's results are of these settings too.
    (folder / "scores.json").unlink()
    other = dataclasses.replace(config, rates=(1e-2,))
    with pytest.raises(ValueError, match="rates"):
        measure(other, long_task, folder, show_progress=False)
    shown = write_style_choice(tmp_path / "report", config, whole, {"seeds": 1})
    assert "left out, chosen by the others" in shown
    page = (tmp_path / "report" / "style_choice.md").read_text()
    assert "- Without flat: larger steps is chosen." in page
    stored = json.loads((tmp_path / "report" / "style_choice.json").read_text())
    assert stored["rows"][0] == {"family": "line", "scores": whole["line"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": ()}, "candidates is empty"),
        (
            {"candidates": ({"name": "x"}, {"name": "x"})},
            "candidates has x more than once",
        ),
        ({"candidates": ({"share": 1.0},)}, r"candidates\[0\] needs a value for name"),
        ({"styles": {"one": ("line",)}}, "must have two or more styles"),
        ({"styles": {"one": ("line",), "two": ()}}, "styles two have no families"),
        ({"styles": {"one": ("a",), "two": ("a",)}}, "styles has a more than once"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, message):
    settings = {"weights": "w", "candidates": ({"name": "x"},), "styles": STYLES}
    with pytest.raises(ValueError, match=message):
        StyleChoiceConfig(**{**settings, **changes})


@pytest.mark.parametrize(
    "name", ["shipped", "less_loss_low", "gradient_decay", "style_validation", "smoke"]
)
def test_configs(name):
    settings = configs.get_config(name).to_dict()
    config = from_config(StyleChoiceConfig, settings["style_choice"])
    assert set(config.families) <= set(FAMILIES)
    assert "as shipped" in [one.name for one in config.read_candidates()]
