"""Numbers measured again: intervals, verdicts, the table and the exit status."""

import math

import pytest
from paths import ROOT

from configs import check_results as published
from experiments import check_results
from experiments.result_checks.by_name import CHECKS
from meta_opt.studies.reproduction.compare import by_seeds, by_tolerance
from meta_opt.studies.reproduction.report import comparison_rows, comparison_table


def test_seeds_give_the_interval():
    found = by_seeds("loss", [1.0, 2.0, 3.0], [4.4])
    # Student's t of two degrees of freedom: 4.303 / sqrt(3).
    assert found.low == pytest.approx(2 - 4.3027 / math.sqrt(3), abs=1e-3)
    assert found.agrees and not by_seeds("loss", [1.0, 2.0, 3.0], [4.5]).agrees
    assert not by_seeds("loss", [1.0, 2.0], [math.nan]).agrees


def test_equal_seeds_leave_room_for_rounding_only():
    assert by_seeds("accuracy", [50.0, 50.0], [50.0 + 1e-6]).agrees
    assert not by_seeds("accuracy", [50.0, 50.0], [50.1]).agrees


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="1 stored seeds have no interval"):
        by_seeds("loss", [1.0], [1.0])


def test_tolerances_are_stated():
    found = by_tolerance("bytes", -100.0, -103.0, relative=0.02, absolute=1.0)
    assert found.agrees and found.rule == "± 2% + 1"
    assert not by_tolerance("bytes", 100.0, 100.1).agrees
    assert by_tolerance("bytes", 100.0, 100.0).rule == "equal"


def test_the_table_names_what_is_outside():
    found = [by_tolerance("loss", 1.0, 1.5), by_tolerance("loss", 1.0, 1.0)]
    table = comparison_table(comparison_rows("a/b", found)).splitlines()
    assert table[0].split()[0] == "cell" and table[0].split()[-1] == "verdict"
    assert table[1].endswith("OUTSIDE") and table[2].endswith("agrees")


@pytest.mark.parametrize(
    ("answer", "status", "word"),
    [
        ([by_tolerance("loss", 1.0, 1.0)], check_results.AGREES, "1 agrees"),
        ([by_tolerance("loss", 1.0, 2.0)], check_results.OUTSIDE, "1 OUTSIDE"),
        ("emoji is not there; `make data`", check_results.NOT_RUN, "`make data`"),
    ],
)
def test_the_exit_status(monkeypatch, capsys, answer, status, word):
    monkeypatch.setattr(check_results, "measure_apart", lambda check: answer)
    assert check_results.run_checks({"a": {}}) == status
    assert word in capsys.readouterr().out


def test_a_stored_file_that_is_not_there_is_one_line():
    settings = {"file": "results/none.json", "relative": 0.0}
    message = check_results.measure("meltr_operations", settings)
    assert "no stored result results/none.json" in message and "\n" not in message
    assert "did you mean 'card_value'?" in check_results.measure("card_values", {})


def test_every_folder_of_results_is_measured_again_or_listed():
    config = published.get_config("published").to_dict()
    assert {check["kind"] for check in config["checks"].values()} == set(CHECKS)
    names = [*config["checks"], *config["not_rerun"]]
    text = check_results.list_checks(config)
    assert all(name in text for name in names)
    lines = check_results.list_records(ROOT / "results").splitlines()[1:]
    folders = {line.split()[0].removesuffix(".json") for line in lines}
    assert len(folders) > 10
    for folder in folders:
        assert any(folder in name for name in names), folder
