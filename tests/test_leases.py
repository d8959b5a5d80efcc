"""A lease has one owner, is taken from a dead one, and one that wakes up notices."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import lease_worker
import pytest
from paths import ROOT

from meta_opt.leases import LeaseLostError, Leases, share

WORKER = lease_worker.__file__
LONG, SHORT = 60.0, 0.5
"""Seconds: never reached, and waited for."""
PATIENCE = 240.0
"""Seconds until a test fails, on a machine that does other things, too."""


def worker(folder, seconds, expiry_seconds):
    """Another process that measures the cells."""
    return subprocess.Popen(
        [
            sys.executable,
            lease_worker.__file__,
            folder,
            str(seconds),
            str(expiry_seconds),
        ],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )


def wait_until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def begun(folder):
    path = folder / "begun"
    return path.read_text().split() if path.is_file() else []


def records(folder):
    return {path.stem: int(path.read_text()) for path in folder.glob("*.record")}


def test_a_lease_has_one_owner_and_ends_with_it(tmp_path):
    ours, theirs = Leases(tmp_path, LONG), Leases(tmp_path, LONG)
    lease = ours.take("a")
    assert theirs.take("a") is None and theirs.held("a") and not theirs.held("b")
    with lease:
        lease.check()
    assert not theirs.held("a") and not os.listdir(tmp_path)


def test_of_many_that_come_at_once_at_most_one_is_the_owner(tmp_path):
    found, start = [], threading.Barrier(8)

    def work():
        leases = Leases(tmp_path, LONG)
        for i in range(50):
            start.wait()
            lease = leases.take(str(i))
            if lease is not None:
                found.append(i)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(set(found))


def make_old(folder, seconds):
    """Sets the time of the only lease back."""
    (path,) = (p for p in folder.iterdir() if "@" in p.name)
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def test_a_lease_is_renewed_and_one_that_is_not_is_taken(tmp_path):
    ours, theirs = Leases(tmp_path, LONG), Leases(tmp_path, LONG)
    with ours.take("a") as lease:
        make_old(tmp_path, LONG - 10)
        assert theirs.held("a")
        make_old(tmp_path, LONG + 10)
        with theirs.take("a") as other:
            with pytest.raises(LeaseLostError, match=r"^a: .* after 60 s without"):
                lease.check()
            other.check()
    # What its first owner leaves is not the other's.
    assert not theirs.held("a")


def test_the_thread_renews(tmp_path):
    with Leases(tmp_path, SHORT).take("a") as lease:
        path = make_old(tmp_path, 100)
        wait_until(lambda: time.time() - path.stat().st_mtime < 50)
        lease.check()


def test_an_owner_that_wakes_up_while_it_is_buried_keeps_the_lease(
    tmp_path, monkeypatch
):
    ours, theirs = Leases(tmp_path, LONG), Leases(tmp_path, LONG)
    with ours.take("a") as lease:
        make_old(tmp_path, LONG + 10)
        rename = Path.rename

        def woken(path, target):
            monkeypatch.setattr(Path, "rename", rename)
            lease.check()
            return path.rename(target)

        monkeypatch.setattr(Path, "rename", woken)
        assert theirs.take("a") is None
        lease.check()


@pytest.mark.parametrize("name", ["", "a/b", "a@b", ".a"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="is not a valid name of a lease"):
        Leases(tmp_path).take(name)
    with pytest.raises(ValueError, match="expiry_seconds=0 must be above 0"):
        Leases(tmp_path, 0)


def test_two_processes_do_each_cell_once(tmp_path):
    with worker(tmp_path, 0.01, LONG) as one, worker(tmp_path, 0.01, LONG) as two:
        assert one.wait(PATIENCE) == two.wait(PATIENCE) == 0
    assert sorted(begun(tmp_path)) == sorted(lease_worker.CELLS)
    assert sorted(records(tmp_path)) == sorted(lease_worker.CELLS)
    assert set(records(tmp_path).values()) <= {one.pid, two.pid}
    assert not os.listdir(tmp_path / "leases")


def test_a_cell_of_a_killed_process_is_taken_after_its_lease(tmp_path):
    with worker(tmp_path, 60.0, SHORT) as process:
        wait_until(lambda: begun(tmp_path))
        process.kill()
    lease_worker.measure(tmp_path, 0.0, SHORT)
    assert set(records(tmp_path).values()) == {os.getpid()}
    assert sorted(begun(tmp_path)) == ["a", *lease_worker.CELLS]


def test_a_stopped_process_that_wakes_up_overwrites_nothing(tmp_path):
    with worker(tmp_path, 1.0, SHORT) as process:
        wait_until(lambda: begun(tmp_path))
        process.send_signal(signal.SIGSTOP)
        lease_worker.measure(tmp_path, 0.0, SHORT)
        before = records(tmp_path)
        assert set(before.values()) == {os.getpid()}
        process.send_signal(signal.SIGCONT)
        assert process.wait(PATIENCE) == 0
    assert records(tmp_path) == before and len(begun(tmp_path)) == 1 + len(before)


def test_a_failure_lets_go_of_the_cell(tmp_path):
    def work(cell, lease):
        raise KeyError(cell)

    leases = Leases(tmp_path, LONG)
    with pytest.raises(KeyError):
        share("ab", str, work, leases)
    assert not leases.held("a")
