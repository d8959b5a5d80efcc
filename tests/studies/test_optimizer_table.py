"""The comparison of optimizers on the suite: from records to lines and claims."""

import dataclasses
import json
import re

import numpy as np
import pytest
from paths import ROOT

from experiments.table_cells import cells
from meta_opt.metrics.convergence import convergence_epoch
from meta_opt.reporting.tables import to_markdown
from meta_opt.studies.meta_test.comparison import MISS
from meta_opt.studies.optimizer_table.report import (
    claims_table,
    lines_table,
    published_table,
    write_table1,
)
from meta_opt.studies.optimizer_table.summary import cell_row, summarise_table


def make_run(losses, accuracy, budget=1.0, **changes):
    epochs = [
        {"epoch": i + 1.0, "train_loss": x, "validation": {"loss": x}}
        for i, x in enumerate(losses)
    ]
    return {
        "budget": budget,
        "num_steps": 10 * len(losses),
        "epochs": epochs,
        "test": {"accuracy": accuracy, "macro_f1": accuracy / 2},
        "seconds": 5.0,
        "peak_bytes": 1000,
        "optimizer_bytes": 80,
        "trainable": 10,
        **changes,
    }


def make_record(optimizer, runs, task="one", trainable="all"):
    return {
        "task": task,
        "variant": trainable,
        "optimizer": optimizer,
        "runs": runs,
    }


ADAMW = make_record(
    "adamw", [make_run([4, 2, 1.5, 1], 0.5), make_run([4, 3, 1.5, 1], 0.6)]
)
LEARNED = make_record(
    "learned",
    [
        make_run([2, 1, 0.5, 0.5], 0.7, peak_bytes=600),
        make_run([2, 0.9, 0.5, 0.4], 0.8, peak_bytes=600),
        make_run([2, 0.8], 0.6, budget=0.5),
        make_run([2, 1.0], 0.6, budget=0.5),
        make_run([1.5], 0.6, budget=0.25),
    ],
)


def test_convergence():
    assert convergence_epoch([3, 2, 1, 1.005, 1.002, 1]) == 3
    # Left again, so that it has not converged there; the end counts with fewer.
    assert convergence_epoch([1.0, 2.0, 1.005, 2.0, 1.0]) == 5
    assert convergence_epoch([1.0, 1.5, 2.0]) == 3
    # An epoch that is not finite is not near anything, wherever it is.
    nan = float("nan")
    assert convergence_epoch([nan, 2, 1, 1.005, 1.002, 1]) == 3
    assert convergence_epoch([2, 1, nan, 1, 1, 1]) == 4
    assert convergence_epoch([nan, nan]) == 2
    assert convergence_epoch([0.0, -1.0, -1.0, -1.005]) == 2


def test_a_cell_against_adamw():
    row = cell_row(LEARNED, ADAMW)
    assert row.accuracy.mean == pytest.approx(75)
    # Means after each epoch: 2, 0.95, ...
    assert row.epochs == 4 and row.epochs_to_adamw == 2 and not row.missed
    # At half the length the mean loss is 0.9, below AdamW's 1; at a quarter 1.5.
    assert row.budget_to_adamw == 0.5
    assert row.seconds is None and row.seconds_to_adamw is None
    own = cell_row(ADAMW, ADAMW)
    assert own.epochs_to_adamw == 4 and own.budget_to_adamw == 1
    timed = cell_row(LEARNED, ADAMW, {"learned": 200.0})
    assert timed.milliseconds == 200 and timed.seconds == pytest.approx(8)


def test_a_miss_counts_four_times_and_nan_reaches_nothing():
    bad = make_record("sgd", [make_run([4, float("nan"), 3, 2], 0.1)] * 2)
    row = cell_row(bad, ADAMW)
    assert row.missed and row.epochs_to_adamw == MISS * 4
    assert row.budget_to_adamw == MISS


def test_lines_are_of_the_tasks_that_all_were_measured_on():
    other = [make_record("adamw", ADAMW["runs"], task="two")]
    of_cells, lines, claims = summarise_table([ADAMW, LEARNED, *other])
    assert [(c.task, c.optimizer) for c in of_cells] == [
        ("one", "adamw"),
        ("one", "learned"),
        ("two", "adamw"),
    ]
    assert {line.optimizer: line.tasks for line in lines} == {"adamw": 1, "learned": 1}
    (claim,) = claims
    assert claim.best == "adamw"
    assert claim.accuracy_over_adamw == pytest.approx(20)
    assert claim.f1_over_best == pytest.approx(0.1)
    assert claim.epochs_over_adamw == claim.epochs_over_best == pytest.approx(0.5)
    assert claim.memory_over_adamw == pytest.approx(0.6)
    assert claim.time_over_adamw is None and lines[0].seconds is None
    # Half the epochs, steps twice as long.
    milliseconds = {("one", "all"): {"learned": 20.0, "adamw": 10.0}}
    _, lines, (claim,) = summarise_table([ADAMW, LEARNED], milliseconds)
    assert claim.time_over_adamw == pytest.approx(1.0)
    assert [line.seconds for line in lines] == pytest.approx([0.4, 0.8])


def test_over_several_tasks_intervals_are_over_seeds():
    two = [make_record(r["optimizer"], r["runs"], task="two") for r in (ADAMW, LEARNED)]
    _, lines, _ = summarise_table([ADAMW, LEARNED, *two])
    line = next(x for x in lines if x.optimizer == "learned")
    # Seeds' means over tasks are 70 and 80.
    assert line.accuracy.mean == pytest.approx(75)
    np.testing.assert_allclose(line.accuracy.high - 75, 12.706 * 5, rtol=1e-3)


def test_claims_are_made_again_of_the_unseen_tasks():
    better = make_record("adamw", [make_run([4, 1, 0.9, 0.8], 0.9)] * 2, task="two")
    other = make_record("learned", LEARNED["runs"], task="two")
    _, lines, claims = summarise_table([ADAMW, LEARNED, better, other], unseen=["one"])
    assert [(c.unseen, c.tasks) for c in claims] == [(False, 2), (True, 1)]
    assert {line.tasks for line in lines} == {2}
    # 75 against 55 and 90; against 55 alone.
    assert claims[0].accuracy_over_adamw == pytest.approx(2.5)
    assert claims[1].accuracy_over_adamw == pytest.approx(20)
    table = claims_table([dataclasses.asdict(claim) for claim in claims])
    assert table.columns[1:] == (
        "All parameters, 2 tasks",
        "All parameters, unseen data, 1 task",
    )


def test_report_has_tables_and_figures(tmp_path):
    records = [ADAMW, LEARNED]
    parts = [[dataclasses.asdict(x) for x in part] for part in summarise_table(records)]
    text = write_table1(tmp_path, records, *parts, total=12, command="make tables")
    assert "2 of 12 cells" in text and "| *one* |" in text
    assert to_markdown(published_table()) in text
    assert (tmp_path / "table1.md").read_text().strip() == text.strip()
    stored = json.loads((tmp_path / "table1.json").read_text())
    assert stored["claims"][0]["budget_to_adamw"] == 0.5
    for name in ("figure2_all.png", "figure3.png"):
        assert (tmp_path / name).stat().st_size > 5_000
    assert "| accuracy (%) | 88.4 |" in to_markdown(published_table())


def test_cells_are_known_by_all_that_decides_them(tmp_path):
    from configs import tables

    config = tables.table1().to_dict()
    config["results"] = str(tmp_path)
    every = cells(config, tmp_path)
    assert len(every) == 8 * 2 * (6 + 1) == len({cell.path for cell in every})
    one = every[0]
    assert one.stored() is None
    one.path.parent.mkdir(parents=True)
    one.path.write_text(json.dumps({"digest": one.digest}))
    assert one.stored() == {"digest": one.digest}
    # Another length is another cell; where the data lie is not.
    config["tasks"][one.task]["inputs"]["feature_cache_dir"] = "elsewhere"
    assert cells(config, tmp_path)[0].stored() is not None
    config["tasks"][one.task]["num_steps"] += 1
    assert cells(config, tmp_path)[0].stored() is None
    one.path.write_text("[")
    with pytest.raises(ValueError, match="delete it to measure it again"):
        one.stored()


def test_docs_say_what_the_results_hold():
    path = ROOT / "results" / "table1" / "table1.json"
    if not path.is_file():
        pytest.skip("the table has not been measured")
    stored = json.loads(path.read_text())
    page = (ROOT / "docs" / "results.md").read_text()
    page = re.sub(r"\s+", " ", page)
    for kind in dict.fromkeys(line["trainable"] for line in stored["lines"]):
        of_kind = [line for line in stored["lines"] if line["trainable"] == kind]
        for row in to_markdown(lines_table(of_kind)).splitlines():
            assert re.sub(r"\s+", " ", row) in page, row
    for row in to_markdown(claims_table(stored["claims"])).splitlines():
        assert re.sub(r"\s+", " ", row) in page, row
