"""Several processes share the trials of one study."""

import subprocess
import sys
import threading
import time

import optuna
import pytest

from meta_opt.tuning.claims import FileLocks
from meta_opt.tuning.results import describe_trials
from meta_opt.tuning.search import SearchConfig, search
from meta_opt.tuning.space import Setting

SPACE = {"rate": Setting("linear", low=0.0, high=1.0)}
CONFIG = SearchConfig(num_trials=8, seed=1, startup_trials=8, progress=False)

KILLED = """
import sys, time
from meta_opt.tuning.search import SearchConfig, search
from meta_opt.tuning.space import Setting

def objective(params, report):
    print("begun", flush=True)
    time.sleep(60)

search(
    SearchConfig(num_trials=8, seed=1, startup_trials=8, progress=False),
    {"rate": Setting("linear", low=0.0, high=1.0)},
    objective,
    storage=sys.argv[1],
    name="s",
    maximize=True,
)
"""


def shared(path, objective, **kwargs):
    kwargs = {"name": "s", "maximize": True, **kwargs}
    return search(CONFIG, SPACE, objective, storage=path, **kwargs)


def in_threads(count, work):
    """Calls ``work`` at the same time; a lock is between open files, not processes."""
    found, threads = [], []
    for _ in range(count):
        threads.append(threading.Thread(target=lambda: found.append(work())))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "s.sqlite3"
    return shared(path, lambda params, report: params["rate"])


def test_no_trial_is_run_twice_and_all_see_the_end(tmp_path, alone):
    calls = []

    def objective(params, report):
        calls.append(params["rate"])
        time.sleep(0.05)
        return params["rate"]

    found = in_threads(3, lambda: shared(tmp_path / "s.sqlite3", objective))
    # Random trials are those of one process, whichever process has which.
    assert sorted(calls) == sorted(t.params["rate"] for t in alone.trials)
    assert len(found) == 3
    for study in found:
        trials = describe_trials(study)
        assert [t["state"] for t in trials] == ["complete"] * 8
        assert not {"place", "worker"} & set(trials[0])
    assert found[0].best_value == max(calls) == alone.best_value
    assert not list((tmp_path / "s.sqlite3.locks").glob("trial-*"))


def test_a_killed_process_leaves_its_trial_to_the_others(tmp_path, alone):
    path = tmp_path / "s.sqlite3"
    program = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        calls = []

        def objective(params, report):
            calls.append(params["rate"])
            if len(calls) == 2:
                # Until here its trial is not touched.
                states = [
                    t.state.name
                    for t in optuna.load_study(
                        study_name="s", storage=f"sqlite:///{path}"
                    ).trials
                ]
                assert states.count("RUNNING") == 2 and "FAIL" not in states
                process.kill()
                process.wait()
            return params["rate"]

        study = shared(path, objective)
    assert study.user_attrs["interrupted"] == [0]
    assert len(describe_trials(study)) == 8
    # The settings of the trial that was cut off came again.
    assert sorted(calls) == sorted(t.params["rate"] for t in alone.trials)


def test_a_trial_is_held_once(tmp_path):
    ours, theirs = FileLocks(tmp_path / "s"), FileLocks(tmp_path / "s")
    assert not theirs.held(3)
    with ours.hold(3):
        assert theirs.held(3) and not theirs.held(4)
        with pytest.raises(BlockingIOError), theirs.hold(3):
            pass
    assert not theirs.held(3)


def test_another_study_is_refused_by_the_name_of_what_differs(tmp_path):
    path = tmp_path / "s.sqlite3"
    one = SearchConfig(num_trials=1, progress=False)

    def objective(params, report):
        return 1.0

    def again(space, **kwargs):
        return search(one, space, objective, storage=path, name="s", **kwargs)

    again(SPACE)
    wider = {**SPACE, "decay": Setting("choice", choices=(1, 2))}
    with pytest.raises(ValueError, match=r"'s' made under another space \(decay\)"):
        again(wider)
    with pytest.raises(ValueError, match=r"under another search \(maximize\)"):
        again(SPACE, maximize=True)


def test_halving_keeps_the_greater_values(tmp_path):
    finished = []

    def objective(params, report):
        for epoch in range(1, 9):
            report(epoch, params["rate"])
        finished.append(params["rate"])
        return params["rate"]

    config = SearchConfig(
        num_trials=10,
        seed=0,
        startup_trials=10,
        min_resource=2,
        reduction_factor=2,
        progress=False,
    )
    study = search(
        config, SPACE, objective, storage=tmp_path / "s.db", name="s", maximize=True
    )
    pruned = [t for t in study.trials if t.state.name == "PRUNED"]
    assert pruned and len(pruned) + len(finished) == 10
    assert max(t.params["rate"] for t in study.trials) == study.best_value
    assert {max(t.intermediate_values) for t in pruned} <= {2, 4, 8}
