"""TensorBoard's files: records are framed as in TFRecord."""

import struct
import threading
import time

import pytest
from tensorboardX.proto import event_pb2

from meta_opt.scalar_events import ScalarEvents


def events(folder):
    """The events of all files, in the order in which the files were made."""
    found = []
    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_scalars_are_there_at_once(tmp_path):
    threads = threading.active_count()
    writer = ScalarEvents(tmp_path / "tensorboard", first_step=3)
    writer.write(3, {"train/loss": 0.5, "train/rate": float("nan")})
    writer.write(4, {"train/loss": 0.25})
    version, start, *scalars = events(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    assert start.step == 3
    assert start.session_log.status == event_pb2.SessionLog.START
    values = [(e.step, v.tag, v.simple_value) for e in scalars for v in e.summary.value]
    assert values[0] == (3, "train/loss", 0.5)
    assert values[1][1] == "train/rate" and values[1][2] != values[1][2]
    assert values[2] == (4, "train/loss", 0.25)
    writer.close()
    assert threading.active_count() == threads


def test_a_clock_that_is_set_back(tmp_path, monkeypatch):
    writer = ScalarEvents(tmp_path)
    now = time.time()
    for step in range(1, 50):
        monkeypatch.setattr(time, "time", lambda step=step: now - 3e6 * step)
        writer.write(step, {"loss": 1.0})
    writer.close()
    assert [event.step for event in events(tmp_path)[2:]] == list(range(1, 50))


def test_a_full_disk_is_an_error_of_the_writer(tmp_path):
    resource = pytest.importorskip("resource")
    writer = ScalarEvents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            writer.write(1, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.close()
