"""Logs of runs."""

import json
import math

import pytest

from meta_opt.run_log import (
    METRICS,
    RunLog,
    progress_bar,
    read_records,
    write_config,
    write_environment,
)


def write_steps(log, steps):
    for step in steps:
        log.write(step, {"train/loss": 1.0 / step})
        log.write_timing(step, {"train_seconds": 0.1 * step})


def test_resume_drops_later_and_torn_lines(tmp_path):
    unbroken = RunLog(tmp_path / "a")
    write_steps(unbroken, range(1, 8))
    unbroken.close()
    broken = RunLog(tmp_path / "b")
    write_steps(broken, range(1, 6))
    broken.close()
    with open(tmp_path / "b" / METRICS, "a") as file:
        file.write('{"step": 6, "train/lo')
    resumed = RunLog(tmp_path / "b", resume_step=4)
    assert [record["step"] for record in resumed.history] == [1, 2, 3, 4]
    assert [record["step"] for record in resumed.timing] == [1, 2, 3, 4]
    write_steps(resumed, range(5, 8))
    resumed.close()
    assert resumed.history == unbroken.history
    bytes_a = (tmp_path / "a" / METRICS).read_bytes()
    assert (tmp_path / "b" / METRICS).read_bytes() == bytes_a


def test_a_fresh_start_replaces_the_old_log(tmp_path):
    for _ in range(2):
        log = RunLog(tmp_path)
        write_steps(log, [1])
        log.close()
    assert len(read_records(tmp_path / METRICS)) == 1


def test_lines_are_readable_at_once_and_nonfinite_values_survive(tmp_path):
    log = RunLog(tmp_path)
    log.write(1, {"loss": math.inf, "accuracy": 0.5})
    text = (tmp_path / METRICS).read_text()
    assert json.loads(text) == {"step": 1, "loss": None, "accuracy": 0.5}
    (record,) = read_records(tmp_path / METRICS)
    assert math.isnan(record["loss"])
    log.close()
    assert list((tmp_path / "tensorboard").iterdir())


def test_without_directory_all_stays_in_memory():
    log = RunLog(None)
    log.write(1, {"loss": 2.0})
    log.close()
    assert log.history == [{"step": 1, "loss": 2.0}]


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_records(tmp_path / METRICS)


def test_config_is_kept_and_compared(tmp_path):
    config = {"optimizer": {"name": "adamw", "groups": ((1, 2),)}, "seed": 1}
    write_config(tmp_path, config, resuming=False)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1
    write_config(tmp_path, config, resuming=True)
    changed = {"optimizer": {"name": "sgd"}, "seed": 1}
    with pytest.raises(ValueError, match=r"optimizer.name: adamw -> sgd"):
        write_config(tmp_path, changed, resuming=True)
    write_config(tmp_path, changed, resuming=False)
    assert "sgd" in (tmp_path / "config.json").read_text()


def test_environment_has_an_entry_for_each_start(tmp_path):
    write_environment(tmp_path, 0)
    write_environment(tmp_path, 40)
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert [start["step"] for start in starts] == [0, 40]
    assert starts[0]["versions"]["jax"] and starts[0]["device"] == "cpu"


def test_progress_bar_starts_where_the_run_does(capsys):
    with progress_bar(10, start=4, label="x") as bar:
        bar.update()
    assert bar.total == 10
    assert progress_bar(10, show=False).disable
