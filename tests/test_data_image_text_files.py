"""A user's own files: both formats, what is broken and how much of it may be."""

import io
import json
import logging
import tarfile

import numpy as np
import pytest
from PIL import Image

from meta_opt.data.image_text_files import ImageTextFiles, UnreadableImagesError
from meta_opt.data.pipeline import PipelineConfig, make_iterator
from meta_opt.data.records import Source
from meta_opt.data.tokenizer import load_tokenizer

COLOURS = ("red", "lime", "blue", "white", "black")


def picture(colour, size=(12, 6)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def jsonl(folder, broken=(), **changes):
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, colour in enumerate(COLOURS):
        data = b"no picture" if i in broken else picture(colour)
        (folder / f"{i}.png").write_bytes(data)
        line = {"image": f"{i}.png", "text": f"a {colour} one", "label": colour[0]}
        lines.append(json.dumps(line | changes))
    (folder / "pairs.jsonl").write_text("\n\n".join(lines) + "\n")
    return folder / "pairs.jsonl"


def tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def test_jsonl(tmp_path):
    source = ImageTextFiles(jsonl(tmp_path), 8)
    assert isinstance(source, Source) and len(source) == 5
    assert repr(source) == "ImageTextFiles(5 records, 4 classes, 8x8 px)"
    assert source.class_names == ("b", "l", "r", "w")
    record = source[0]
    assert record["text"] == "a red one" and record["label"] == 2
    assert record["image"].shape == (8, 8, 3)
    np.testing.assert_array_equal(record["image"][4, 4], (255, 0, 0))
    np.testing.assert_array_equal(record["image"][0, 4], (255, 255, 255))  # padding
    assert source[-1]["text"] == "a black one"
    with pytest.raises(IndexError):
        source[5]


def test_webdataset(tmp_path):
    tar(
        tmp_path / "00.tar",
        {
            "a/1.png": picture("red"),
            "a/1.txt": b"a red one\n",
            "a/2.json": json.dumps({"text": ["blue", "sky"], "label": "x"}).encode(),
            "a/2.png": picture("blue"),
        },
    )
    tar(tmp_path / "01.tar", {"1.jpg": picture("lime"), "1.txt": b"green"})
    source = ImageTextFiles(tmp_path, 6)
    assert [source[i]["text"] for i in range(3)] == ["a red one", "blue", "green"]
    assert source.captions[1] == ("blue", "sky")
    colours = [tuple(source[i]["image"][3, 3]) for i in range(3)]
    assert colours == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]
    assert len(ImageTextFiles(tmp_path / "00.tar", 6)) == 2


def test_batches_come_from_it_and_resume(tmp_path):
    source = ImageTextFiles(jsonl(tmp_path), 8)
    config = PipelineConfig(batch_size=2, seed=3, text_length=6)
    iterator = make_iterator(source, load_tokenizer(), config)
    first = [next(iterator) for _ in range(2)]
    state = iterator.get_state()
    later = next(iterator)
    assert first[0]["image"].shape == (2, 8, 8, 3)
    other = make_iterator(source, load_tokenizer(), config)
    other.set_state(state)
    np.testing.assert_array_equal(next(other)["image"], later["image"])


def test_unreadable_pictures_are_counted_and_the_next_one_is_given(tmp_path, caplog):
    source = ImageTextFiles(jsonl(tmp_path, broken=(1, 2)), 8, max_unreadable=2)
    with caplog.at_level(logging.WARNING):
        assert source[1]["text"] == "a white one"
        assert source[2]["text"] == "a white one"
    assert list(source.unreadable) == ["1.png", "2.png"]
    assert "skipped unreadable picture 1.png" in caplog.text
    (tmp_path / "3.png").unlink()
    with pytest.raises(
        UnreadableImagesError, match=r"3 pictures.*at most 2 (.|\n)*1.png(.|\n)*3.png"
    ):
        source[3]


def test_nothing_readable(tmp_path):
    source = ImageTextFiles(jsonl(tmp_path, broken=range(5)), 8)
    with pytest.raises(UnreadableImagesError, match="none of 5 pictures can be read"):
        source[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": " "}, "line 1: needs .* an empty caption"),
        ({"text": []}, "line 1: needs .* an empty caption"),
        ({"text": 3}, "line 1: needs .*TypeError"),
    ],
)
def test_broken_lines_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        ImageTextFiles(jsonl(tmp_path, **changes), 8)


def test_other_broken_sources_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: .*KeyError: 'image'"):
        ImageTextFiles(tmp_path / "a.jsonl", 8)
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no pair of a picture and a caption"):
        ImageTextFiles(tmp_path / "b.jsonl", 8)
    with pytest.raises(ValueError, match=r"is no JSONL file, no tar file and no folde"):
        ImageTextFiles(tmp_path / "nowhere", 8)
    tar(tmp_path / "c.tar", {"1.png": picture("red")})
    with pytest.raises(ValueError, match=r"sample '1' has .png; it needs a picture"):
        ImageTextFiles(tmp_path / "c.tar", 8)
    tar(tmp_path / "d.tar", {"1.png": picture("red"), "1.json": b"{"})
    with pytest.raises(ValueError, match=r"1\.json is no caption"):
        ImageTextFiles(tmp_path / "d.tar", 8)
