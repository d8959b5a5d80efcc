"""Records say by which configuration, code, versions and machine they were made."""

import json

import pytest
from paths import ROOT

from experiments.stored_results import StoredResult
from meta_opt.provenance import FIELDS, NOT_RECORDED, describe_provenance, provenance
from meta_opt.reporting.tables import write_report
from meta_opt.run_log import settings_digest
from meta_opt.studies.finished_runs import FinishedRuns


def test_a_record_says_where_it_comes_from():
    found = describe_provenance(provenance({"steps": 3}))
    assert found["config"] == settings_digest({"steps": 3})
    assert "jax " in found["versions"] and "cpu" in found["machine"]
    # Outside a checkout there is no revision.
    del found["revision"]
    assert NOT_RECORDED not in found.values()


def test_what_a_record_lacks_is_not_made_up():
    assert set(describe_provenance({}).values()) == {NOT_RECORDED}
    old = {"facts": {"revision": "abc"}, "environment": {"device": "H200", "jax": "1"}}
    assert describe_provenance(old) == {
        "config": NOT_RECORDED,
        "revision": "abc",
        "versions": "jax 1",
        "machine": "H200",
    }


def stored_cell(folder):
    StoredResult(folder / "cell.json", {"steps": 3}).write({"loss": 1.0})
    return json.loads((folder / "cell.json").read_text())


def finished_run(folder):
    runs = FinishedRuns(folder / "finished.json", lambda name: None)
    # What the study gets is the outcome alone.
    assert runs.outcome("a", 1, {"steps": 3}, lambda: {"loss": 1.0}) == {"loss": 1.0}
    (record,) = json.loads((folder / "finished.json").read_text()).values()
    assert record["loss"] == 1.0
    return record["provenance"]


def report(folder):
    facts = {"config": settings_digest({"steps": 3})}
    write_report(folder, "report", ["# Report"], {"facts": facts})
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("written", [stored_cell, finished_run, report])
def test_what_is_written_has_its_origin(tmp_path, written):
    found = describe_provenance(written(tmp_path))
    assert found["config"] == settings_digest({"steps": 3})
    assert NOT_RECORDED not in (found["versions"], found["machine"])


def test_stored_results_are_read_whatever_they_lack():
    lacking = {field: 0 for field in FIELDS}
    files = sorted((ROOT / "results").rglob("*.json"))
    for path in files:
        found = describe_provenance(json.loads(path.read_text()))
        for field in FIELDS:
            lacking[field] += found[field] == NOT_RECORDED
    # Reports of several records, and a search that was run by hand.
    assert len(files) > 350
    assert max(lacking["versions"], lacking["machine"]) <= 15
