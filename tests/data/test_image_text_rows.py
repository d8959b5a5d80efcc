"""A user's own images and captions: rows, what is broken and how much may be."""

import io
import json
import logging
import tarfile

import numpy as np
import pytest
from PIL import Image

from meta_opt.data.pipeline import PipelineConfig, make_iterator
from meta_opt.data.preprocessing.image_fit import ImageFit
from meta_opt.data.preprocessing.pictures import (
    Pictures,
    Unreadable,
    UnreadableFilesError,
    VanishedFileError,
    hold_out,
    sample,
)
from meta_opt.data.preprocessing.tokenizer import load_tokenizer
from meta_opt.data.records import Source
from meta_opt.data.sources.image_text_rows import ImageTextRows

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


def pictures(path, size=8, limit=100, part=None):
    return Pictures(ImageTextRows(path), ImageFit(size), Unreadable(limit), part)


def tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def test_a_name_that_no_file_can_have_is_unreadable(tmp_path, caplog):
    path = jsonl(tmp_path)
    line = {"image": "a" * 300 + ".png", "text": "a green one", "label": "g"}
    path.write_text(path.read_text() + json.dumps(line) + "\n")
    source = pictures(path)
    found = [source[i]["text"] for i in range(6)]
    assert found.count("a green one") == 0
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith("1 so far")


def test_jsonl(tmp_path):
    source = pictures(jsonl(tmp_path))
    assert isinstance(source, Source) and len(source) == 5
    assert repr(source) == "Pictures(5 records, 4 classes, 8x8 px)"
    assert source.class_names == ("b", "l", "r", "w")
    record = source[0]
    assert record["text"] == "a red one" and record["label"] == 2
    assert record["image"].shape == (8, 8, 3)
    np.testing.assert_array_equal(record["image"][4, 4], (255, 0, 0))
    np.testing.assert_array_equal(record["image"][0, 4], (255, 255, 255))  # padding
    assert source[-1]["text"] == "a black one"
    with pytest.raises(IndexError):
        source[5]


@pytest.mark.parametrize(
    ("form", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB")],
)
def test_pictures_are_turned_as_the_camera_was_held(tmp_path, form, mode):
    image = Image.new("RGB", (8, 8), "white")
    image.paste("black", (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # The top of the scene is at the right of the stored image.
    image.convert(mode).save(tmp_path / "a.bin", form, exif=exif)
    (tmp_path / "a.jsonl").write_text('{"image": "a.bin", "text": "a"}')
    found = pictures(tmp_path / "a.jsonl")[0]["image"]
    assert found[:, 6:].max() < 60 and found[:, :2].min() > 200


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
    source, rows = pictures(tmp_path, 6), ImageTextRows(tmp_path)
    assert [source[i]["text"] for i in range(3)] == ["a red one", "blue", "green"]
    assert rows.captions[1] == source[1]["captions"] == ("blue", "sky")
    assert rows.key(2) == "01.tar/1.jpg" and rows.name(2) == f"{tmp_path}/01.tar/1.jpg"
    colours = [tuple(source[i]["image"][3, 3]) for i in range(3)]
    assert colours == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]
    assert len(ImageTextRows(tmp_path / "00.tar")) == 2
    for pattern in ("*.tar", "{00..01}.tar", "0{0,1}.tar", "?[01].tar"):
        found = ImageTextRows(tmp_path / pattern)
        assert [found.key(i) for i in range(3)] == [rows.key(i) for i in range(3)]
    with pytest.raises(ValueError, match=r"\{00\.\.02\}\.tar: there is no .*/02.tar"):
        ImageTextRows(tmp_path / "{00..02}.tar")


def test_batches_come_from_it_and_resume(tmp_path):
    source = pictures(jsonl(tmp_path))
    config = PipelineConfig(text_length=6)
    iterator = make_iterator(source, load_tokenizer(), config, 2, seed=3)
    first = [next(iterator) for _ in range(2)]
    state = iterator.get_state()
    later = next(iterator)
    assert first[0]["image"].shape == (2, 8, 8, 3)
    other = make_iterator(source, load_tokenizer(), config, 2, seed=3)
    other.set_state(state)
    np.testing.assert_array_equal(next(other)["image"], later["image"])


def test_a_picture_that_vanishes_is_no_unreadable_one(tmp_path):
    file = jsonl(tmp_path)
    (tmp_path / "0.png").unlink()
    source = pictures(file)
    (tmp_path / "3.png").rename(tmp_path / "elsewhere.png")
    assert source[0]["text"] == source[1]["text"]  # It was not there at the start.
    for _ in range(2):
        with pytest.raises(VanishedFileError, match=r"3\.png has been .* restore it"):
            source[3]
    assert list(source.unreadable.reasons) == [str(tmp_path / "0.png")]
    (tmp_path / "elsewhere.png").rename(tmp_path / "3.png")
    assert source[3]["text"] == "a white one"


def test_a_tar_file_that_vanishes(tmp_path):
    tar(tmp_path / "00.tar", {"1.jpg": picture("lime"), "1.txt": b"green"})
    source = pictures(tmp_path)
    (tmp_path / "00.tar").unlink()
    with pytest.raises(VanishedFileError, match=r"00\.tar/1\.jpg has been removed"):
        source[0]


def test_unreadable_pictures_are_counted_and_the_next_one_is_given(tmp_path, caplog):
    source = pictures(jsonl(tmp_path, broken=(1, 2)), limit=2)
    with caplog.at_level(logging.WARNING):
        assert source[1]["text"] == source[1]["text"] == "a white one"
        assert source[2]["text"] == "a white one"
    names = [str(tmp_path / f"{i}.png") for i in (1, 2)]
    assert list(source.unreadable.reasons) == names
    # Of each once, and it is not tried again.
    assert caplog.text.count(f"skipped unreadable file {names[0]}") == 1
    whole = source.in_memory()
    assert [c[0] for c in whole.captions] == ["a red one", "a white one", "a black one"]
    np.testing.assert_array_equal(whole.images()[1], source[3]["image"])
    (tmp_path / "3.png").write_bytes(b"not a picture")
    with pytest.raises(
        UnreadableFilesError, match=r"3 files.*at most 2 (.|\n)*1.png(.|\n)*3.png"
    ):
        source[3]


def test_nothing_readable(tmp_path):
    source = pictures(jsonl(tmp_path, broken=range(5)))
    with pytest.raises(UnreadableFilesError, match="none of 5 images can be read"):
        source[0]
    with pytest.raises(UnreadableFilesError, match="none of 5 images can be read"):
        source.in_memory()


def test_random_captions_are_drawn_from_all_of_a_picture(tmp_path):
    path = jsonl(tmp_path, text=["first", "second"])
    config = PipelineConfig(captions="random", text_length=6)
    tokenizer = load_tokenizer()
    iterator = make_iterator(pictures(path), tokenizer, config, 5)
    texts = {
        text for _ in range(4) for text in tokenizer.decode(next(iterator)["text"])
    }
    assert texts == {"first", "second"}
    first = make_iterator(pictures(path), tokenizer, PipelineConfig(), 5)
    assert set(tokenizer.decode(next(first)["text"])) == {"first"}


class Keys:
    """Rows of which only the keys matter."""

    def __init__(self, keys):
        self.keys = keys

    def __len__(self):
        return len(self.keys)

    def key(self, index):
        return self.keys[index]

    def split(self, index):
        return None


def test_what_is_held_out_depends_on_the_keys_alone():
    shares = {"validation": 0.1, "test": 0.2}
    keys = [f"{i}.png" for i in range(4000)]
    found = hold_out(Keys(keys), shares)
    assert sorted(i for part in found.values() for i in part) == list(range(4000))
    assert list(found) == ["train", "validation", "test"]
    assert [len(found[s]) / 4000 for s in shares] == pytest.approx([0.1, 0.2], abs=0.02)
    # In another order, with more of them: each key is where it was, and equal ones are
    # together.
    again = hold_out(Keys(["new.png", *keys[::-1], *keys]), shares)
    for split, part in found.items():
        assert {4000 - i for i in part} <= set(again[split])
        assert {4001 + i for i in part} <= set(again[split])
    # More held out for the one adds to it and leaves its old ones there.
    more = hold_out(Keys(keys), {"validation": 0.2})
    assert set(found["validation"]) <= set(more["validation"])
    chosen = sample(Keys(keys), found["test"], 100)
    assert len(chosen) == 100 and chosen == sorted(set(chosen) & set(found["test"]))
    assert max(chosen) > 3000 and chosen == sample(Keys(keys), found["test"], 100)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"}', "needs an `image`"),
        ('{"image": "x"}', "needs a non-empty `text`"),
        ('{"image": "x", "text": " "}', "needs a non-empty `text`"),
        ('{"image": "x", "label": "y"}', "needs a non-empty `text`"),
    ],
)
def test_lines_that_are_no_pair_are_named(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"image": "x", "text": "x"}\n\n' + line)
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 3: {message}"):
        ImageTextRows(tmp_path / "a.jsonl")


def test_members_that_are_no_pair_are_named(tmp_path):
    tar(tmp_path / "c.tar", {"1.png": picture("red")})
    with pytest.raises(
        ValueError, match=r"c\.tar: sample '1': needs a non-empty `text`"
    ):
        ImageTextRows(tmp_path / "c.tar")
    tar(tmp_path / "d.tar", {"1.txt": b"red"})
    with pytest.raises(ValueError, match=r"d\.tar: sample '1': needs an `image`"):
        ImageTextRows(tmp_path / "d.tar")


def test_null_is_no_class_and_no_question(tmp_path):
    rows = ImageTextRows(jsonl(tmp_path, label=None, prompt=None, split=None))
    assert rows.class_names == ("",)
    assert [(row.label, row.prompt) for row in rows] == 5 * [(0, "")]


def test_labels_that_only_some_have_are_ignored(tmp_path, caplog):
    path = jsonl(tmp_path)
    lines = path.read_text().replace('"label": "r"', '"label": null')
    path.write_text(lines)
    assert ImageTextRows(path).class_names == ("",)
    assert "1 of 5 samples have no `label`, so the others' are ignored" in caplog.text


def test_what_is_asked_and_what_is_answered(tmp_path):
    (tmp_path / "0.png").write_bytes(picture("red"))
    lines = [
        {"text": "a caption"},
        {"target": ["red", "crimson"], "prompt": "which colour"},
        {"target": "red", "text": "a stop sign", "prompt": "which colour"},
        {"text": "a caption", "prompt": "which colour", "label": "x"},
    ]
    lines = [json.dumps({"image": "0.png", **line}) for line in lines]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert [
        (row.captions, row.prompt) for row in ImageTextRows(tmp_path / "a.jsonl")
    ] == [
        (("a caption",), ""),
        (("red", "crimson"), "which colour"),
        (("red",), "a stop sign\nwhich colour"),
        (("a caption",), ""),
    ]


def test_deep_pictures_are_scaled_or_counted(tmp_path):
    grey = np.full((8, 8), 32896, np.uint16)
    Image.fromarray(grey).save(tmp_path / "0.png")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "1.tiff")
    lines = [f'{{"image": "{name}", "text": "a"}}' for name in ("0.png", "1.tiff")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = pictures(tmp_path / "a.jsonl")
    assert (source[0]["image"] == 128).all() and (source[1]["image"] == 128).all()
    ((name, reason),) = source.unreadable.reasons.items()
    assert name.endswith("1.tiff") and "floats from 32896 to 32896" in reason
