"""Runs under faults: what is compared, and the table."""

import json

import numpy as np
import pytest

from configs import faults as faults_config
from experiments.fault_trials import cells as cells_module
from experiments.fault_trials.cells import cells
from experiments.fault_trials.damage import damaged_checkpoints
from experiments.fault_trials.kills import Place
from experiments.fault_trials.outcomes import (
    differences,
    largest_difference,
    newest_step,
    outcome,
    temporary_files,
)
from experiments.fault_trials.report import write_faults
from meta_opt.checkpoints import Checkpoints


def write_run(folder, weight=1.0, seconds=1.0, loss=0.5):
    """What a run leaves, in small."""
    checkpoints = Checkpoints(folder / "run" / "checkpoints")
    for step in (1, 2):
        state = {"w": np.full(3, weight * step, np.float32)}
        checkpoints.save(step, state, {"seconds": seconds})
    checkpoints.close()
    line = json.dumps({"step": 2, "train/loss": loss, "train/error": None})
    (folder / "run" / "metrics.jsonl").write_text(line + "\n")
    timing = json.dumps({"step": 2, "train_seconds": seconds})
    (folder / "run" / "timing.jsonl").write_text(timing + "\n")
    result = {"test": {"loss": loss}, "train_seconds": seconds}
    (folder / "run" / "result.json").write_text(json.dumps(result))
    (folder / "exported.safetensors").write_bytes(b"weights" + bytes([int(weight)]))
    return outcome(folder)


def test_outcomes_are_the_same_but_for_seconds(tmp_path):
    one = write_run(tmp_path / "one")
    assert differences(write_run(tmp_path / "two", seconds=7.0), one) == []
    assert newest_step(tmp_path / "one") == 2
    other = write_run(tmp_path / "other", weight=2.0)
    assert differences(other, one) == [
        "exported.safetensors",
        "run/checkpoints/w",
    ]
    other = write_run(tmp_path / "third", loss=np.nextafter(0.5, 1))
    assert differences(other, one) == ["run/metrics.jsonl", "run/result.json"]
    (tmp_path / "third" / "exported.safetensors").unlink()
    found = differences(outcome(tmp_path / "third"), one)
    assert "exported.safetensors (absent)" in found


def test_what_a_kill_left_half_written_is_found(tmp_path):
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / ".result.json.ab12cd_3").touch()
    (tmp_path / ".lock").touch()
    (tmp_path / "result.json").touch()
    assert sorted(temporary_files(tmp_path)) == [
        ".result.json.ab12cd_3",
        "checkpoints/4.orbax-checkpoint-tmp",
    ]


def test_every_damage_of_a_file_is_noticed(tmp_path):
    # The other files are for the experiment.
    found = damaged_checkpoints(Place(tmp_path, None), only="state/manifest.ocdbt")
    assert found == {
        "files": 1,
        "tried": 3,
        "restored": {"step 2": 3},
        "wrong": [],
    }


def test_full_kills_fifty_times_in_each_kind():
    config = faults_config.full().to_dict()
    every = [cell.name for cell in cells(config)]
    assert len(set(every)) == len(every)
    for kind in config["kinds"]:
        trials = sum(name.startswith(f"kills/{kind}/") for name in every)
        assert trials * config["kills"] == 50
    with pytest.raises(ValueError, match=r"config\.kinds.*'meltr'"):
        cells({**config, "kinds": ("melt",)})
    with pytest.raises(ValueError, match="trails"):
        cells({**config, "trails": 3})


def test_the_table_has_what_is_measured(tmp_path):
    config = {**faults_config.smoke().to_dict(), "results": str(tmp_path)}
    kills, each_file, second = cells(config)
    moment = {"second": 1.0, "step": 2}
    stages = ("starting", "writing", "writing")
    kills.write(
        {
            "name": kills.name,
            "kills": [{**moment, "stage": stage} for stage in stages],
            "runs": 2,
            "differing": [],
        }
    )
    second.write(
        {
            "name": second.name,
            "outcome": "refused",
            "code": 1,
            "said": "in use by process 7",
            "differing": [],
        }
    )
    text = write_faults(tmp_path, [kills, each_file, second], "make faults")
    assert "2 of 3 cells measured" in text
    assert "| finetune_full | 3 | 1 | 0 | 2 | 0 | 2 | 0 |" in text
    assert "| second run | refused, exit code 1 | in use by process 7 | 0 |" in text
    assert (tmp_path / "faults.md").read_text() == text
    stored = json.loads((tmp_path / "faults.json").read_text())
    assert stored["kills"]["finetune_full"]["kills"] == 3
    assert cells_module.cells(config)[0].stored()["runs"] == 2


def test_the_table_has_the_processes(tmp_path):
    config = faults_config.full().to_dict()
    config = {**config, "kinds": (), "damages": (), "faults": ()}
    killed, *_ = cells({**config, "results": str(tmp_path)})
    killed.write(
        {
            **{"name": killed.name, "process": 2, "signal": "SIGKILL", "step": 5},
            **{"seconds": 22.9, "codes": [1, 1, 1], "said": ["process 2 is gone"]},
            **{"woken": "", "traceback": False, "then": 8, "resumed": "4"},
            **{"difference": 1.6e-7, "differing": []},
        }
    )
    text = write_faults(tmp_path, [killed], "make faults")
    assert (
        "| process 2 gets SIGKILL at step 5 | 22.9 s, exit codes 1, 1, 1 | process 2 "
        "is gone | 8 processes go on from step 4 | 1.6e-07 | 0 |"
    ) in text


def test_metrics_of_other_steps_are_no_small_difference():
    one = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 2.0}]
    assert largest_difference(one, [one[0], {"step": 2, "loss": 2.5}]) == 0.2
    assert np.isnan(largest_difference(one, one[:1]))
    assert np.isnan(largest_difference(one, [one[0], {"step": 2, "error": 2.0}]))
