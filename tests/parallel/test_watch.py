"""Processes of a run that watch each other, and the witness of each."""

import os
import re
import subprocess
import sys
import threading

import pytest
from paths import ROOT

from meta_opt.parallel.progress import Progress, follow, note_progress
from meta_opt.parallel.watch import ProcessWatch
from meta_opt.parallel.witness import Witness

TIMEOUT = 0.6
TRACE = b"E1129 coordination_service_agent.cc:289] Polled an error\n@ 0x7f26 frame\n"
FATAL = b"F1129 client.h:80] JAX distributed service detected fatal errors\n"


class Store:
    """A key-value store in memory, which may stop to answer."""

    def __init__(self):
        self.values = {}
        self.answers = True

    def key_value_set(self, key, value, allow_overwrite):
        self._check()
        assert allow_overwrite
        self.values[key] = value

    def key_value_dir_get(self, key):
        self._check()
        return [pair for pair in self.values.items() if pair[0].startswith(key)]

    def _check(self):
        if not self.answers:
            raise RuntimeError("UNAVAILABLE: Socket closed")


class Processes:
    """Watches of a run's processes, each as if in a process of its own."""

    def __init__(self, count):
        self.store = Store()
        self.lines = {}
        self.ended = threading.Semaphore(0)
        self.progress = Progress()
        self.watches = [
            ProcessWatch(i, count, TIMEOUT, self.progress, self.store, self.end_of(i))
            for i in range(count)
        ]
        for watch in self.watches:
            watch.start()

    def end_of(self, index):
        def end(line):
            self.lines[index] = line
            # As the end of the process would.
            self.watches[index].stop()
            self.ended.release()

        return end

    def wait(self, count):
        for _ in range(count):
            assert self.ended.acquire(timeout=20)


@pytest.fixture
def processes():
    found = Processes(3)
    yield found
    for watch in found.watches:
        watch.stop()


def test_a_silent_process_is_named_by_all_others_with_what_is_lost(processes, tmp_path):
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "checkpoints" / "manifests").mkdir()
    follow(processes.progress)
    note_progress(6, tmp_path)
    follow(None)
    processes.watches[1].stop()  # Killed.
    processes.wait(2)
    assert processes.lines.keys() == {0, 2}
    for line in processes.lines.values():
        expected = (
            rf"process 1 of 3 \(pid {os.getpid()} on .*\): no heartbeat for 0.6 s "
            r"\(--process_timeout\); 2 steps since the checkpoint of step 4 are lost; "
            r"restart all processes .*"
        )
        assert re.fullmatch(expected, line)


def test_process_0_is_gone_where_its_store_does_not_answer(processes):
    processes.watches[0].stop()
    processes.store.answers = False
    processes.wait(2)
    assert processes.lines.keys() == {1, 2}
    for line in processes.lines.values():
        assert line.startswith("process 0 of 3") and " and process" not in line


def test_a_process_that_the_others_gave_up_says_so(processes):
    processes.store.values["meta_opt/watch/end/0"] = "lost 1"
    # Process 0 ends too, by the word of process 2, perhaps before process 1.
    processes.wait(3)
    assert "process 1 of 3" in processes.lines[2]
    assert "no heartbeat" in processes.lines[2]
    assert "was suspended for over 0.6 s" in processes.lines[1]


def test_a_failed_process_is_named_at_once_and_a_finished_one_is_not(processes):
    processes.watches[2].leave(failed=False)
    threading.Event().wait(2 * TIMEOUT)
    assert processes.lines == {}
    processes.watches[1].leave(failed=True)
    processes.wait(1)
    assert "failed: what it printed says why" in processes.lines[0]


def test_what_is_lost_is_counted_from_the_newest_checkpoint(tmp_path):
    progress = Progress()
    assert progress.lost() == "what was saved is whole"
    progress.note(3, tmp_path)
    assert progress.lost() == "3 steps are lost: there is no checkpoint yet"
    for step in (2, 10):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    progress.note(11, tmp_path)
    assert progress.lost() == "1 step since the checkpoint of step 10 is lost"
    progress.note(10, tmp_path)
    assert Progress(progress.descriptor).lost() == "nothing is lost: step 10 is saved"


def test_the_witness_shows_all_but_the_trace_of_an_end_by_the_service():
    progress = Progress()
    progress.live()
    witness = Witness(progress, 1, 4, 10.0)
    assert witness.read(b"slow compile\n" + TRACE) == b"slow compile\n"
    assert witness.ended() == TRACE  # Ended by something else.
    assert witness.read(FATAL) == b""
    assert witness.ended().startswith(
        b"process 0 of 4 is gone, and no other can continue"
    )
    first = Witness(progress, 0, 4, 10.0)
    first.read(TRACE + FATAL)
    assert first.ended().startswith(b"another of the 4 processes is gone; what was")
    progress.explain()
    assert witness.ended() == b""


PROGRAM = """
import os, sys
from meta_opt.parallel.progress import Progress
from meta_opt.parallel.witness import start_witness
progress = Progress()
progress.live()
progress.note(5, None)
start_witness(progress, 1, 4, 100.0)
os.write(2, b"first\\n" + sys.argv[1].encode())
os.abort()
"""


def test_an_abort_by_the_service_becomes_one_line():
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, (TRACE + FATAL).decode()],
        capture_output=True,
        cwd=ROOT,
        timeout=60,
    )
    first, line = ended.stderr.decode().splitlines()
    assert ended.returncode != 0 and first == "first"
    assert line.startswith("process 0 of 4 is gone") and "what was saved" in line
