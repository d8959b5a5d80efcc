"""Processes share a study through a journal in a folder and through a server."""

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import search_worker
from paths import ROOT
from postgresql_server import postgresql
from search_worker import CONFIG, take_part

from meta_opt.tuning.results import describe_trials
from meta_opt.tuning.storage import Storage

WORKER = Path(search_worker.__file__)
LONG, SHORT = 30.0, 2.0
"""Seconds: never reached, and waited for."""
PATIENCE = 240.0
"""Seconds until a test fails, on a machine that does other things, too."""


@pytest.fixture(scope="module")
def server():
    with postgresql() as url:
        yield url


@pytest.fixture(params=["journal", pytest.param("postgresql", marks=pytest.mark.slow)])
def storage(request, tmp_path):
    """A place for a study that no other test has."""
    if request.param == "journal":
        return str(tmp_path / "s.journal")
    import psycopg

    url = request.getfixturevalue("server")
    database = f"test_{time.monotonic_ns()}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}")
    return url.replace("/postgres?", f"/{database}?")


@pytest.fixture(scope="module")
def rates(tmp_path_factory):
    """What one process alone draws."""
    folder = tmp_path_factory.mktemp("alone")
    study = take_part(folder / "s.sqlite3", folder / "calls", 0.0, LONG)
    return sorted(trial.params["rate"] for trial in study.trials)


@contextlib.contextmanager
def worker(storage, calls, seconds, expiry_seconds):
    numbers = (str(seconds), str(expiry_seconds))
    with subprocess.Popen(
        [sys.executable, WORKER, storage, calls, *numbers],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(path):
    """Waits until the first trial has begun."""
    end = time.monotonic() + PATIENCE
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < end, "no trial has begun"
        time.sleep(0.02)


def begun(path):
    return sorted(map(float, path.read_text().split()))


def test_two_processes_make_exactly_the_trials_of_one(storage, tmp_path, rates):
    calls = tmp_path / "calls"
    with worker(storage, calls, 0.1, LONG) as other:
        wait_for(calls)
        study = take_part(storage, calls, 0.1, LONG)
        found = json.loads(other.communicate(timeout=PATIENCE)[0])
    assert begun(calls) == rates
    assert sorted(found) == rates
    ours = describe_trials(study)
    assert [t["params"]["rate"] for t in ours] == found
    assert {t["state"] for t in ours} == {"complete"}
    assert "interrupted" not in study.user_attrs


def test_a_killed_process_leaves_its_trial_to_the_others(storage, tmp_path, rates):
    with worker(storage, tmp_path / "theirs", 60.0, SHORT) as other:
        wait_for(tmp_path / "theirs")
        other.kill()
        other.wait()
        study = take_part(storage, tmp_path / "calls", 0.0, SHORT)
    assert study.user_attrs["interrupted"] == [0]
    # The one that was cut off among them, and none twice.
    assert begun(tmp_path / "calls") == rates
    assert len(describe_trials(study)) == CONFIG.num_trials


def test_a_stopped_process_that_wakes_up_changes_nothing(storage, tmp_path, rates):
    with worker(storage, tmp_path / "theirs", 1.0, SHORT) as other:
        wait_for(tmp_path / "theirs")
        other.send_signal(signal.SIGSTOP)
        before = describe_trials(take_part(storage, tmp_path / "calls", 0.0, SHORT))
        other.send_signal(signal.SIGCONT)
        found = json.loads(other.communicate(timeout=PATIENCE)[0])
    assert begun(tmp_path / "calls") == rates and len(begun(tmp_path / "theirs")) == 1
    study = take_part(storage, tmp_path / "calls", 0.0, SHORT)
    assert describe_trials(study) == before
    assert sorted(found) == rates
    assert [t.number for t in study.trials if t.state.name == "FAIL"] == [0]


def test_a_damaged_journal_is_named_and_a_torn_one_is_mended(tmp_path, rates):
    path, calls = tmp_path / "s.journal", tmp_path / "calls"
    take_part(path, calls, 0.0, LONG)
    whole = path.read_bytes()
    # What a full disk leaves of the last trial's end.
    path.write_bytes(whole[:-10])
    study = take_part(path, calls, 0.0, LONG)
    assert study.user_attrs["interrupted"] == [5]
    assert sorted(t["params"]["rate"] for t in describe_trials(study)) == rates
    for damaged in (whole[:40] + b"\n", whole[:-9] + b"\n"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"s\.journal is not a study or is damag"):
            take_part(path, calls, 0.0, LONG)


def test_an_edited_database_is_refused(tmp_path, rates):
    path, calls = tmp_path / "s.sqlite3", tmp_path / "calls"
    take_part(path, calls, 0.0, LONG)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE trials SET state = '2026-11-30' WHERE number = 1")
    with pytest.raises(ValueError, match=r"s\.sqlite3 is not a study or is damaged"):
        take_part(path, calls, 0.0, LONG)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("values", None, "values None"),
        ("values", [], r"values \[\]"),
        ("values", ["low"], "damaged"),
        ("values", [0.5, 0.5], r"values \[0\.5, 0\.5\]"),
        ("values", [float("nan")], "values"),
        ("directions", [2], r"directions are \['MAXIMIZE'\]"),
        ("directions", [1, 1], "directions"),
        ("user_attr", {"place": [0]}, r"the place of trial 0 is \[0\]"),
        ("user_attr", {"interrupted": 3}, "interrupted is 3"),
        ("user_attr", {"interrupted": [[3]]}, "interrupted"),
    ],
)
def test_an_edited_journal_is_refused(tmp_path, field, value, message):
    path, calls = tmp_path / "s.journal", tmp_path / "calls"
    take_part(path, calls, 0.0, LONG)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    # No trial was interrupted, so that no entry says so yet.
    study = {"op_code": 2, "worker_id": "w", "study_id": 0}
    entries.append(study | {"user_attr": {"interrupted": []}})

    def is_of_kind(entry):
        if field != "user_attr":
            return field in entry
        return entry.get(field, {}).keys() == value.keys()

    next(filter(is_of_kind, entries))[field] = value
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.raises(ValueError, match=rf"s\.journal is not a study.*{message}"):
        take_part(path, calls, 0.0, LONG)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("study.json", r"study\.json is not a valid study storage; .*\.journal"),
        ("mysql://me:secret@host/x", r"^mysql://\.\.\. is not a valid.*PostgreSQL"),
        ("postgresql://me:secret@host:port/x", "invalid server address"),
    ],
)
def test_another_place_is_refused_without_its_password(place, message):
    if place.startswith("postgresql"):
        pytest.importorskip("psycopg", reason="needs the extra `postgresql`")
    with pytest.raises(ValueError, match=message) as error:
        Storage(place, "s")
    assert "secret" not in str(error.value)


def test_a_missing_driver_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'meta-opt\[postgresql\]'"):
        Storage("postgresql://me@host/x", "s")


def test_a_server_out_of_reach_is_named_without_its_password(tmp_path):
    pytest.importorskip("psycopg", reason="needs the extra `postgresql`")
    place = f"postgresql://me:secret@/x?host={tmp_path}"
    with pytest.raises(ConnectionError, match="cannot be used") as error:
        take_part(place, tmp_path / "calls", 0.0, LONG)
    assert "secret" not in str(error.value) and "me:***@" in str(error.value)
