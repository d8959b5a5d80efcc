"""Commands that are started several times share their work."""

import concurrent.futures
import sys

import optuna
import pytest
from commands import run_command
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from experiments import cli
from experiments.sharing import reporting
from meta_opt.leases import Leases


@pytest.mark.slow
def test_two_meta_tests_measure_each_result_once(tmp_path):
    arguments = [
        *("--config", "configs/meta_evaluate.py:smoke"),
        f"--config.results={tmp_path}/results",
        *("--workdir", tmp_path / "work"),
        "--config.meta_test.untuned=()",
        "--shared",
    ]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        started = [
            threads.submit(run_command, "meta_evaluate", *arguments, seconds=900)
            for _ in range(2)
        ]
        ended = [future.result() for future in started]
    assert [done.returncode for done in ended] == [0, 0], ended[0].stderr
    assert any("written: " in done.stdout for done in ended)
    results = tmp_path / "results" / "digits_mlp"
    assert sorted(p.stem for p in results.iterdir()) == ["adamw", "sgd"]
    # Each search has its two trials and no more.
    for name in ("adamw", "sgd"):
        path = str(tmp_path / "work" / "digits_mlp" / f"{name}.journal")
        study = optuna.load_study(
            study_name=name, storage=JournalStorage(JournalFileBackend(path))
        )
        assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    # None is held, and a command that does not share is not refused.
    assert not list((tmp_path / "work" / "leases").iterdir())
    alone = run_command("meta_evaluate", *arguments[:-1], seconds=900)
    assert alone.returncode == 0, alone.stderr


def test_one_of_those_that_share_reports(tmp_path, capsys):
    leases = Leases(tmp_path)
    with reporting(None) as alone, reporting(leases) as first:
        assert alone and first
        with reporting(leases) as second:
            assert not second
    assert "another process" in capsys.readouterr().out
    with reporting(leases) as later:
        assert later


def test_a_reported_command_names_no_server_and_no_folder(monkeypatch):
    given = ("--storage", "postgresql://me:secret@host/x", "--shared", "--seed=3")
    more = ("--lease_seconds=5", "--storage=/shared/s.journal", "--workdir=runs/x")
    monkeypatch.setattr(cli, "_ARGUMENTS", (*given, *more, "--last"))
    monkeypatch.setattr(sys, "argv", ["/x/tune_baselines.py"])
    assert cli.command_line() == (
        "python -m experiments.tune_baselines --seed=3 --last"
    )
