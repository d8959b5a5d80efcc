"""A user's own samples of several modalities: what a file says, and a run on it."""

import json
import tarfile

import numpy as np
import pytest
import soundfile
from multimodal_toy import COLOURS, MODEL, inputs_config
from PIL import Image

from meta_opt.data.preprocessing.pictures import UnreadableFilesError
from meta_opt.data.sources.multimodal import find_task, read_task
from meta_opt.data.sources.sample_task import sample_task
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.runs import finetune
from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.workloads.multimodal import MultimodalConfig

SPLITS = ("train",) * 6 + ("validation", "test")


def write(folder, lines, name="samples.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def picture(colour):
    pixels = np.full((20, 10, 3), 20, np.uint8)
    pixels[..., colour] = 220
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Files of three colours, and some that are broken."""
    folder = tmp_path_factory.mktemp("media")
    times = np.arange(3200) / 16000
    for n, name in enumerate(COLOURS):
        picture(n).save(folder / f"{name}.png")
        tone = 0.3 * np.sin(2 * np.pi * (300 + 500 * n) * times)
        soundfile.write(folder / f"{name}.wav", tone, 16000)
        frames = [picture(n).rotate(20 * turn) for turn in range(9)]
        clip = {"save_all": True, "lossless": True, "duration": 40}
        frames[0].save(folder / f"{name}.webp", append_images=frames[1:], **clip)
    (folder / "broken.png").write_bytes((folder / "red.png").read_bytes()[:40])
    (folder / "broken.wav").write_bytes(b"RIFFnothing")
    soundfile.write(folder / "silent.wav", np.zeros(3200), 16000)
    return folder


def test_a_file_says_what_is_asked_and_what_there_is(tmp_path):
    given = {
        "classify": {"text": "a", "label": 3},
        "score": {"audio": "a.wav", "image": "a.png", "score": -0.5},
        "caption": {"video": "a.webp", "target": "a clip"},
        "retrieve": {"image": "a.png", "text": "a picture"},
    }
    for kind, line in given.items():
        task = sample_task(write(tmp_path, [line, {**line, "audio": None}]))
        assert task.kind == kind
        assert set(task.modalities) == set(line) - {"label", "score", "target"}
    # In an order that does not depend on the lines.
    assert sample_task(write(tmp_path, [given["score"]])).modalities == (
        "image",
        "audio",
    )
    assert find_task(str(tmp_path / "samples.jsonl")).kind == "score"


def test_media_are_read_and_what_is_missing_is_marked(media):
    lines = [
        {"image": "red.png", "audio": "red.wav", "label": "red"},
        {"video": "green.webp", "text": "a green", "label": "green"},
        {"image": "blue.png", "audio": "silent.wav", "label": "blue"},
    ]
    path = write(media, [{**line, "split": "train"} for line in lines])
    samples = read_task(str(path), "train", side=16)
    assert samples.class_names == ("blue", "green", "red")
    assert samples.label.tolist() == [2, 1, 0]
    assert samples.image.shape == (3, 16, 16, 3)
    assert samples.video.shape == (3, 8, 16, 16, 3)
    assert samples.image[0, 8, 8].tolist() == [220, 20, 20]
    assert samples.video[1, 0, 8, 8].tolist() == [20, 220, 20]
    assert not np.array_equal(samples.video[1, 0], samples.video[1, 4])
    # Sound as it is in the file, at 16 kHz.
    assert samples.rate == 16000
    tone = soundfile.read(media / "red.wav", dtype="int16")[0]
    np.testing.assert_allclose(samples.audio[0], tone, atol=1)
    present = {m: x.tolist() for m, x in samples.present().items()}
    assert present == {
        "image": [True, False, True],
        "text": [False, True, False],
        "audio": [True, False, False],
        "video": [False, True, False],
    }
    few = samples.at_most(2)
    assert len(few) == 2 and few.rate == 16000
    kept = [samples.label.tolist().index(n) for n in few.label]
    for modality, there in few.present().items():
        assert there.tolist() == [present[modality][i] for i in kept]


def test_broken_files_are_skipped_counted_and_named(media, caplog):
    broken = ["broken.png", "absent.png"]
    lines = [
        *({"image": name, "label": "red"} for name in broken),
        {"audio": "broken.wav", "label": "red"},
        {"video": "none.webp", "label": "red"},
        {"image": "red.png", "label": "red"},
    ]
    path = write(media, [{**line, "split": "train"} for line in lines])
    samples = read_task(str(path), "train", side=16)
    assert len(samples) == 1 and samples.skipped == 4
    assert "4 so far" in caplog.text
    for name in [*broken, "broken.wav", "none.webp"]:
        assert name in caplog.text
    path = write(media, [{**line, "split": "train"} for line in lines[:4]])
    with pytest.raises(ValueError, match="has 4, of which 4 cannot be read"):
        read_task(str(path), "train")
    # Of all splits together.
    write(media, [{**line, "split": "train"} for line in lines])
    task = find_task(str(path), max_unreadable=3)
    with pytest.raises(UnreadableFilesError, match=r"4 files .*at most 3 (.|\n)*abse"):
        task.read("train", None, 16)


def test_a_question_is_read_as_text(tmp_path):
    lines = [
        {"text": "a sign", "prompt": "which colour", "target": ["red", "crimson"]},
        {"prompt": "which shape", "target": "round", "text": ""},
        {"text": ["a", "b"], "target": "c"},
    ]
    path = write(tmp_path, [{**line, "split": "train"} for line in lines])
    samples = read_task(str(path), "train")
    assert samples.text == ["a sign\nwhich colour", "which shape", "a"]
    assert samples.caption == ["red", "round", "c"]


def test_tar_files_are_samples_too(media, tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as file:
        for colour in COLOURS:
            about = tmp_path / f"{colour}.json"
            about.write_text(json.dumps({"label": colour, "split": "train"}))
            for path in (media / f"{colour}.png", media / f"{colour}.wav", about):
                file.add(path, path.name)
    samples = read_task(str(tmp_path / "0.tar"), "train", side=16)
    assert samples.class_names == ("blue", "green", "red")
    assert [samples.class_names[i] for i in samples.label] == list(COLOURS)
    assert samples.image[:, 8, 8].argmax(axis=1).tolist() == [0, 1, 2]
    tone = soundfile.read(media / "red.wav", dtype="int16")[0]
    np.testing.assert_allclose(samples.audio[0], tone, atol=1)


def test_a_sample_keeps_its_split(tmp_path):
    texts = [{"text": f"number {n}", "label": "x"} for n in range(300)]
    path = write(tmp_path, texts)
    sizes = {s: len(read_task(str(path), s)) for s in ("train", "validation", "test")}
    assert sum(sizes.values()) == 300
    assert 210 <= sizes["train"] <= 270 and min(sizes.values()) >= 15
    first = read_task(str(path), "test").text
    write(tmp_path, [{"text": "another", "label": "x"}, *texts[::-1]])
    again = read_task(str(path), "test").text
    assert set(again) - {"another"} == set(first)
    # Until the line says otherwise.
    write(tmp_path, [{**line, "split": "train"} for line in texts])
    assert len(read_task(str(path), "train")) == 300
    with pytest.raises(ValueError, match="no sample is left for test"):
        read_task(str(path), "test")


@pytest.mark.parametrize(
    "line, message",
    [
        ("[1]", "needs a JSON object"),
        (
            '{"image": "a.png"}',
            "needs one of label, score, target; or `image` and a `t",
        ),
        ('{"image": "a.png", "text": " "}', "a `text` that is not empty alone"),
        ('{"image": "a.png", "audio": "a.wav", "text": "a"}', "needs one of label"),
        ('{"text": "a", "label": "x", "score": 1}', "asks for label and score"),
        ('{"text": "a", "label": "x", "target": "b"}', "asks for label and target"),
        ('{"text": "a", "score": 0}', "asks to score, the first sample to classify"),
        ('{"text": "a", "label": null}', "needs one of label, score, target"),
    ],
)
def test_a_line_that_is_no_sample_is_named(tmp_path, line, message):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=r"samples\.jsonl, line 3: ") as caught:
        sample_task(path)
    assert message in str(caught.value)


def test_errors_of_files(tmp_path):
    with pytest.raises(ValueError, match="has no sample"):
        sample_task(write(tmp_path, []))
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        find_task(str(tmp_path / "none.jsonl"))
    lines = [
        {"text": "a", "label": "x", "split": "train"},
        {"text": "b", "label": "y", "split": "test"},
    ]
    with pytest.raises(ValueError, match="nothing to train on in the class y"):
        read_task(str(write(tmp_path, lines)), "train")


@pytest.mark.slow
def test_a_run_learns_from_own_samples(media, root, tmp_path):
    lines = []
    for n in range(72):
        colour, split = COLOURS[n % 3], SPLITS[n // 3 % len(SPLITS)]
        # Half of them are seen, half heard.
        shown = [{"image": f"{colour}.png"}, {"audio": f"{colour}.wav"}][n // 3 % 2]
        lines.append({**shown, "label": colour, "split": split})
    lines.append({"image": "broken.png", "label": "red", "split": "train"})
    path = write(media, lines, "run.jsonl")
    finished = finetune(
        RunConfig(
            MultimodalConfig(inputs_config(root, task=str(path)), MODEL),
            LoopConfig(32, 12, eval_every=16, progress=False),
            OptimizerConfig("adamw", num_steps=32, learning_rate=3e-3),
        ),
        tmp_path / "run",
    )
    assert finished.data["skipped"] == {"train": 1, "validation": 0, "test": 0}
    assert finished.data["missing"]["train"] == {"image": 27, "audio": 27}
    assert finished.test["accuracy"] > 0.6
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["skipped"]["train"] == 1
