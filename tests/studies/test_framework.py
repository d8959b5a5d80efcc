"""What each part of the framework adds: cells, means and report."""

import concurrent.futures
import json
import time

import pytest

from configs import framework as configs
from experiments import framework_cells as cells_module
from experiments.framework_cells import framework_cells, measure_all
from meta_opt.leases import Leases
from meta_opt.studies.framework.report import write_framework
from meta_opt.studies.framework.stages import read_stages
from meta_opt.studies.framework.summary import summarise_stages


def run(accuracy, macro_f1=None, seconds=1.0):
    test = {"accuracy": accuracy}
    if macro_f1 is not None:
        test["macro_f1"] = macro_f1
    return {"test": test, "seconds": seconds}


RESULTS = {
    "tuned": {
        "one": [run(0.4, 0.2), run(0.5, 0.4)],
        "two": [run(0.8), run(0.9)],
        "three": [run(0.1), run(0.1)],
    },
    "framework": {
        "one": [run(0.6, 0.5, 3.0), run(0.6, 0.5, 3.0)],
        "two": [run(0.8, None, 5.0), run(0.9, None, 5.0)],
    },
    "later": {},
}


def test_means_are_over_the_tasks_that_all_stages_have():
    tuned, framework = summarise_stages(RESULTS)
    assert tuned.tasks == framework.tasks == 2
    # Seeds: (40 + 80) / 2 and (50 + 90) / 2.
    assert tuned.accuracy.mean == pytest.approx(65.0)
    assert tuned.gain is None
    assert framework.accuracy.mean == pytest.approx(72.5)
    # Tasks: 60 - 45 and 85 - 85.
    assert framework.gain.mean == pytest.approx(7.5)
    assert framework.gain.low < 0 < framework.gain.high
    assert tuned.macro_f1 == pytest.approx(0.3)
    assert framework.seconds == pytest.approx(4.0)
    assert framework.by_task == pytest.approx({"one": 60.0, "two": 85.0})
    assert summarise_stages({"tuned": {}}) == []
    apart = {"tuned": {"one": [run(0.1)]}, "framework": {"two": [run(0.1)]}}
    assert summarise_stages(apart) == []


def test_the_report_has_every_stage_and_what_is_missing(tmp_path):
    rows = summarise_stages(RESULTS)
    page = write_framework(tmp_path, rows, "the command", missing=3)
    assert "3 cells are not measured yet" in page and "+7.5 [" in page
    assert "| one ↑ | 45.0 | **60.0** |" in page
    stored = json.loads((tmp_path / "framework.json").read_text())
    assert [row["stage"] for row in stored["rows"]] == ["tuned", "framework"]
    assert (tmp_path / "framework.png").stat().st_size > 5000
    assert "not measured" not in write_framework(tmp_path, [], "the command", 0)


def test_stages():
    assert [s.trainable for s in read_stages([{"name": "a"}])] == ["all"]
    with pytest.raises(ValueError, match=r"stage\.part='best' must be .*checkpoint"):
        read_stages([{"name": "a", "part": "best"}])
    with pytest.raises(ValueError, match="fit always uses the learned"):
        read_stages([{"name": "a", "part": "fit", "optimizer": "adamw"}])
    with pytest.raises(ValueError, match=r"config\.stages has a more than once"):
        read_stages([{"name": "a"}, {"name": "a", "part": "fit"}])


def test_cells_of_the_suite(tmp_path):
    """A task without readout shares the cell of the stage before."""
    config = configs.suite().to_dict()
    config["results"] = str(tmp_path)
    cells = framework_cells(config, read_stages(config["stages"]))
    assert len(cells) == 5 * 8 * 3
    assert len({cell.path for cell in cells.values()}) == (5 * 8 - 2 * 2) * 3

    def of(stage, task):
        return cells[f"learned, {stage}", task, 1]

    shared = of("readout", "clipart_retrieval")
    assert shared.path == of("best checkpoint", "clipart_retrieval").path
    assert shared.digest == of("best checkpoint", "clipart_retrieval").digest
    own = of("readout", "clipart_category")
    assert own.digest != of("best checkpoint", "clipart_category").digest
    assert own.setup["run"]["model"]["readout"]
    # The settings of AdamW are those that 20 trials found for Table 1.
    tuned = cells["AdamW, readout", "clipart_category", 2].setup["settings"]
    assert 1e-5 < tuned["learning_rate"] < 1e-1
    config["table1"] = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="reproduce_tables"):
        framework_cells(config, read_stages(config["stages"]))


def test_cells_that_are_shared_are_measured_once(tmp_path, monkeypatch):
    config = configs.suite().to_dict()
    config["results"] = str(tmp_path / "results")
    cells = list(framework_cells(config, read_stages(config["stages"])).values())[:6]
    measured = []

    def measure(cell, base, lease):
        measured.append(cell.name)
        time.sleep(0.05)
        cell.write({"run": {"seed": cell.seed, **run(0.5)}}, lease)

    monkeypatch.setattr(cells_module, "measure", measure)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        started = [
            threads.submit(measure_all, config["tasks"], cells, Leases(tmp_path))
            for _ in range(2)
        ]
    assert [future.exception() for future in started] == [None, None]
    assert sorted(measured) == sorted(cell.name for cell in cells)
    assert all(cell.run()["test"] == {"accuracy": 0.5} for cell in cells)


def test_fit_is_measured_with_the_weights_of_the_config(tmp_path, monkeypatch):
    config = configs.suite().to_dict()
    config["results"] = str(tmp_path)
    base = config["tasks"]["tuxpaint_trimodal"]
    base["optimizer"]["weights"] = "lstm-v3"
    cells = framework_cells(config, read_stages(config["stages"]))
    cell = cells["framework", "tuxpaint_trimodal", 1]
    asked = []

    def fitted(inputs, preset, seed):
        asked.append(preset.weights)
        return {"test": {}}

    monkeypatch.setattr(cells_module, "_fitted", fitted)
    cells_module.measure(cell, base)
    assert asked == ["lstm-v3"] and cell.stored()["run"]["seed"] == 1
