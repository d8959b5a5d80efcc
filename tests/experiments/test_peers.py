"""Other libraries on the same data: a script in their place, and the table."""

import csv
import json
import sys

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from configs import peers as peers_config
from experiments.peers import tasks, trials
from experiments.peers.report import summarise_peers, write_peers
from experiments.peers.tasks import PeerTask
from experiments.peers.trials import Peer, peer_cells, run_peer, user_lines
from meta_opt.tensor_files import read_tensors, write_tensors


@pytest.fixture
def text_task(tmp_path, monkeypatch):
    """A task of two classes, and a folder in the place of the encoder's."""
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(40)]
    monkeypatch.setitem(tasks.TASKS, "made", PeerTask(lambda folder: rows))
    encoder = tmp_path / "encoders" / "minilm"
    encoder.mkdir(parents=True)
    (encoder / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(tasks, "encoder_folder", lambda name, root: encoder)
    labels = tasks.write_task("made", (20, 10, 10), tmp_path / "made", None)
    return tmp_path / "made", labels


def test_the_splits_are_apart(text_task):
    folder, labels = text_task
    texts = []
    for split, expected in labels.items():
        with open(folder / f"{split}.csv", newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
        assert [row["label"] for row in found] == expected
        texts += [row["text"] for row in found]
    assert len(set(texts)) == len(texts) == 40
    config = json.loads((folder / "encoder" / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert (folder / "encoder" / "model.safetensors").read_bytes() == b"weights"
    with pytest.raises(ValueError, match="there are 40 examples"):
        tasks.write_task("made", (20, 10, 11), folder, None)
    with pytest.raises(ValueError, match=r"config.tasks.*'mad'.*did you mean 'made'"):
        tasks.write_task("mad", (1, 1, 1), folder, None)


def test_images_and_the_encoder_in_timms_layout(tmp_path, monkeypatch):
    images = np.arange(4 * 6 * 6 * 3, dtype=np.uint8).reshape(4, 6, 6, 3)
    rows = [(image, "ab"[i % 2]) for i, image in enumerate(images)]
    monkeypatch.setitem(
        tasks.TASKS, "made", PeerTask(lambda folder: rows, column="image")
    )
    encoder = tmp_path / "encoders" / "efficientnet_lite0"
    names = ("_conv_stem.weight", "_fc.bias", "_blocks.0._project_conv.weight")
    tensors = {n: np.full(2, i, np.float32) for i, n in enumerate(names)}
    write_tensors(encoder / "model.safetensors", tensors)
    monkeypatch.setattr(tasks, "encoder_folder", lambda name, root: encoder)
    labels = tasks.write_task("made", (2, 1, 1), tmp_path / "made", None)
    found = {}
    for split, expected in labels.items():
        with open(tmp_path / "made" / f"{split}.csv", newline="") as file:
            for row, label in zip(csv.DictReader(file), expected, strict=True):
                assert row["label"] == label
                with Image.open(row["image"]) as image:
                    found[np.asarray(image).tobytes()] = label
    assert found == {image.tobytes(): label for image, label in rows}
    written = read_tensors(tmp_path / "made" / "encoder" / "model.safetensors")
    assert {name: x[0] for name, x in written.items()} == {
        "conv_stem.weight": 0,
        "classifier.bias": 1,
        "blocks.0.0.conv_pw.weight": 2,
    }


def test_names_of_blocks_follow_the_stages():
    ends = {0: (0, 0), 1: (1, 0), 4: (2, 1), 10: (4, 2), 15: (6, 0)}
    for number, (stage, index) in ends.items():
        name = tasks.timm_name(f"_blocks.{number}._bn2.running_var")
        layer = "bn3" if number else "bn2"
        assert name == f"blocks.{stage}.{index}.{layer}.running_var"


def cell_of(tmp_path, peer):
    config = peers_config.texts().to_dict()
    config |= {"tasks": {"made": (20, 10, 10)}, "results": tmp_path / "results"}
    return peer_cells(config, [peer])[0]


def test_a_script_is_judged_by_its_predictions(text_task, tmp_path, monkeypatch):
    folder, labels = text_task
    script = tmp_path / "peer.py"
    script.write_text(
        "import sys, json, pathlib, csv\n"
        "folder, seed, out, setting = sys.argv[1:]\n"
        "assert (seed, setting) == ('1', 'good')\n"
        "rows = list(csv.DictReader(open(folder + '/test.csv')))\n"
        "found = [row['label'] for row in rows]\n"
        "found[0] = 'ab'.replace(found[0], '')\n"
        "pathlib.Path(out).write_text(json.dumps(found))\n"
    )
    monkeypatch.setattr(Peer, "path", script)
    cell = cell_of(tmp_path, Peer("other", "with_autogluon", "good"))
    found = run_peer(
        cell, sys.executable, folder, tmp_path / "scratch", labels["test"], tmp_path
    )
    assert found["test"]["accuracy"] == pytest.approx(0.9)
    assert 0 < found["seconds"] < 300 and 5 < found["peak_mib"] < 20_000
    assert found["versions"]["optax"]
    assert not (tmp_path / "scratch").exists()
    script.write_text("raise SystemExit('no such encoder')")
    with pytest.raises(RuntimeError, match=r"exit code 1(.|\n)*no such encoder"):
        run_peer(
            cell, sys.executable, folder, tmp_path / "scratch", labels["test"], tmp_path
        )
    with pytest.raises(FileNotFoundError, match=r"requirements\.txt"):
        run_peer(
            cell, "no/python", folder, tmp_path / "scratch", labels["test"], tmp_path
        )


def test_the_table(tmp_path):
    peers = [Peer(**peer) for peer in peers_config.texts().peers]
    with pytest.raises(ValueError, match="with_meta_op"):
        Peer("x", "with_meta_op", "good")

    def record(accuracy, seconds):
        test = {"accuracy": accuracy, "macro_f1": accuracy / 2}
        times = {"seconds": seconds, "processor_seconds": 2 * seconds}
        return {"test": test, **times, "peak_mib": 100 + seconds}

    records = {peer.name: {} for peer in peers}
    ours, other = peers[0].name, peers[2].name
    records[ours] = {
        "a": [record(0.5, 10), record(0.7, 40)],
        "b": [record(0.3, 10), record(0.5, 40)],
        "c": [record(0.0, 1)],
    }
    records[other] = {"a": [record(0.4, 90)], "b": [record(0.4, 90)]}
    first, second = summarise_peers(records, peers)
    # Task c is left out, since not all have it.
    assert (first.means.stage, first.lines) == (ours, user_lines(peers[0]))
    assert first.means.accuracy.mean == pytest.approx(50)
    assert first.means.by_task == pytest.approx({"a": 60, "b": 40})
    assert first.processor_seconds == pytest.approx(40) and first.peak_mib == 140
    assert second.means.gain.mean == pytest.approx(-10)
    text = write_peers(tmp_path, [first, second], "command", 3)
    assert "3 cell(s) not measured yet" in text
    assert f"| {other} | 40.0 | -10.0" in text
    stored = json.loads((tmp_path / "peers.json").read_text())["rows"]
    assert stored[1]["means"]["stage"] == other
    assert (
        write_peers(tmp_path, summarise_peers({}, peers), "command", 5).count("|") == 0
    )


def test_scripts_compile_and_are_counted():
    for name in trials.SCRIPTS:
        lines = user_lines(Peer("x", name, ""))
        assert 5 <= lines < 45, name
        compile(
            (ROOT / "experiments" / "peers" / f"{name}.py").read_text(), name, "exec"
        )
