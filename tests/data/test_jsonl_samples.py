"""A user's samples: what a line may say, where its file lies, which split it gets."""

import gzip
import io
import json
import logging
import tarfile

import pytest
from PIL import Image

from meta_opt.data.preprocessing.pictures import hold_out
from meta_opt.data.sources.image_text_rows import ImageTextRows
from meta_opt.data.sources.jsonl_samples import is_path, read_samples
from meta_opt.data.sources.sample_schema import parse_fields
from meta_opt.data.sources.sample_task import sample_task
from meta_opt.data.splits import HELD_OUT, held_out_split
from meta_opt.predictor.table import read_table


def picture(colour, form="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, format=form)
    return buffer.getvalue()


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def tar(path, members, end=True):
    """A tar file of pairs of name and data; without its end mark if ``end`` is no."""
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        size = file.offset
    if not end:
        path.write_bytes(path.read_bytes()[:size])
    return path


PAIRS = [
    ("0.png", picture("red")),
    ("0.txt", b"red"),
    ("1.png", picture("blue")),
    ("1.txt", b"blue"),
]

# The schema


def test_what_a_sample_says():
    fields, ignored = parse_fields(
        {
            "image": "a.png",
            "audio": "a.wav",
            "text": ["one", "two"],
            "prompt": "what is it",
            "target": "a cat",
            "split": "test",
            "video": None,
            "url": "http://",
        }
    )
    assert fields.files == {"image": "a.png", "audio": "a.wav"}
    assert (fields.text, fields.prompt) == (("one", "two"), "what is it")
    assert (fields.target, fields.split) == (("a cat",), "test")
    assert fields.reads == "one\nwhat is it"
    assert (fields.label, fields.score, ignored) == (None, None, ("url",))


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("cat", "cat"),
        (" cat ", "cat"),
        (3, "3"),
        ("3", "3"),
        (3.0, "3"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (None, None),
    ],
)
def test_labels(value, label):
    assert parse_fields({"text": "a", "label": value})[0].label == label


@pytest.mark.parametrize(("value", "score"), [(1, 1.0), (-0.5, -0.5), (None, None)])
def test_scores(value, score):
    assert parse_fields({"text": "a", "score": value})[0].score == score


def test_null_is_as_if_the_key_were_not_there():
    keys = ("audio", "video", "prompt", "label", "score", "target", "split")
    line = {"image": "a.png", "text": "a"}
    whole = parse_fields({**line, **dict.fromkeys((*keys, "anything"))})
    assert whole == parse_fields(line)
    assert parse_fields({**line, "prompt": " "}) == whole
    assert parse_fields({"image": "a.png", "text": ""})[0].text == ()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], r"needs a JSON object, not \[1\]; write an object a line"),
        ("a", "needs a JSON object, not 'a'"),
        ({}, "needs one of image, audio, video, text, prompt"),
        ({"label": "x", "text": ""}, "needs one of image, audio, video, text, prompt"),
        ({"text": {"en": "a"}}, r"`text` must be a string or a list of strings, not"),
        ({"text": 3}, "`text` must be a string or a list of strings, not 3"),
        ({"text": ["a", None]}, "`text` must be a string or a list of strings"),
        ({"text": ["a", " "]}, "an empty string in the list `text`"),
        (
            {"text": "x" * 99 + "a", "label": {"a": "b" * 99}},
            r"not {'a': 'b{50,60}\.\.",
        ),
        ({"text": "a", "prompt": ["x"]}, r"`prompt` must be a string, not \['x'\]"),
        ({"text": "a", "prompt": 3}, "`prompt` must be a string, not 3"),
        ({"image": 3}, "`image` must be a string, not 3"),
        ({"image": ["a.png"]}, "`image` must be a string, not"),
        ({"image": " "}, "`image` must be the path of a file"),
        (
            {"image": "https://a.org/b.png"},
            "`image` must be the path of a file, not 'h",
        ),
        ({"text": "a", "label": ["x"]}, r"`label` must be a class.*, not \['x'\]"),
        ({"text": "a", "label": {}}, "`label` must be a class"),
        ({"text": "a", "label": 1.5}, "not 1.5 .*to be predicted is a `score`"),
        ({"text": "a", "label": " "}, "`label` must be a class"),
        ({"text": "a", "score": "0.5"}, "`score` must be a number, not '0.5'"),
        ({"text": "a", "score": True}, "`score` must be a number, not True"),
        ({"text": "a", "score": [1]}, r"`score` must be a number, not \[1\]"),
        ({"text": "a", "score": float("nan")}, "`score`=nan is not finite"),
        ({"text": "a", "score": 1e39}, r"`score`=1e\+39 is not finite in 32 bits"),
        ({"text": "a", "score": 10**400}, "`score`=10000.* is not finite"),
        ({"text": "a", "target": ""}, "an empty `target`"),
        ({"text": "a", "target": 3}, "`target` must be a string or a list of strings"),
        ({"text": "a", "split": "dev"}, "no split 'dev'.*train, validation, test"),
        ({"text": "a", "split": "Test"}, "no split 'Test'; did you mean 'test'"),
        ({"text": "a", "split": ["test"]}, "no split"),
        # Misspelt keys, and other formats' names.
        ({"text": "a", "lable": "x"}, "no key 'lable'; did you mean 'label'"),
        ({"IMAGE": "a.png", "text": "a"}, "no key 'IMAGE'; did you mean 'image'"),
        ({"img": "a.png", "text": "a"}, "no key 'img'; did you mean 'image'"),
        ({"image": "a.png", "txt": "a"}, "no key 'txt'; did you mean 'text'"),
        ({"text": "a", "promt": "x"}, "no key 'promt'; did you mean 'prompt'"),
        ({"image": "a.png", "caption": "a"}, "'caption'; did you mean 'target'"),
        ({"image": "a.png", "text": "a", "caption": "b"}, "did you mean 'target'"),
        ({"image": "a.png", "question": "a"}, "did you mean 'prompt'"),
        ({"file_name": "a.png", "text": "a"}, "did you mean 'image'"),
        # The form that questions had before.
        (
            {"image": "a.png", "prompt": "what", "text": "a cat"},
            "the answer to a `prompt` must be its `target`; here it stands in `text`",
        ),
        ({"image": "a.png", "prompt": "what"}, "to a `prompt` must be its `target`$"),
    ],
)
def test_what_is_no_sample_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        parse_fields(value)


def test_other_keys_are_ignored_and_named_once(tmp_path, caplog):
    line = {"image": "a.png", "text": "a", "width": 3, "url": "x", "label": "b"}
    # Like a key that is there: no misspelling of it.
    path = write(tmp_path / "a.jsonl", {**line, "label_id": 7}, line)
    with caplog.at_level(logging.WARNING):
        assert len(read_samples(path)) == 2
    (record,) = caplog.records
    message = record.getMessage()
    assert "'width' (2 times), 'url' (2 times), 'label_id' (1 times)" in message
    assert str(path) in message and "image, audio, video, text, prompt" in message


def test_lines_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": ["a", {}]}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: `text` must be"):
        read_samples(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"a\.jsonl has no sample"):
        read_samples(path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.jsonl"):
        read_samples(tmp_path / "none.jsonl")
    for name in ("nowhere", "nowhere.tar", "nowhere*.tar"):
        with pytest.raises(FileNotFoundError, match=r"no file or folder .*nowhere"):
            read_samples(tmp_path / name)
    with pytest.raises(ValueError, match="is not a JSONL file, a tar file or a folder"):
        read_samples(tmp_path)


# Splits


def keys(path):
    return [sample.key for sample in read_samples(path)]


def test_one_file_has_one_key_however_it_is_spelt(tmp_path):
    data, pictures = tmp_path / "root" / "data", tmp_path / "root" / "pics"
    pictures.mkdir(parents=True)
    (pictures / "1.png").write_bytes(picture("red"))
    (pictures / "2.png").symlink_to("1.png")
    spelt = [
        "../pics/1.png",
        ".././pics/1.png",
        "../data/../pics/1.png",
        str(pictures / "1.png"),
        "../pics/2.png",
    ]
    lines = [{"image": name, "text": "a"} for name in spelt]
    path = write(data / "a.jsonl", *lines)
    assert set(keys(path)) == {"../pics/1.png"}
    # Wherever the folder lies, and by whatever way one comes to it.
    moved = (tmp_path / "root").rename(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(moved / "data")
    assert keys(tmp_path / "link" / "a.jsonl")[:3] == ["../pics/1.png"] * 3


def test_a_file_gets_the_same_split_from_both_commands(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.png").write_bytes(picture("red"))
    lines = [{"image": f"./{i}.png", "text": str(i)} for i in range(60)]
    lines[0]["split"], lines[1]["split"] = "test", "validation"
    path = write(tmp_path / "a.jsonl", *lines)
    rows, task = ImageTextRows(path), sample_task(path)
    parts = hold_out(rows, HELD_OUT)
    assert sorted(i for part in parts.values() for i in part) == list(range(60))
    for split, part in parts.items():
        assert task.read(split, None, 8).text == [str(i) for i in part] and part
    assert 0 in parts["test"] and 1 in parts["validation"]


def test_shares_grow_without_taking_from_each_other():
    names = [f"{i}.png" for i in range(4000)]

    def held_out(split, **shares):
        return {name for name in names if held_out_split(name, shares) == split}

    for split, other in (("validation", "test"), ("test", "validation")):
        small = held_out(split, **{split: 0.1})
        assert len(small) / 4000 == pytest.approx(0.1, abs=0.02)
        assert small == held_out(split, **{split: 0.1, other: 0.2})
        assert small < held_out(split, **{split: 0.2, other: 0.1})
    assert held_out("train", validation=0.0, test=0.0) == set(names)


# WebDataset


def test_samples_of_tar_files_are_those_of_jsonl(tmp_path, caplog):
    about = {"label": 3, "target": ["a", "b"], "prompt": "what", "sha256": "0f"}
    path = tar(
        tmp_path / "0.tar",
        [
            ("./a/0.JPG", picture("red", "JPEG")),
            ("a/0.json", b"\xef\xbb\xbf" + json.dumps(about).encode()),
            ("a/0.cls", b"7"),
            ("a/1.txt", "thé\n".encode()),
            ("a/1.wav", b"RIFF"),
            ("a/1.json", b'{"caption": "the", "split": "test"}'),
        ],
    )
    one, two = read_samples(path)
    assert one.media["image"].read() == picture("red", "JPEG")
    assert one.key == "0.tar/a/0.JPG" and one.name == f"{path}/a/0.JPG"
    assert (one.fields.label, one.fields.target) == ("3", ("a", "b"))
    assert two.fields.text == ("thé",) and two.fields.split == "test"
    assert two.media["audio"].read() == b"RIFF"
    assert "ignored the keys 'sha256' (1 times)" in caplog.text


def test_questions_without_answers_can_be_predicted(tmp_path):
    question = json.dumps({"prompt": "what is it?"}).encode()
    members = [("0.png", picture("red")), ("0.json", question)]
    path = tar(tmp_path / "0.tar", members)
    with pytest.raises(ValueError, match="the answer to a `prompt` must be its"):
        read_samples(path)
    (row,) = read_table(path).rows
    assert row.values["prompt"] == "what is it?" and "target" not in row.values


def test_compressed_tar_files_are_refused_by_name(tmp_path):
    path = tar(tmp_path / "0.tar", PAIRS)
    assert len(read_samples(path)) == 2
    for name in ("gzip.tar", "0.tar.gz", "0.tgz"):
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
        assert is_path(name)
        with pytest.raises(ValueError, match=rf"{name} is compressed by gzip.*decompr"):
            read_samples(tmp_path / name)


def test_a_tar_file_that_is_cut_anywhere_is_named(tmp_path):
    whole = tar(tmp_path / "whole.tar", PAIRS)
    assert len(read_samples(whole)) == 2
    between = tar(tmp_path / "between.tar", PAIRS[:2], end=False)
    with pytest.raises(
        ValueError, match=r"between\.tar is cut short: .* without the m"
    ):
        read_samples(between)
    data = whole.read_bytes()
    for size in (300, 700, 1100, 2048 + 300):
        (tmp_path / "cut.tar").write_bytes(data[:size])
        with pytest.raises(
            ValueError, match=r"cut\.tar is (not a tar file or is )?cut"
        ):
            read_samples(tmp_path / "cut.tar")
    # A header in the middle that is broken, and a second file after the end.
    broken = bytearray(data)
    broken[1024:1100] = b"?" * 76
    for name, content in {"broken": bytes(broken), "two": data + data}.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(
            ValueError, match=rf"{name}\.tar is damaged, or several tar"
        ):
            read_samples(tmp_path / f"{name}.tar")
    (tmp_path / "none.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(ValueError, match=r"none\.tar is not a tar file or is cut"):
        read_samples(tmp_path / "none.tar")


@pytest.mark.parametrize(
    "names",
    [("0.jpg", "0.JPG"), ("0.jpg", "0.png"), ("0.jpg", "./0.jpg"), ("0.jpg", "0.jpg")],
)
def test_two_pictures_for_one_sample_are_refused(tmp_path, names):
    members = [(names[0], picture("red", "JPEG")), ("0.txt", b"red")]
    path = tar(tmp_path / "0.tar", [*members, (names[1], picture("blue", "JPEG"))])
    with pytest.raises(
        ValueError, match=r"0\.tar: sample '0' has two members for its "
    ):
        read_samples(path)


def test_hidden_files_of_a_mac_are_left_out(tmp_path, caplog):
    hidden = [
        ("._0.png", b"Mac OS X"),
        ("._0.txt", b"\0\5"),
        (".DS_Store", b""),
        (".txt", b"a"),
    ]
    tar(tmp_path / "0.tar", [*hidden, *PAIRS])
    (tmp_path / "._0.tar").write_bytes(b"Mac OS X")
    for path in (tmp_path, tmp_path / "*.tar"):
        samples = read_samples(path)
        assert [sample.fields.text[0] for sample in samples] == ["red", "blue"]
    assert "left out 4 hidden members" in caplog.text


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("2.json", b"{"), r"sample '2' \(2\.json, 2\.png\): invalid JSON: Expec"),
        (("2.json", b"[1]"), r"sample '2' .*: its \.json is not a JSON object"),
        (("2.json", b'{"text": NaN}'), "NaN is not JSON"),
        (("2.json", b'{"lable": 1}'), "no key 'lable'; did you mean 'label'"),
        (("2.txt", "é".encode("latin-1")), r"sample '2' \(2\.png, 2\.txt\): not UTF-8"),
    ],
)
def test_broken_samples_of_tar_files_are_named(tmp_path, member, message):
    path = tar(tmp_path / "0.tar", [*PAIRS, ("2.png", picture("red")), member])
    with pytest.raises(ValueError, match=message) as caught:
        read_samples(path)
    assert str(path) in str(caught.value)
