"""Runs of a study that are finished are not run again, and others are."""

import json

import pytest

from meta_opt.studies.finished_runs import FinishedRuns


def never():
    pytest.fail("run again")


def test_a_finished_run_is_read_and_others_are_run(tmp_path):
    path, names = tmp_path / "finished.json", []
    runs = FinishedRuns(path, names.append)
    assert runs.outcome("none", 1, {"steps": 3}, lambda: {"loss": 2.0}) == {"loss": 2.0}

    again = FinishedRuns(path, names.append)
    assert again.outcome("none", 1, {"steps": 3}, never) == {"loss": 2.0}
    assert again.outcome("none", 2, {"steps": 3}, lambda: {"loss": 3.0})["loss"] == 3
    assert again.outcome("none", 1, {"steps": 4}, lambda: {"loss": 4.0})["loss"] == 4
    assert again.outcome("all", 1, {"steps": 3}, lambda: {"loss": 5.0})["loss"] == 5
    assert names == ["none: seed 1", "none: seed 2", "none: seed 1", "all: seed 1"]
    assert len(json.loads(path.read_text())) == 4
