"""The table that compares combiners of losses, out of made-up cells."""

import pytest

from meta_opt.studies.meltr.report import task_table, write_meltr
from meta_opt.studies.meltr.summary import METRICS, summarise


def cell(combiner, recalls, optimizer="adamw", task="clips"):
    runs = [
        {
            "budget": 1.0,
            "seed": seed,
            "test": {"t2v_r1": recall / 2, "t2v_r10": recall, "t2v_medr": 5.0},
            "epochs": [{"validation": {"loss": 2.0}}, {"validation": {"loss": recall}}],
            "peak_bytes": 2**20 * seed,
        }
        for seed, recall in enumerate(recalls, 1)
    ]
    return {"task": task, "variant": combiner, "optimizer": optimizer, "runs": runs}


RECORDS = [
    cell("meltr", (0.5, 0.6, 0.7)),
    cell("equal", (0.4, 0.5, 0.6)),
    cell("primary", (0.1, 0.5, 0.6)),
    cell("meltr", (0.2, 0.2), optimizer="learned"),
]


def test_rows_are_means_and_gains_by_seed():
    rows = summarise(RECORDS, {"clips": "retrieval"})
    assert [(r.optimizer, r.combiner) for r in rows] == [
        ("adamw", "primary"),
        ("adamw", "equal"),
        ("adamw", "meltr"),
        ("learned", "meltr"),
    ]
    primary, equal, meltr, alone = rows
    assert meltr.metrics["t2v_r10"].mean == pytest.approx(0.6)
    # In points, seed by seed: always 10, so that the interval has no width.
    assert meltr.over_equal.mean == pytest.approx(10.0)
    assert meltr.over_equal.low == pytest.approx(10.0, abs=1e-6)
    assert primary.over_equal.mean == pytest.approx(-10.0)
    assert primary.over_equal.low < -50 and primary.over_equal.high > 30
    assert equal.over_equal is None and alone.over_equal is None
    assert meltr.validation_loss.mean == pytest.approx(0.6)
    assert meltr.peak_bytes == 3 * 2**20


def test_an_error_that_falls_is_a_gain():
    records = [cell("equal", (0.4, 0.5)), cell("meltr", (0.4, 0.5))]
    for record, errors in zip(records, ((1.0, 2.0), (0.5, 1.0)), strict=True):
        for run, error in zip(record["runs"], errors, strict=True):
            run["test"] = {"mae": error}
    *_, meltr = summarise(records, {"clips": "sentiment"})
    assert meltr.over_equal.mean == pytest.approx(0.75)


def test_the_report(tmp_path):
    rows = summarise(RECORDS, {"clips": "retrieval"})
    text = write_meltr(tmp_path, rows, total=6, count=4, command="make it")
    assert (tmp_path / "meltr.md").read_text() == text + "\n"
    assert "**4 of 6 cells are measured.**" in text
    table = task_table(rows)
    assert table.columns == ("primary", "equal", "meltr")
    (adamw, learned) = table.sections
    shown = {row.label: [c.text for c in row.cells] for row in adamw.rows}
    assert shown["R@10 (%)"] == ["40.0", "50.0", "60.0"]
    assert shown["gain over equal weights"] == ["-10.00", "-", "10.00"]
    assert learned.title == "learned, not tuned"
    assert all(key for metrics in METRICS.values() for key, *_ in metrics)
