"""Official annotation files of video-text data sets, and the clips beside them."""

import json
import logging
import re
import shlex

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from official_clips import (
    ACTION,
    COUNT,
    FRAME,
    MOSI,
    MSVD,
    OPTIONS,
    TEST,
    TEST_1K,
    TRAIN,
    YOUCOOK2,
    animation,
    picture,
    table,
    videos,
    write_annotations,
)
from PIL import Image

from meta_opt.data.preprocessing.frame_indices import even_indices, segment_frames
from meta_opt.data.sources.video_annotations import (
    KINDS,
    VideoTextSample,
    annotation_files,
    clips,
    read_annotations,
)
from meta_opt.data.sources.video_annotations.find_clips import (
    ffmpeg_command,
    find_clips,
)


@pytest.fixture
def folder(tmp_path):
    write_annotations(tmp_path)
    return tmp_path


# What each data set says


def test_msrvtt(folder):
    data = read_annotations("msrvtt", folder)
    assert [s.video_id for s in data.samples] == ["video0", "video1"]
    assert data[0] == VideoTextSample(
        "video0",
        "video0",
        "train",
        ("caption 0 of 0", "caption 1 of 0"),
        category=9,
        clip_names=("video0",),
    )
    assert (data[0].text, data[0].start_seconds) == ("caption 0 of 0", None)
    assert (data.num_annotated, data.missing, data.clips) == (2, (), None)
    (held,) = read_annotations("msrvtt", folder, split="validation").samples
    assert (held.video_id, held.split, held.category) == ("video6513", "validation", 19)
    test = read_annotations("msrvtt", folder, split="test")
    assert [s.video_id for s in test.samples] == ["video7010", "video7020"]


def test_msrvtt_of_two_files(folder):
    whole = read_annotations("msrvtt", folder, split="train+validation+test").samples
    nine = read_annotations("msrvtt_9k", folder).samples
    assert read_annotations("msrvtt", folder / "MSRVTT_data.json")[0] == whole[0]
    (folder / "MSRVTT_data.json").unlink()
    (folder / "train_val_videodatainfo.json").write_text(videos(*TRAIN))
    (folder / "test_videodatainfo.json").write_text(videos(*TEST))
    again = read_annotations("msrvtt", folder, split="train+validation+test")
    assert again.samples == whole
    path = folder / "train_val_videodatainfo.json"
    assert len(read_annotations("msrvtt", path, split="test")) == 2
    assert read_annotations("msrvtt_9k", folder).samples == nine


def test_7k_and_9k(folder):
    seven = read_annotations("msrvtt_7k", folder, split="train+validation")
    assert [s.video_id for s in seven.samples] == ["video0", "video1", "video6513"]
    nine = read_annotations("msrvtt_9k", folder)
    assert [s.video_id for s in nine.samples] == ["video1", "video6513", "video7010"]
    assert {s.split for s in nine.samples} == {"train"}
    assert nine[2].captions == ("caption 0 of 7010", "caption 1 of 7010")
    assert nine[2].category == 3
    for kind in ("msrvtt_7k", "msrvtt_9k"):
        test = read_annotations(kind, folder, split="test")
        assert [s.key for s in test.samples] == ["ret0", "ret1", "ret2"]
        assert test[1].video_id == "video7020"
        assert test[1].captions == ('a man says "no", and leaves',)
    with pytest.raises(ValueError, match=r"msrvtt_9k has no split 'validation'"):
        read_annotations("msrvtt_9k", folder, split="validation")


def test_youcook2(folder):
    data = read_annotations("youcook2", folder)
    assert [s.key for s in data.samples] == ["GLd3aX16zBg_0", "GLd3aX16zBg_1"]
    second = data[1]
    assert second.captions == ("place cheese",)
    assert (second.start_seconds, second.end_seconds) == (114.0, 127.5)
    assert second.clip_names == ("GLd3aX16zBg_1", "GLd3aX16zBg")
    path = folder / "youcookii_annotations_trainval.json"
    (held,) = read_annotations("youcook2", path, split="validation").samples
    assert (held.video_id, held.split) == ("-dh_uGahzYo", "validation")
    with pytest.raises(ValueError, match=r"no split 'test' \(splits: train, valid"):
        read_annotations("youcook2", folder, split="test")


def test_tgif_qa(folder):
    action = read_annotations("tgif_qa_action", folder)
    first = action[0]
    assert (first.video_id, first.key, first.split) == (
        *("tumblr_a_250", "ACTION4", "train"),
    )
    assert (first.question, first.options) == ("What does the man do ?", (*OPTIONS,))
    assert [s.answer for s in action.samples] == [4, 0, 2]
    assert first.options[action[2].answer] == 'respond "no"'
    assert read_annotations("tgif_qa_action", folder, split="test")[0].split == "test"
    assert read_annotations("tgif_qa_transition", folder)[1].key == "TRANS5"
    frame = read_annotations("tgif_qa_frame", folder)
    assert [s.answer for s in frame.samples] == ["cone", "two", "red"]
    assert [s.category for s in frame.samples] == [0, 1, 2]
    assert (frame[0].options, frame[0].text) == ((), "what is white ?")
    count = read_annotations("tgif_qa_count", folder)
    assert [s.answer for s in count.samples] == [10.0, 0.0, 3.0]
    assert all(isinstance(s.answer, float) for s in count.samples)
    with pytest.raises(ValueError, match=r"no split 'validation' \(splits: train, te"):
        read_annotations("tgif_qa_count", folder, split="validation")


def test_video_qa(folder):
    data = read_annotations("msvd_qa", folder, split="validation")
    assert [s.key for s in data.samples] == ["30933", "30934", "30935"]
    assert data[0].clip_names == ("vid1201",)
    assert (data[2].question, data[2].answer) == ("what do they do?", "run")
    (folder / "youtube_mapping.txt").write_text("-4wsuPCjDBc_5_15 vid1\r\nab_1_2 vid2")
    with pytest.raises(ValueError, match=r"entry 0: vid1201 is not in .*mapping.txt"):
        read_annotations("msvd_qa", folder, split="validation")
    with (folder / "youtube_mapping.txt").open("a") as file:
        file.write("\n\nzz_0_9 vid1201\n")
    data = read_annotations("msvd_qa", folder, split="validation")
    assert data[0].clip_names == ("vid1201", "zz_0_9")
    assert data[2].clip_names == ("vid1", "-4wsuPCjDBc_5_15")
    other = read_annotations("msrvtt_qa", folder)
    assert [s.video_id for s in other.samples] == ["video0", "video0", "video6513"]
    assert other[0].clip_names == ("video0",)


def test_cmu_mosi(folder):
    data = read_annotations("cmu_mosi", folder)
    assert [s.key for s in data.samples] == ["03bSnISJMiM_11", "03bSnISJMiM_1"]
    assert [s.score for s in data.samples] == [-2.4, 3.0]
    assert data[1].text == "I LOVED IT, REALLY"
    assert data[0].clip_names == ("03bSnISJMiM_11", "03bSnISJMiM/11")
    held = read_annotations("cmu_mosi", folder, split="validation+test")
    assert [(s.split, s.score) for s in held.samples] == [
        *(("validation", 0.0), ("test", 1.2)),
    ]
    # Another release has the columns in another order and more of them.
    rows = [["IT", 0.5, "", "test", "a", "0001"]]
    columns = ["text", "label", "label_T", "mode", "video_id", "clip_id"]
    (folder / "label.csv").write_text("\ufeff" + table(columns, rows))
    path = folder / "label.csv"
    (other,) = read_annotations("cmu_mosi", path, split="test").samples
    assert (other.key, other.score) == ("a_0001", 0.5)


# Wrong arguments and wrong files


def test_names_that_are_not_known(folder):
    with pytest.raises(ValueError, match=r"kind='msrvt' must be one .*; did you mean"):
        read_annotations("msrvt", folder)
    with pytest.raises(ValueError, match=r"no split 'valid'; did you mean 'validatio"):
        read_annotations("msrvtt", folder, split="valid")
    with pytest.raises(ValueError, match="split has train more than once"):
        read_annotations("msrvtt", folder, split="train+train")
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere.*MOSI-label"):
        read_annotations("cmu_mosi", folder / "nowhere")
    (folder / "val_qa.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no file val_qa.json"):
        read_annotations("msvd_qa", folder, split="validation")
    (folder / "MSRVTT_data.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"MSRVTT_data.json or train_val_video"):
        read_annotations("msrvtt", folder)


def changed(change):
    """A function of JSON text that changes its value."""

    def apply(text):
        value = json.loads(text)
        change(value)
        return json.dumps(value)

    return apply


def replaced(old, new):
    def apply(text):
        assert old in text
        return text.replace(old, new, 1)

    return apply


def at(*path, to):
    """Sets the value at a path of keys and indices."""

    def change(value):
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return changed(change)


def without(*path):
    def change(value):
        for key in path[:-1]:
            value = value[key]
        del value[path[-1]]

    return changed(change)


WHOLE = "MSRVTT_data.json"
COOK = "youcookii_annotations_trainval.json"
FIRST = ("database", "GLd3aX16zBg")
SEGMENT = (*FIRST, "annotations", 1)
WRONG = [
    # JSON that is of another form.
    ("msrvtt", WHOLE, lambda text: "[]", r"needs a JSON object, not \[\]; expected \{"),
    ("msrvtt", WHOLE, lambda text: text[:99], r"invalid JSON: .* column \d+; expected"),
    ("msrvtt", WHOLE, lambda text: "", "invalid JSON: .*; expected"),
    ("msrvtt", WHOLE, lambda text: "[" * 9999, "nested too deeply; expected"),
    (
        "msrvtt",
        WHOLE,
        lambda text: '{"a":' * 330 + "1" + "}" * 330,
        "no key 'videos'|nested too deeply",
    ),
    (
        "msrvtt",
        WHOLE,
        without("videos"),
        "no key 'videos', only 'info', 'sentences'; exp",
    ),
    ("msrvtt", WHOLE, at("videos", to={}), "'videos' must be a list, not {}; expected"),
    (
        "msrvtt",
        WHOLE,
        at("videos", 1, to=[]),
        r"json, videos\[1\]: needs a JSON object",
    ),
    (
        "msrvtt",
        WHOLE,
        at("videos", 1, "split", to="val"),
        r"videos\[1\]: 'split' is 'val', not one of train, validate, test; did you",
    ),
    (
        "msrvtt",
        WHOLE,
        without("videos", 2, "category"),
        r"videos\[2\]: no key 'category'",
    ),
    (
        "msrvtt",
        WHOLE,
        at("videos", 1, "category", to=20),
        r"must be a number in \[0, 19\], not 20",
    ),
    (
        "msrvtt",
        WHOLE,
        at("videos", 1, "category", to=1.5),
        "must be an integer, not 1.5",
    ),
    (
        "msrvtt",
        WHOLE,
        at("videos", 1, "category", to=True),
        r"videos\[1\]: .*, not True",
    ),
    (
        "msrvtt",
        WHOLE,
        at("videos", 1, "video_id", to="video0"),
        "'video0' occurs twice",
    ),
    ("msrvtt", WHOLE, at("videos", 1, "video_id", to="../x"), "cannot name a file"),
    ("msrvtt", WHOLE, at("videos", 1, "video_id", to=".."), "cannot name a file"),
    ("msrvtt", WHOLE, at("videos", 1, "video_id", to="é" * 101), "cannot name a file"),
    (
        "msrvtt",
        WHOLE,
        at("videos", 1, "video_id", to=7),
        "'video_id' must be a string, not 7",
    ),
    (
        "msrvtt",
        WHOLE,
        at("sentences", 3, "video_id", to="video5"),
        r"sentences\[3\]: video 'video5' is not among the `videos`",
    ),
    (
        "msrvtt",
        WHOLE,
        at("sentences", 0, "caption", to=7),
        r"sentences\[0\]: 'caption' must be a string, not 7",
    ),
    (
        "msrvtt",
        WHOLE,
        at("sentences", to=[]),
        r"videos\[0\]: video 'video0' has no caption",
    ),
    (
        "msrvtt_9k",
        "MSRVTT_train.9k.csv",
        replaced("video1\n", "video2\n"),
        "csv, line 2: video 'video2' is not in MSRVTT_data.json; expected columns",
    ),
    (
        "msrvtt_9k",
        "MSRVTT_train.9k.csv",
        replaced("6513", "1"),
        "line 3: video 'video1' occurs twice",
    ),
    (
        "msrvtt_9k",
        "MSRVTT_train.9k.csv",
        lambda text: "\n \n",
        "no line; expected columns",
    ),
    (
        "msrvtt_9k",
        "MSRVTT_train.9k.csv",
        lambda text: "video_id\n",
        "no sample in the split",
    ),
    # Quotes that are not closed, or closed before the end of a field.
    (
        "msrvtt_9k",
        "MSRVTT_train.9k.csv",
        replaced("video7010\n", '"video7010'),
        "line 4: unexpected end of data; expected columns",
    ),
    (
        "cmu_mosi",
        "MOSI-label.csv",
        replaced("IT WAS", '"IT" WAS'),
        r"line 4: .* expected after .*; expected columns",
    ),
    ("youcook2", COOK, without("database"), r"no key 'database'; expected"),
    (
        "youcook2",
        COOK,
        at("database", to=[]),
        r"'database' must be an object, not \[\]",
    ),
    (
        "youcook2",
        COOK,
        at(*FIRST, "subset", to="testing"),
        r"database\['GLd3aX16zBg'\]: 'subset' is 'testing', not one of training",
    ),
    (
        "youcook2",
        COOK,
        at(*SEGMENT, "segment", to=[1, 2, 3]),
        r"annotations\[1\]: 'segment' must be two numbers, not \[1, 2, 3\]",
    ),
    ("youcook2", COOK, at(*SEGMENT, "segment", to=[5, 5]), "ends at 5 s, not after 5"),
    (
        "youcook2",
        COOK,
        at(*SEGMENT, "segment", to=[-1, 5]),
        r"start' must be a number in",
    ),
    (
        "youcook2",
        COOK,
        replaced("127.5", "1e999"),
        "the number 1e999 is larger than any float",
    ),
    ("youcook2", COOK, replaced("127.5", "NaN"), "json: NaN is not JSON"),
    ("youcook2", COOK, at(*SEGMENT, "id", to=0), "two samples have the key 'GLd3aX16z"),
    ("youcook2", COOK, replaced("GLd3aX16zBg", "../x"), "'video id' cannot name a f"),
    # Entries of other splits are read too.
    (
        "youcook2",
        COOK,
        at("database", "-dh_uGahzYo", "annotations", 0, "sentence", to=3),
        r"database\['-dh_uGahzYo'\].annotations\[0\]: 'sentence' must be a string, not",
    ),
    # Tables.
    (
        "tgif_qa_action",
        "Train_action_question.csv",
        lambda text: text.replace("\t", ","),
        "line 1: no column 'gif_name'.*, only 'gif_name,question.*separated by tabs",
    ),
    (
        "tgif_qa_action",
        "Train_action_question.csv",
        replaced("\ta5", "\ta6"),
        "no column 'a5'",
    ),
    (
        "tgif_qa_action",
        "Train_action_question.csv",
        replaced("key", "a1"),
        "'a1' occurs twice",
    ),
    (
        "tgif_qa_action",
        "Train_action_question.csv",
        replaced("\t4\tACTION4", "\t5\tACTION4"),
        r"line 2: 'answer' must be a number in \[0, 4\], not '5'; expected columns",
    ),
    (
        "tgif_qa_action",
        "Train_action_question.csv",
        replaced("\t4\tACTION4", "\tflap wings\tACTION4"),
        "line 2: 'answer' must be a number .*, not 'flap wings'",
    ),
    (
        "tgif_qa_action",
        "Train_action_question.csv",
        replaced("\tACTION12\t52", ""),
        "line 4: 8 fields, where the first line has 10",
    ),
    (
        "tgif_qa_action",
        "Train_action_question.csv",
        replaced("ACTION5", "ACTION4"),
        "two samples have the key 'ACTION4'",
    ),
    (
        "tgif_qa_action",
        "Train_action_question.csv",
        replaced("\ttalk", '\t"talk'),
        r"line \d: .*; expected columns",
    ),
    (
        "tgif_qa_action",
        "Train_action_question.csv",
        replaced("\tfall\t", "\t\t"),
        "line 2: 'a4' is blank and must have a text; expected",
    ),
    (
        "tgif_qa_frame",
        "Train_frameqa_question.csv",
        replaced("\t1\t", "\t4\t"),
        r"line 3: 'type' must be a number in \[0, 3\]",
    ),
    (
        "tgif_qa_count",
        "Train_count_question.csv",
        replaced("\t10\t", "\t11\t"),
        r"'answer' must be a number in \[0, 10\], not '11'",
    ),
    (
        "tgif_qa_count",
        "Train_count_question.csv",
        replaced("\t3\t", "\t2.5\t"),
        "line 4: 'answer' must be an integer, not '2.5'",
    ),
    (
        "tgif_qa_count",
        "Train_count_question.csv",
        lambda text: "gif_name\tquestion\tanswer\tvid_id\n" + "x" * 200_000,
        "field larger than field limit",
    ),
    (
        "cmu_mosi",
        "MOSI-label.csv",
        replaced("-2.4", "-3.4"),
        r"line 2: 'label' must be a number in \[-3, 3\], not '-3.4'; expected columns",
    ),
    (
        "cmu_mosi",
        "MOSI-label.csv",
        replaced("-2.4", "nan"),
        r"number in \[-3, 3\], not 'nan'",
    ),
    (
        "cmu_mosi",
        "MOSI-label.csv",
        replaced("valid", "dev"),
        "line 4: 'mode' is 'dev', not",
    ),
    (
        "cmu_mosi",
        "MOSI-label.csv",
        replaced("Negative,train", "Negative,test"),
        "line 3: video '03bSnISJMiM' is in test and in train, but splits are by video",
    ),
    (
        "cmu_mosi",
        "MOSI-label.csv",
        replaced(",mode", ",split"),
        "line 1: no column 'mode'",
    ),
    # Lists.
    (
        "msrvtt_qa",
        "train_qa.json",
        lambda text: "{}",
        "needs a JSON list, not {}; expected",
    ),
    ("msrvtt_qa", "train_qa.json", at(1, to=3), "entry 1: needs a JSON object, not 3"),
    (
        "msrvtt_qa",
        "train_qa.json",
        without(1, "answer"),
        "entry 1: no key 'answer', only",
    ),
    (
        "msrvtt_qa",
        "train_qa.json",
        at(1, "answer", to=3),
        "'answer' must be a string, not 3",
    ),
    (
        "msrvtt_qa",
        "train_qa.json",
        at(1, "video_id", to="x"),
        "entry 1: 'video_id' must",
    ),
    ("msrvtt_qa", "train_qa.json", at(1, "video_id", to=10**400), "must be a number"),
    ("msrvtt_qa", "train_qa.json", at(1, "id", to=0), "two samples have the key '0'"),
    (
        "msrvtt_qa",
        "train_qa.json",
        replaced('"id": 1', '"id": 1, "id": 2'),
        "duplicate key 'id'",
    ),
]


@pytest.mark.parametrize(("kind", "name", "change", "message"), WRONG)
def test_wrong_files(folder, kind, name, change, message):
    path = folder / name
    path.write_text(change(path.read_bytes().decode()), encoding="utf-8", newline="")
    with pytest.raises(ValueError, match=message) as raised:
        read_annotations(kind, folder)
    text = str(raised.value)
    assert str(folder) in text and len(text) < 900
    assert "expected" in text or "no sample in the split" in text


@pytest.mark.parametrize(
    ("kind", "name"),
    [("msrvtt", WHOLE), ("cmu_mosi", "MOSI-label.csv"), ("msrvtt_qa", "train_qa.json")],
)
@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("utf-16", "UTF-16 text; convert it"),
        ("utf-16-le", "NUL characters, as in UTF-16"),
        ("latin-1", "not UTF-8: 0xe9"),
    ],
)
def test_other_encodings(folder, kind, name, encoding, message):
    text = (folder / name).read_text() + " é"
    (folder / name).write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=rf"{name}: .*{message}.*; expected"):
        read_annotations(kind, folder)


def test_json_nested_deeper_than_python_recurses(folder, monkeypatch):
    def too_deep(data):
        raise RecursionError

    monkeypatch.setattr(annotation_files, "parse_json", too_deep)
    with pytest.raises(ValueError, match=r"data.json: nested too deeply; expected"):
        read_annotations("msrvtt", folder)


def test_commands_are_quoted(tmp_path):
    (tmp_path / "a b.mp4").touch()
    command = ffmpeg_command(tmp_path, ["a b"])
    video, frames = str(tmp_path / "a b.mp4"), str(tmp_path / "a b")
    assert shlex.split(command) == [
        *("mkdir", "-p", frames, "&&", "ffmpeg", "-i", video, "-vf", "fps=2"),
        f"{frames}/%06d.jpg",
    ]


def test_wrong_mapping(folder):
    path = folder / "youtube_mapping.txt"
    for text, message in [
        ("a_1_2 vid1 more", "line 1: 'a_1_2 vid1 more'; expected YOUTUBE_START_END"),
        ("../a vid1", "line 1: .*; expected YOUTUBE_START_END"),
        ("a_1_2 vid1\nb_1_2 vid1", "line 2: vid1 occurs twice"),
        ("a_1_2\0 vid1", "NUL characters"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"youtube_mapping.txt.*{message}"):
            read_annotations("msvd_qa", folder, split="validation")


FILES = {
    "msrvtt": (WHOLE, videos(*TRAIN)),
    "msrvtt_9k": ("MSRVTT_train.9k.csv", "video_id,x\r\nvideo1,2\r\nvideo0,3\r\n"),
    "msrvtt_7k": ("MSRVTT_JSFUSION_test.csv", TEST_1K),
    "youcook2": (COOK, json.dumps(YOUCOOK2)),
    "tgif_qa_action": ("Train_action_question.csv", ACTION),
    "tgif_qa_frame": ("Train_frameqa_question.csv", FRAME),
    "tgif_qa_count": ("Train_count_question.csv", COUNT),
    "msvd_qa": ("train_qa.json", json.dumps(MSVD)),
    "cmu_mosi": ("MOSI-label.csv", MOSI),
}
PIECES = st.sampled_from(
    [
        *(
            b'"',
            b"\t",
            b",",
            b"\n",
            b"\r",
            b"[",
            b"{",
            b"}",
            b"]",
            b":",
            b"null",
            b"NaN",
        ),
        *(b"-1", b"1e999", b"9" * 400, b"../", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf"),
        *(b"\\ud800", b"true", b"0" * 5000, b"x" * 300, b"\xe9", b""),
    ]
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), PIECES | st.binary(max_size=4)),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(kind=st.sampled_from(sorted(FILES)), edits=EDITS)
def test_damaged_files_give_samples_or_value_errors(folder, kind, edits):
    name, text = FILES[kind]
    data = text.encode()
    for place, removed, added in edits:
        start = round(place * len(data))
        data = data[:start] + added + data[start + removed :]
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(data)
    try:
        split = "test" if kind == "msrvtt_7k" else "train"
        read = read_annotations(kind, folder, split=split)
    except ValueError as error:
        assert str(folder) in str(error)
    else:
        assert all(s.video_id and s.key and s.split == split for s in read.samples)
        assert all(s.text for s in read.samples)
        with pytest.raises(ValueError, match="there is no folder"):
            read_annotations(kind, folder, split=split, media=folder / "none")
    finally:
        (folder / name).write_bytes(whole)


# Clips


def test_frames(folder, tmp_path):
    media = tmp_path / "media"
    for i in range(10):
        # Not padded: 10.png comes after 9.png.
        picture(media / "video0" / f"{i + 1}.png", (i * 20, 0, 0))
    picture(media / "video1" / "000001.png", (200, 0, 0))
    picture(media / "video1" / "000002.png", (220, 0, 0))
    (media / "video0" / "._1.png").write_bytes(b"x")
    data = read_annotations("msrvtt", folder, media=media)
    assert (data.missing, len(data)) == ((), 2)
    frames, mask = data.frames(data[0], 4, 6)
    assert (frames.dtype, frames.shape) == (np.uint8, (4, 6, 6, 3))
    assert (mask.dtype, mask.tolist()) == (np.bool_, [True] * 4)
    assert frames[:, 3, 3, 0].tolist() == [0, 40, 100, 140]
    assert (frames[:, 0] == 255).all(), "a wide picture is padded with white"
    assert dict(data.short) == {}
    with pytest.raises(ValueError, match="has no features; read it with `frames`"):
        data.features(data[0], 4)
    for wrong in ((0, 6), (4, 0)):
        with pytest.raises(ValueError, match="is not at least 1"):
            data.frames(data[0], *wrong)


def test_short_and_empty_clips_are_padded_masked_and_counted(folder, caplog):
    media = folder / "media"
    (media / "video0").mkdir(parents=True)
    picture(media / "video1" / "1.png", (200, 0, 0))
    picture(media / "video1" / "2.png", (220, 0, 0))
    with caplog.at_level(logging.WARNING):
        data = read_annotations("msrvtt", folder, media=media)
    assert "1 of 2 clips in" in caplog.text and "have no frame" in caplog.text
    assert ": video0" in caplog.text
    caplog.clear()
    frames, mask = data.frames(data[1], 3, 4)
    assert frames[:, 2, 2, 0].tolist() == [200, 220, 0]
    assert mask.tolist() == [True, True, False] and not frames[2].any()
    assert "sample 'video1' has 2 frames, fewer than 3" in caplog.text
    frames, mask = data.frames(data[0], 3, 4)
    assert not frames.any() and not mask.any()
    assert dict(data.short) == {"video1": 2, "video0": 0}
    assert data.frames(data[1], 2, 4)[1].all()
    (media / "video1" / "1.png").unlink()
    (media / "video1" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"none of 2 clips in .* has a frame"):
        read_annotations("msrvtt", folder, media=media)


def test_missing_clips_are_counted_and_named(folder, caplog):
    many = [(i, "train", 0) for i in range(9)]
    (folder / WHOLE).write_text(videos(*many))
    media = folder / "media"
    picture(media / "video3" / "1.png", "red")
    (media / "video4.mp4").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        data = read_annotations("msrvtt", folder, media=media)
    assert [s.video_id for s in data.samples] == ["video3"]
    assert data.missing == tuple(f"video{i}" for i in range(9) if i != 3)
    assert data.num_annotated == 9
    message = (
        "left out 8 of 9 samples, since 8 clips are missing: video0, video1, video2, "
        "video4, video5 and 3 more"
    )
    assert message in caplog.text and message in data.describe()
    assert "1 of them are there as video files" in caplog.text
    assert f"ffmpeg -i {media}/video4.mp4 " in caplog.text
    gone = VideoTextSample("video0", "video0", "train", ("a",))
    with pytest.raises(ValueError, match="sample 'video0' has no clip"):
        data.frames(gone, 1, 4)


def test_missing_clips_of_questions_count_once(folder):
    media = folder / "media"
    picture(media / "video6513" / "1.png", "red")
    data = read_annotations("msrvtt_qa", folder, media=media)
    assert (len(data), data.num_annotated, data.missing) == (1, 3, ("video0",))


def test_no_clip_at_all(folder):
    media = folder / "media"
    media.mkdir()
    with pytest.raises(
        ValueError, match=r"no clip of 2 videos \(video0, video1\): for NAME 'video0'"
    ):
        read_annotations("msrvtt", folder, media=media)
    (media / "video1.mp4").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"not decoded; .*ffmpeg -i .*/video1.mp4 -"):
        read_annotations("msrvtt", folder, media=media)
    with pytest.raises(ValueError, match="read without `media`"):
        data = read_annotations("msrvtt", folder)
        data.frames(data[0], 1, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("features.npz", "is one file for all clips, which needs unpickling"),
        ("features.npy", r"np.save\(f'FOLDER/\{name\}.npy', x\)"),
        ("features.pickle", "unpickling runs what is in a file"),
        ("video0.mp4", "ffmpeg -i .*video0.mp4 -vf fps=2 .*video0/%06d.jpg"),
        ("clips.txt", "is a file, not a folder of clips"),
    ],
)
def test_media_that_is_a_file(folder, name, message):
    (folder / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=message):
        read_annotations("msrvtt", folder, media=folder / name)


def test_features(folder):
    media = folder / "media"
    media.mkdir()
    rows = np.arange(30, dtype=np.float16).reshape(10, 3)
    np.save(media / "video0.npy", rows)
    np.save(media / "video1.npy", rows[:0])
    data = read_annotations("msrvtt", folder, media=media)
    features, mask = data.features(data[0], 4)
    assert (features.dtype, features.shape) == (np.float32, (4, 3))
    np.testing.assert_array_equal(features, rows[[0, 2, 5, 7]])
    assert mask.all()
    features, mask = data.features(data[0], 12)
    np.testing.assert_array_equal(features[:10], rows)
    assert mask.tolist() == [True] * 10 + [False] * 2 and not features[10:].any()
    features, mask = data.features(data[1], 2)
    assert features.shape == (2, 3) and not features.any() and not mask.any()
    assert dict(data.short) == {"video0": 10, "video1": 0}
    with pytest.raises(ValueError, match="has features; read them with `features`"):
        data.frames(data[0], 4, 4)
    for wrong in (np.nan, 1e300):
        np.save(media / "video0.npy", np.full((4, 3), wrong))
        with pytest.raises(ValueError, match="not finite in float32"):
            data.features(data[0], 2)


def test_wrong_features(folder):
    media = folder / "media"
    media.mkdir()
    np.save(media / "video0.npy", np.ones((2, 3), np.float32))
    wrong = media / "video1.npy"
    good = (media / "video0.npy").read_bytes()

    def archive():
        with wrong.open("wb") as file:
            np.savez(file, a=np.ones(3))

    for write, message in [
        (
            lambda: np.save(wrong, np.ones((2, 4), np.float32)),
            "4 features per frame, bu",
        ),
        (lambda: np.save(wrong, np.ones((2, 3), np.int64)), r"int64 \[2, 3\]; expect"),
        (lambda: np.save(wrong, np.ones(3)), r"float64 \[3\]; expected floats"),
        (lambda: np.save(wrong, np.ones((3, 0))), r"float64 \[3, 0\]; expected floats"),
        (lambda: np.save(wrong, {"a": 1}), "it holds Python objects, and unpickling"),
        (lambda: wrong.write_bytes(good[:-5]), "expected a .npy file of floats"),
        (lambda: wrong.write_bytes(b""), "expected a .npy file of floats"),
        (lambda: wrong.write_bytes(b"\x80\x04]."), "it holds Python objects"),
        (archive, "an archive; expected a .npy file"),
    ]:
        write()
        with pytest.raises(ValueError, match=rf"video1.npy.*{message}"):
            read_annotations("msrvtt", folder, media=media)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(place=st.floats(0, 1), removed=st.integers(0, 9), added=st.binary(max_size=5))
def test_damaged_features_give_arrays_or_value_errors(tmp_path, place, removed, added):
    np.save(tmp_path / "a.npy", np.ones((4, 3), np.float32))
    data = (tmp_path / "a.npy").read_bytes()
    start = round(place * len(data))
    (tmp_path / "a.npy").write_bytes(data[:start] + added + data[start + removed :])
    sample = VideoTextSample("a", "a", "train", ("a",))
    try:
        features, mask = find_clips(tmp_path, [sample]).features(sample, 2)
    except ValueError as error:
        assert str(tmp_path) in str(error)
    else:
        assert features.shape[0] == 2 and mask.shape == (2,)


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_animations(folder, ending):
    media = folder / "media"
    media.mkdir()
    animation(media / f"tumblr_a_250{ending}", 8)
    animation(media / f"tumblr_b_400{ending}", 3)
    data = read_annotations("tgif_qa_action", folder, media=media)
    assert len(data) == 3
    frames, mask = data.frames(data[0], 4, 8)
    assert frames.shape == (4, 8, 8, 3) and mask.all()
    np.testing.assert_allclose(frames[:, 4, 4, 0], [0, 40, 80, 120], atol=4)
    frames, mask = data.frames(data[2], 4, 8)
    np.testing.assert_allclose(frames[:3, 4, 4, 0], [0, 20, 40], atol=4)
    assert mask.tolist() == [True, True, True, False] and not frames[3].any()
    assert dict(data.short) == {"ACTION12": 3}


def test_files_that_cannot_be_decoded(folder):
    media = folder / "media"
    picture(media / "video0" / "1.png", "red")
    (media / "video0" / "2.png").write_bytes(b"no picture")
    animation(media / "tumblr_a_250.gif", 3)
    whole = (media / "tumblr_a_250.gif").read_bytes()
    data = read_annotations("msrvtt", folder, media=media)
    _, mask = data.frames(data[0], 2, 4)
    assert mask.tolist() == [True, False]
    (problem,) = data.damaged.values()
    assert "video0 cannot be decoded: 2.png: not an image" in problem
    for damaged in (b"GIF89a", b"no picture", whole[:40], b""):
        (media / "tumblr_a_250.gif").write_bytes(damaged)
        data = read_annotations("tgif_qa_count", folder, media=media)
        _, mask = data.frames(data[0], 2, 4)
        (problem,) = data.damaged.values()
        assert not mask.any() and "tumblr_a_250.gif cannot be decoded" in problem


def test_many_damaged_clips_are_an_error(folder, monkeypatch):
    monkeypatch.setattr(clips, "MAX_DAMAGED", 1)
    for name in ("video0", "video1"):
        picture(folder / "media" / name / "1.png", "red")
        (folder / "media" / name / "2.png").write_bytes(b"no picture")
    data = read_annotations("msrvtt", folder, media=folder / "media")
    for _ in range(3):  # Samples of one clip.
        data.frames(data[0], 2, 4)
    with pytest.raises(ValueError, match=r"video1 cannot be.* more than 1 clips have"):
        data.frames(data[1], 2, 4)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(places=st.lists(st.integers(0, 70), min_size=1, max_size=3), byte=st.binary())
def test_damaged_animations_give_frames_or_value_errors(tmp_path, places, byte):
    animation(tmp_path / "a.gif", 5)
    data = (tmp_path / "a.gif").read_bytes()
    for place in places:
        data = data[:place] + byte + data[place + 1 :]
    (tmp_path / "a.gif").write_bytes(data)
    sample = VideoTextSample("a", "a", "train", ("a",))
    found = find_clips(tmp_path, [sample])
    frames, mask = found.frames(sample, 3, 8)
    assert (frames.shape, mask.shape) == ((3, 8, 8, 3), (3,))
    assert mask.any() or found.damaged.keys() == {str(tmp_path / "a.gif")}


@pytest.mark.parametrize(
    "error", [IndexError("index out of range"), Image.DecompressionBombError("large")]
)
def test_errors_of_damaged_animations(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    animation(tmp_path / "a.gif", 5)
    sample = VideoTextSample("a", "a", "train", ("a",))
    monkeypatch.setattr(Image, "open", fail)
    found = find_clips(tmp_path, [sample])
    _, mask = found.frames(sample, 3, 8)
    assert not mask.any()
    assert re.search(
        rf"a.gif cannot be decoded: .*{error}", next(iter(found.damaged.values()))
    )


def test_clips_of_several_forms(folder):
    media = folder / "media"
    picture(media / "video0" / "1.png", "red")
    np.save(media / "video1.npy", np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"of several forms: frames \(.*\) and featu"):
        read_annotations("msrvtt", folder, media=media)


def test_names_of_clips(folder):
    media = folder / "media"
    picture(media / "03bSnISJMiM" / "11" / "1.png", (10, 0, 0))
    picture(media / "03bSnISJMiM_1" / "1.png", (20, 0, 0))
    data = read_annotations("cmu_mosi", folder, media=media)
    assert [data.frames(s, 1, 4)[0][0, 2, 2, 0] for s in data.samples] == [10, 20]
    data = read_annotations("cmu_mosi", folder, split="train+test", media=media)
    assert data.missing == ("zhpQhgha_KU_30",)
    # The first name is taken before the second.
    picture(media / "03bSnISJMiM" / "1" / "1.png", (30, 0, 0))
    data = read_annotations("cmu_mosi", folder, media=media)
    assert data.frames(data[1], 1, 4)[0][0, 2, 2, 0] == 20


def test_segments_are_cut_out_of_whole_videos(folder):
    media = folder / "media"
    media.mkdir()
    np.save(media / "GLd3aX16zBg.npy", np.arange(240.0)[:, None])
    with pytest.raises(ValueError, match="give `frames_per_second`"):
        read_annotations("youcook2", folder, media=media)
    data = read_annotations("youcook2", folder, media=media, frames_per_second=2.0)
    # [90, 102) and [114, 127.5) s; the video ends at 120 s.
    assert data.features(data[0], 4)[0][:, 0].tolist() == [180, 186, 192, 198]
    assert data.features(data[1], 3)[0][:, 0].tolist() == [228, 232, 236]
    features, mask = data.features(data[1], 14)
    assert mask.sum() == 12 and features[:12, 0].tolist() == list(range(228, 240))
    data = read_annotations("youcook2", folder, media=media, frames_per_second=1.0)
    assert data.features(data[1], 14)[1].sum() == 14
    data = read_annotations("youcook2", folder, media=media, frames_per_second=3.0)
    assert not data.features(data[0], 3)[1].any(), "the segment begins after the end"
    # A clip of the segment alone is used as it is.
    np.save(media / "GLd3aX16zBg_0.npy", np.arange(6.0)[:, None])
    np.save(media / "GLd3aX16zBg_1.npy", np.arange(4.0)[:, None])
    data = read_annotations("youcook2", folder, media=media)
    assert data.features(data[0], 3)[0][:, 0].tolist() == [0, 2, 4]
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="is not above 0"):
            read_annotations("youcook2", folder, media=media, frames_per_second=wrong)


def test_segments_are_not_cut_out_of_animations(folder):
    (folder / "media").mkdir()
    animation(folder / "media" / "GLd3aX16zBg.gif", 4)
    with pytest.raises(ValueError, match=r"whole video, .* write its frames or featu"):
        read_annotations("youcook2", folder, media=folder / "media")


@settings(derandomize=True, deadline=None)
@given(
    start=st.floats(0, 1e300),
    length=st.floats(1e-9, 1e300),
    rate=st.floats(1e-3, 1e3),
    total=st.integers(0, 1000),
    count=st.integers(1, 40),
)
def test_sampling_is_even_and_inside(start, length, rate, total, count):
    first, last = segment_frames(start, start + length, rate, total)
    assert 0 <= first <= last <= total
    if start * rate < total:
        assert first < last, "a segment that begins in the clip has a frame"
    indices = even_indices(last - first, count)
    assert len(indices) == min(count, last - first)
    assert indices == sorted(set(indices))
    if len(indices) > 1:
        steps = np.diff(indices)
        assert steps.max() - steps.min() <= 1


def test_every_kind_is_described():
    assert set(FILES) < set(KINDS)
    assert all(
        set(kind.splits) <= {"train", "validation", "test"} for kind in KINDS.values()
    )
