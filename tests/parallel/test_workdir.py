"""One run at a time in a run's directory."""

import concurrent.futures
import fcntl
import json

import pytest

from meta_opt.parallel.workdir import (
    LOCK,
    WorkdirInUseError,
    hold_workdir,
    lock_folder,
)


def test_a_directory_that_a_process_has_is_refused_with_its_name(tmp_path):
    # Another open file stands for another process: the lock belongs to it.
    with (tmp_path / LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        about = {"pid": 12, "host": "node7", "started": "2026-01-02 03:04:05"}
        other.write(json.dumps(about))
        other.flush()
        message = "in use by process 12 on node7 since 2026-01-02 03:04:05: wait"
        with pytest.raises(WorkdirInUseError, match=message), hold_workdir(tmp_path):
            pass
    # What is left in the file of a process that has ended says nothing.
    with hold_workdir(tmp_path):
        pass


def test_a_thread_holds_it_again_and_another_does_not(tmp_path):
    def hold():
        with hold_workdir(tmp_path):
            return True

    with concurrent.futures.ThreadPoolExecutor(1) as other, hold_workdir(tmp_path):
        assert hold()
        with pytest.raises(WorkdirInUseError, match="another thread of this process"):
            other.submit(hold).result()
    assert hold()


def test_nothing_is_held_without_a_directory_or_after_an_error(tmp_path):
    with hold_workdir(None):
        pass
    with pytest.raises(KeyError), hold_workdir(tmp_path / "new"):
        raise KeyError
    with hold_workdir(tmp_path / "new"):
        assert json.loads((tmp_path / "new" / LOCK).read_text())["pid"]


def test_a_directory_may_be_shared_by_those_that_say_so(tmp_path):
    # Another open file stands for another process here, too.
    with lock_folder(tmp_path, shared=True), lock_folder(tmp_path, shared=True):
        with pytest.raises(WorkdirInUseError, match=r"shares it \(--shared\): wait"):
            with lock_folder(tmp_path):
                pass
    with lock_folder(tmp_path):
        with pytest.raises(WorkdirInUseError, match=r"since [\d: -]+: wait until"):
            with lock_folder(tmp_path, shared=True):
                pass
    with hold_workdir(tmp_path, shared=True), lock_folder(tmp_path, shared=True):
        pass
