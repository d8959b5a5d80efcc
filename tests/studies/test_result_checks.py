"""Checks of published numbers find their records; what is measured here is made up.

The programs behind them have tests of their own; ``make check-results`` runs all.
"""

import dataclasses
from types import SimpleNamespace

import pytest
from paths import ROOT

import experiments.table_cells
import meta_opt.finetuning.trial
import meta_opt.studies.ablations.measure
import meta_opt.studies.meta_test.comparison
import meta_opt.studies.meta_test.measuring
import meta_opt.studies.robustness.measure
import meta_opt.studies.token_pruning.measure
import meta_opt.tasks.families
from configs import check_results
from experiments.result_checks.by_name import CHECKS
from meta_opt.optimizers.weights import DEFAULT
from meta_opt.studies.robustness.measure import RunOutcome
from meta_opt.studies.token_pruning.measure import variants
from meta_opt.text_files import read_json


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    task = SimpleNamespace(name="task", horizons=(1, 10))
    monkeypatch.setattr(meta_opt.tasks.families, "make_task", lambda *_: task)


def run(name):
    """A check of the published configuration, by its name."""
    check = check_results.get_config("published").to_dict()["checks"][name]
    return CHECKS[check["kind"]](check["settings"])


def agreement(found):
    return [x.agrees for x in found]


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_run_of_a_table(monkeypatch, factor):
    def rerun(cell, base, changes, settings, seed):
        record = cell.stored()
        stored = record["runs"][0]
        assert settings == record["settings"] and seed == stored["seed"]
        stored["epochs"][-1]["validation"]["loss"] *= factor
        return stored

    monkeypatch.setattr(experiments.table_cells, "rerun", rerun)
    found = run("table1/emoji_sentiment/lora/adamw")
    assert agreement(found) == [factor == 1.0, True]


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_trial_of_a_search(monkeypatch, factor):
    best = read_json("results/tuned/nano_clipart_adamw.json")["best"]["params"]

    class Trial:
        def __init__(self, *args, **kwargs):
            pass

        def optimizer(self, params):
            return params

        def __call__(self, optimizer, report):
            assert optimizer == best
            report(20, factor * 5.033070087432861)
            pytest.fail("a run that is known well enough goes on")

    monkeypatch.setattr(meta_opt.finetuning.trial, "Trial", Trial)
    found = run("tuned/nano_clipart_adamw")
    assert found[0].quantity == "validation loss after 20 steps"
    assert agreement(found) == [factor == 1.0]


@pytest.mark.parametrize("row", ["shipped", "hand-designed"])
def test_a_row_of_the_ablations(monkeypatch, row):
    rows = read_json("results/ablations/ablations.json")["rows"]

    def measure(task, reference, config):
        assert config.budgets == (1.0,) and len(reference) == 2
        return [SimpleNamespace(**row) for row in rows if row["task"] == "clipart_head"
                and row["budget"] == 1.0]  # fmt: skip

    monkeypatch.setattr(meta_opt.studies.ablations.measure, "measure", measure)
    assert agreement(run(f"ablations/clipart_head/{row}")) == [True]


def test_conditions_of_the_safeguard(monkeypatch):
    outcomes = read_json("results/safeguard/safeguard.json")["outcomes"]
    fields = [field.name for field in dataclasses.fields(RunOutcome)]

    def measure(task, config):
        assert config.tasks == ("digits_mlp",) and list(config.chosen()) == [
            "ordinary",
            "NaN in 5% of steps",
        ]
        for x in outcomes:
            if x["task"] == "digits_mlp" and x["condition"] in config.chosen():
                assert x["contender"] == "learned, guarded", "more than is compared"
                yield RunOutcome(**{name: x[name] for name in fields})

    monkeypatch.setattr(meta_opt.studies.robustness.measure, "measure", measure)
    assert agreement(run("safeguard/digits_mlp")) == [True, True]


def test_operations_of_pruned_models(monkeypatch):
    stored = read_json("results/token_pruning/univl/token_pruning.json")["rows"]

    def measure(run, config, medians, finished):
        assert config.seeds == () and medians({"step": None}, 1) == {"step": 0.0}
        names = variants(config, run.workload.model.pruning)
        return [row for row in stored if row["name"] in names]

    monkeypatch.setattr(meta_opt.studies.token_pruning.measure, "measure", measure)
    found = run("token_pruning/univl")
    assert len(found) == 4 and all(agreement(found))


def test_values_of_the_card(monkeypatch):
    card = (ROOT / f"meta_opt/optimizers/weights/{DEFAULT}.md").read_text()
    losses = iter([0.238, 0.245])
    monkeypatch.setattr(
        meta_opt.studies.meta_test.measuring, "inner_run", lambda *_: None
    )
    monkeypatch.setattr(
        meta_opt.studies.meta_test.comparison,
        "measure",
        lambda *_: [SimpleNamespace(mean_validation_loss=next(losses))],
    )
    found = run(f"card/{DEFAULT}/iris")
    assert all(agreement(found))
    stored = {x.quantity.split(", ")[1]: x.stored for x in found}
    assert f"{stored[DEFAULT]} and {stored['hand_designed']} (iris)" in card
