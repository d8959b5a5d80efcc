"""Roles of columns, rows of any form, and held-out samples."""

import collections
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from meta_opt.data.samples import KINDS
from meta_opt.predictor.columns import Columns, find_columns
from meta_opt.predictor.fit import prepare
from meta_opt.predictor.fitting import FitCall
from meta_opt.predictor.plan import METRICS
from meta_opt.predictor.presets import find_preset
from meta_opt.predictor.rows import class_name, class_value, to_samples
from meta_opt.predictor.snapshots import Snapshots, greedy_soup
from meta_opt.predictor.splits import check_enough, hold_out, without_unknown
from meta_opt.predictor.table import read_table


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(4)]


def rows(count=24, **columns):
    return [{name: make(i) for name, make in columns.items()} for i in range(count)]


def columns_of(data, target=None):
    return find_columns(read_table(data), target)[0]


WORDS = ("warm", "cold", "wet")


@pytest.mark.parametrize(
    "make, kind, labels",
    [
        (lambda i: WORDS[i % 3], "classify", "text"),
        (lambda i: i % 3, "classify", "integer"),
        (lambda i: i % 2 == 0, "classify", "truth"),
        (lambda i: i / 7, "score", "text"),
        (lambda i: 100 * i, "score", "text"),
    ],
)
def test_what_is_asked_follows_from_the_values(make, kind, labels):
    found = columns_of(rows(text=lambda i: f"day {i} was fine", y=make))
    assert (found.kind, found.labels, found.target) == (kind, labels, "y")


def test_classes_come_back_as_they_were():
    for value, labels in ((3, "integer"), (True, "truth"), ("a b", "text")):
        assert class_value(class_name(value), labels) == value


def test_files_pairs_and_captions(pictures):
    pairs = rows(8, picture=lambda i: pictures[i % 4], words=lambda i: f"picture {i}")
    found = columns_of(pairs)
    with pytest.raises(ValueError, match=r"'hand', 'foot' might be it"):
        columns_of(
            [{**x, "hand": "lr"[i % 2], "foot": i % 2} for i, x in enumerate(pairs)]
        )
    assert (found.kind, found.media, found.text) == (
        "retrieve",
        {"image": "picture"},
        ("words",),
    )
    assert columns_of(pairs, "words").kind == "caption"
    two = [{**row, "other": row["picture"]} for row in pairs[:-1]] + pairs[-1:]
    columns, decisions = find_columns(read_table(two))
    assert columns.media == {"image": "picture"}
    assert any(d.name == "image_column" and "'other'" in d.reason for d in decisions)


def test_a_target_without_a_known_name_is_the_only_one_of_few_values():
    data = rows(mood=lambda i: WORDS[i % 3], text=lambda i: f"it is day {i}")
    assert columns_of(data).target == "mood"
    more = [{**row, "hand": "lr"[i % 2]} for i, row in enumerate(data)]
    with pytest.raises(ValueError, match=r"'mood', 'hand' might be it"):
        columns_of(more)
    found = columns_of(more, "mood")
    assert found.text == ("text", "hand")
    sample = to_samples(read_table(more), found).samples[1]
    assert sample.fields.reads == "it is day 1\nhand: r"


MISTAKES = {
    "no target": (rows(text=lambda i: f"day {i}"), None, "no target"),
    "no such column": (rows(text=str, y=str), "z", "no column 'z'"),
    "no values": (
        rows(text=str, label=lambda i: None),
        "label",
        r"no column 'label' with values \(columns: text\)",
    ),
    "two kinds": (
        rows(text=str, label=lambda i: 7 if i == 4 else WORDS[i % 3]),
        None,
        r"two kinds: 23 of type text, .* 1 of type integer, such as 7 \(data, row 5\)",
    ),
    "one class": (rows(text=str, label=lambda i: "a"), None, "the same class .*'a'"),
    "no files": (
        rows(image=lambda i: f"nowhere/{i}.png", label=lambda i: i % 2),
        None,
        "none of the 24 files of the column 'image' exists, such as nowhere/0.png",
    ),
    "addresses": (
        rows(
            image=lambda i: f"https://x.org/{i}.png?w=2" if i else "a.png",
            label=lambda i: i % 2,
        ),
        None,
        "'image' has URLs, such as https://x.org/1.png.*; nothing is downloaded",
    ),
    "texts without media": (
        rows(text=str, y=lambda i: f"a long answer that is number {i}"),
        None,
        "too many for classes",
    ),
    "nothing to read": (rows(label=lambda i: i % 2), None, "nothing to read"),
    "numbers in two forms": (
        rows(text=str, price=lambda i: "1,5" if i == 3 else str(i / 4)),
        "price",
        r"23 of 24 values of the target 'price' .* '1,5' \(data, row 4\) is not",
    ),
    "numbers with a comma": (
        rows(text=str, price=lambda i: f"{i},5"),
        "price",
        r"0 of 24 values of the target 'price' .* '0,5' \(data, row 1\) is not; write",
    ),
    "numbers as texts": (
        rows(text=str, price=lambda i: str(i / 4)),
        "price",
        r"'price' are numbers written as texts, such as '0\.0'; .* without quotes",
    ),
    "several classes": (
        rows(text=str, tags=lambda i: [WORDS[i % 3], WORDS[(i + 1) % 3]][: i % 3]),
        "tags",
        r"'tags' has lists of classes, such as \['.*', '.*'\]; a sample has one class",
    ),
    "lists of one class": (
        rows(text=str, label=lambda i: [WORDS[i % 3]]),
        None,
        r"'label' has lists of one class, such as \['.*'\]; write the class without",
    ),
    "lists of texts without media": (
        rows(text=str, target=lambda i: [f"this is {i}", f"that is {i}"]),
        None,
        "'target' has lists of texts, and text generation needs images",
    ),
    "several classes by name": (
        rows(text=str, label=lambda i: [f"one {i}", f"two {i}"]),
        None,
        "'label' has lists of classes",
    ),
    "part of a split": (
        rows(text=str, label=lambda i: i % 2, split=lambda i: ("train", "left")[i % 2]),
        None,
        "'split' has 'left' besides names of splits",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    data, target, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message) as error:
        columns_of(data, target)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("answer", lambda i: ["yes"] * 6 + ["no"] * (i % 5)),
        ("caption", lambda i: ["a red car", "a car"]),
        ("target", lambda i: [("a dog", "a cat")[i % 2], "an animal"]),
        (
            "label",
            lambda i: [f"{i} men of the old town walk by", "a lot of men stand there"],
        ),
        ("tags", lambda i: ["yes", "yes", ("no", "yes")[i % 2]]),
    ],
)
def test_lists_of_correct_texts(pictures, name, texts):
    data = rows(40, photo=lambda i: pictures[i % 4], **{name: texts})
    assert columns_of(data, name).kind == "caption"


def test_pictures_beside_a_number_and_no_target(pictures):
    data = rows(8, photo=lambda i: pictures[i % 4], price=lambda i: i / 3)
    with pytest.raises(ValueError, match=r"no target \('price' might be it\)"):
        columns_of(data)
    assert columns_of(data, "price").kind == "score"


@pytest.mark.parametrize(
    "value, message",
    [
        (float("inf"), "'price', inf, is not finite in 32 bits"),
        (-1e39, r"'price', -1e\+39, is not finite in 32 bits"),
        (10**400, "'price', 10{59}, is not finite in 32 bits"),
        ("high", "'price' must be a number, not 'high'; correct it or leave it empty"),
        (["1"], r"'price' must be a number, not \['1'\]"),
        (True, "'price' must be a number, not True"),
    ],
    ids=("infinite", "beyond 32 bits", "huge", "word", "list", "boolean"),
)
def test_scores_that_are_no_finite_numbers_are_named(value, message):
    data = rows(text=lambda i: f"day {i}", price=lambda i: i / 7)
    columns = columns_of(data, "price")
    other = read_table([*data[:2], {**data[2], "price": value}], "test")
    with pytest.raises(ValueError, match=rf"^test, row 3: the target {message}"):
        to_samples(other, columns)
    assert len(to_samples(other, columns, target=False).samples) == 3
    texts = read_table([{"text": "a", "price": " 1.5"}, {"text": "b", "price": 2}])
    found = to_samples(texts, columns).samples
    assert [x.fields.score for x in found] == [1.5, 2.0]
    if not isinstance(value, str | list | bool):
        assert columns_of([*data, {**data[2], "price": value}], "price").kind == "score"


@pytest.mark.parametrize(
    "names",
    [("train", "validation", "test"), ("Train", "val", "TEST"), ("training", "dev", 0)],
)
def test_a_column_of_splits_by_any_name(names):
    names = [name or "testing" for name in names]
    data = rows(
        text=lambda i: f"day {i}",
        label=lambda i: i % 2,
        Split=lambda i: names[i % 3],
    )
    columns = columns_of(data)
    assert columns.split == "Split" and columns.text == ("text",)
    found = [x.fields.split for x in to_samples(read_table(data), columns).samples]
    assert found[:3] == ["train", "validation", "test"]
    other = [{**row, "Split": "lr"[i % 2]} for i, row in enumerate(data)]
    assert columns_of(other).text == ("text", "Split")


class Picture:
    """As a PIL picture or an array of any library."""

    __array_interface__ = {"shape": (8, 8)}  # noqa: RUF012


@pytest.mark.parametrize(
    "value",
    [
        *(Picture(), np.zeros((8, 8)), b"PNG", Image.new("RGB", (2, 2))),
        *({"bytes": b"PNG"}, [b"PNG", b"PNG"], (np.zeros(3),)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_contents_are_no_text(value):
    data = [*rows(2, photo=str), {"photo": value}]
    name = type(value).__name__
    with pytest.raises(ValueError, match=f"row 3: .* 'photo' .* of type {name}; write"):
        read_table(data)


def test_a_row_is_read_the_same_from_any_table():
    """A column of integers with a missing value has floats in a DataFrame."""
    columns = Columns("score", {}, ("text", "size", "ratio", "tags"), "y")
    table = read_table(
        [
            {"text": "a", "size": 3, "ratio": 0.5, "tags": ["red", 2.0], "y": 1},
            {"text": ["a", "b"], "size": 3.0, "ratio": 0.5, "tags": "red, 2", "y": 1},
        ]
    )
    first, second = (x.fields.reads for x in to_samples(table, columns).samples)
    assert first == second == "a\nsize: 3\nratio: 0.5\ntags: red, 2"


def test_lists_and_what_is_missing_in_them():
    data = [
        {"y": ("a", "b")},
        {"y": ["a", None, " ", float("nan"), np.str_("b")]},
        {"y": [None, ""]},
        {"y": ()},
        {"y": [2, np.float32(1)]},
    ]
    found = [row.values.get("y") for row in read_table(data).rows]
    assert found == [["a", "b"], ["a", "b"], None, None, [2, 1]]


def test_a_frame_of_polars():
    class Frame:  # What is used of Polars'.
        columns = ("text", "label")

        def to_dict(self, *, as_series=True):
            raise AssertionError

        def to_dicts(self):
            return [{"text": "a", "label": None}]

    assert dict(read_table(Frame()).rows[0].values) == {"text": "a"}


def csv_values(path, text, name):
    path.write_text(text)
    return [row.values.get(name) for row in read_table(path).rows]


def test_numbers_of_a_csv(tmp_path):
    path = tmp_path / "a.csv"
    missing = "text,price\na,1.5\nb,NA\nc,nan\nd,\ne,2\n"
    assert csv_values(path, missing, "price") == [1.5, None, None, None, 2]
    codes = "text,code\na,01067\nb,10115\nc,NA\n"
    assert csv_values(path, codes, "code") == ["01067", "10115", "NA"]
    assert csv_values(path, "text,n\na,0\nb,-0.5\n", "n") == [0, -0.5]
    # Without a number it is a column of texts.
    assert csv_values(path, "text,who\na,NA\nb,None\n", "who") == ["NA", "None"]
    assert csv_values(path, "text;n\na, b;1\nc;2\n", "n") == [1, 2]
    assert csv_values(path, "text\tn\na, b\t1\n", "n") == [1]


def test_booleans_of_a_csv(tmp_path):
    path = tmp_path / "a.csv"
    values = csv_values(path, "text,y\na,True\nb,FALSE\nc,NA\nd,\n", "y")
    assert values == [True, False, None, None]
    assert csv_values(path, "text,y\na,true\nb,yes\n", "y") == ["true", "yes"]
    data = rows(text=lambda i: f"day {i}", y=lambda i: i % 2 == 0)
    path.write_text("text,y\n" + "".join(f"{x['text']},{x['y']}\n" for x in data))
    table = read_table(path)
    assert [dict(row.values) for row in table.rows] == data
    assert find_columns(table)[0].labels == "truth"


def test_lines_and_quotes_of_a_csv(tmp_path):
    path = tmp_path / "a.csv"
    long = "x" * 200_000
    assert csv_values(path, f"text,n\n{long},1\n", "text") == [long]
    for end in ("\n", "\r\n", "\r"):
        path.write_bytes('\nn,text\n1,"a\nb"\n\n2\n'.replace("\n", end).encode())
        table = read_table(path)
        assert [row.values.get("text") for row in table.rows] == ["a\nb", None]
        assert [row.where for row in table.rows] == [
            f"{path}, line {line}" for line in (4, 6)
        ]
    assert csv_values(path, 'text,n\n5" nails,1\n"a""b",2', "text") == [
        '5" nails',
        'a"b',
    ]
    spaced = 'text, label\n"a, b", 1\nc, "d, e"\n'
    assert csv_values(path, spaced, "label") == ["1", "d, e"]
    for text, line in (('text,n\na,1\n"b\nc",2\n"d,3\ne,4\n', 5), ('text,"n\na,1', 1)):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"a\.csv, line {line}: a quotation mark"):
            read_table(path)


def test_columns_of_one_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label,label\na,1,2\n")
    with pytest.raises(ValueError, match=r"a\.csv has several columns called 'label'"):
        read_table(path)
    path.write_text("text,label,,\na,1,,\n")
    assert dict(read_table(path).rows[0].values) == {"text": "a", "label": 1}
    path.write_text(",text,split\n17,a,train\n3,b,test\n")
    assert read_table(path).columns() == ("text", "split")
    path.write_text('text, "label" , label\na,1,2\n')
    with pytest.raises(ValueError, match="several columns called 'label'"):
        read_table(path)

    class Frame:
        columns = ("text", "label", "label")

        def to_dict(self, orient):
            raise AssertionError

    with pytest.raises(ValueError, match="several columns called 'label'"):
        read_table(Frame())


def test_whole_numbers_of_both_types_are_one_class():
    data = rows(text=lambda i: f"day {i}", label=lambda i: (1, 1.0, 2)[i % 3])
    _, decisions = find_columns(read_table(data))
    assert any("2 of them distinct" in d.reason for d in decisions)


def test_forms_of_data_give_the_same_rows(tmp_path):
    data = rows(
        6, text=lambda i: f"day {i}", label=lambda i: i % 2, score=lambda i: i / 4
    )
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(x) + "\n" for x in data))
    header = ",".join(data[0])
    lines = [",".join(str(v) for v in x.values()) for x in data]
    (tmp_path / "a.csv").write_text("\n".join([header, *lines]))

    class Frame:  # What is used of pandas'.
        columns = tuple(data[0])

        def to_dict(self, orient):
            assert orient == "records"
            wrapped = [{**x, "score": np.float64(x["score"])} for x in data]
            return [{**x, "empty": float("nan")} for x in wrapped]

    for form in (tmp_path / "a.jsonl", str(tmp_path / "a.csv"), Frame(), data):
        assert [dict(row.values) for row in read_table(form).rows] == data
    with pytest.raises(ValueError, match=r"a\.csv, line 3: more cells"):
        (tmp_path / "a.csv").write_text("a,b\n1,2\n1,2,3\n")
        read_table(tmp_path / "a.csv")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_table("nowhere.jsonl")
    for name in ("shared/nowhere", "nowhere", "shared/nowhere.tar", "nowhere.tsv.gz"):
        with pytest.raises(FileNotFoundError, match=f"no file or folder {name}"):
            read_table(name)
    with pytest.raises(ValueError, match="of type int"):
        read_table(3)


def write_tar(path, members):
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            file.addfile(about, io.BytesIO(data))


@pytest.mark.parametrize(
    "labels, kind",
    [((3, 5), "integer"), ((True, False), "truth"), (("cat", "dog"), "text")],
)
def test_labels_in_tar_files_keep_their_type(tmp_path, labels, kind):
    values = [{"text": f"day {i}", "label": labels[i % 2]} for i in range(8)]
    members = {f"{i}.json": json.dumps(x).encode() for i, x in enumerate(values)}
    write_tar(tmp_path / "a.tar", members)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, values)))
    for name in ("a.tar", "a.jsonl"):
        table = read_table(tmp_path / name)
        assert [row.values["label"] for row in table.rows] == [
            x["label"] for x in values
        ]
        columns = find_columns(table)[0]
        assert (columns.kind, columns.labels) == ("classify", kind)
        names = [class_name(x) for x in labels]
        assert [class_value(x, columns.labels) for x in names] == list(labels)


def test_tar_files_beside_folders_of_classes(tmp_path, caplog):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "1.png")
    (tmp_path / "backup.tar").write_bytes(b"")
    table = read_table(tmp_path)
    assert [row.values["label"] for row in table.rows] == ["cat", "dog"]
    assert "beside them are not: backup.tar" in caplog.text
    # Folders without images do not make classes of tar files.
    shards = tmp_path / "shards"
    (shards / "logs").mkdir(parents=True)
    write_tar(shards / "0.tar", {"a.txt": b"fine", "a.json": b'{"label": "good"}'})
    # Copies from macOS come with hidden ones.
    (shards / "._0.tar").write_bytes(b"")
    (row,) = read_table(shards).rows
    assert row.values == {"text": "fine", "label": "good"}
    Image.new("RGB", (4, 4)).save(shards / "a.png")
    with pytest.raises(ValueError, match=r"tar files \(0\.tar\) and media.*a\.png"):
        read_table(shards)
    assert len(read_table(f"{shards}/*.tar").rows) == 1


def test_folders_of_classes_and_of_splits(tmp_path, caplog):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / "1.png")
            (folder / ".hidden.png").write_bytes(b"")
            (folder / ".ipynb_checkpoints").mkdir()
            (folder / ".ipynb_checkpoints" / "1.png").write_bytes(b"")
        (tmp_path / "set" / split / ".trash").mkdir()
        (tmp_path / "set" / split / ".trash" / "1.png").write_bytes(b"")
    found = [dict(row.values) for row in read_table(tmp_path / "set").rows]
    assert sorted((x["split"], x["label"]) for x in found) == [
        *(("train", "cat"), ("train", "dog")),
        *(("validation", "cat"), ("validation", "dog")),
    ]
    plain = read_table(tmp_path / "set" / "train").rows
    assert {x.values["label"] for x in plain} == {"cat", "dog"}
    assert all("split" not in row.values for row in plain)
    assert not caplog.messages
    for split in ("train", "val"):
        flat = tmp_path / "flat" / split
        (flat / ".ipynb_checkpoints").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(flat / "1.png")
    flat = read_table(tmp_path / "flat").rows
    assert [row.values["label"] for row in flat] == ["train", "val"]
    bird = tmp_path / "set" / "train" / "bird"
    bird.mkdir()
    (bird / "1.heic").write_bytes(b"")
    assert len(read_table(tmp_path / "set" / "train").rows) == 2
    assert caplog.messages == [
        f"{bird} has no images, audio or video; it is not used as a class"
    ]


def test_a_folder_holds_out_the_same_files_from_anywhere(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    for i in range(20):
        file = folder / ("cat", "dog")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(file)

    def samples(path):
        table = read_table(path)
        found = to_samples(table, find_columns(table)[0]).samples
        assert all(x.media["image"].exists() for x in found)
        return found

    monkeypatch.chdir(tmp_path)
    keys = [x.key for x in samples("set")]
    assert keys[0] == "cat/0.png"
    assert [x.key for x in samples(folder)] == keys
    monkeypatch.chdir(folder / "cat")
    assert [x.key for x in samples("..")] == keys
    folder.rename(tmp_path / "moved")
    assert [x.key for x in samples(tmp_path / "moved")] == keys


def samples_of(labels, **more):
    data = [{"text": f"sample {i}", "label": x, **more} for i, x in enumerate(labels)]
    table = read_table(data)
    return to_samples(table, find_columns(table)[0]).samples


def test_each_class_gives_its_share_and_always_the_same():
    samples = samples_of(["a"] * 40 + ["b"] * 20 + ["c"] * 3)
    parts, _ = hold_out(samples, "classify", {})
    count = {
        s: collections.Counter(x.fields.label for x in p) for s, p in parts.items()
    }
    assert count["validation"] == count["test"] == {"a": 6, "b": 3}
    assert count["train"] == {"a": 28, "b": 14, "c": 3}
    again, _ = hold_out(samples[::-1], "classify", {})
    for split, part in parts.items():
        assert {x.key for x in part} == {x.key for x in again[split]}
    # Copies of a sample are in its split.
    twice, _ = hold_out([*samples, *samples], "classify", {})
    keys = {split: {x.key for x in part} for split, part in twice.items()}
    assert not keys["train"] & (keys["validation"] | keys["test"])


def test_given_splits_are_kept():
    ab = ["a", "b"]
    train, others = samples_of(ab * 10), samples_of(ab * 4)
    parts, _ = hold_out(train, "classify", {"validation": others, "test": others})
    assert {s: len(p) for s, p in parts.items()} == {
        "train": 20,
        "validation": 8,
        "test": 8,
    }


def test_splits_that_leave_one_class_to_train_on_are_an_error():
    data = rows(
        text=lambda i: f"day {i}",
        label=lambda i: "ab"[i % 2],
        split=lambda i: ("train", "test")[i % 2],
    )
    table = read_table(data)
    samples = to_samples(table, find_columns(table)[0]).samples
    with pytest.raises(ValueError, match="samples to train on are of the class 'a'"):
        hold_out(samples, "classify", {})


def test_copies_are_not_held_out_from_each_other():
    data = rows(24, text=lambda i: f"day {i % 2}", label=lambda i: i % 2)
    table = read_table(data)
    samples = to_samples(table, find_columns(table)[0]).samples
    with pytest.raises(ValueError, match="24 samples with 2 different files or texts"):
        hold_out(samples, "classify", {})


def test_what_training_does_not_have_is_left_out_and_said():
    train, others = samples_of(["a", "b"] * 10), samples_of(["a", "b", "z"] * 2)
    parts, decisions = without_unknown(
        {"train": train, "validation": others, "test": others[:2]},
        "classify",
        ("text",),
    )
    assert len(parts["validation"]) == 4 and len(parts["test"]) == 2
    (one,) = decisions
    assert (one.name, one.value) == ("validation_left_out", 2) and "'z'" in one.reason


def test_a_modality_of_held_out_samples_alone_is_not_read(pictures):
    data = rows(
        40,
        text=lambda i: f"day {i}",
        label=lambda i: i % 2,
        split=lambda i: ("train", "validation")[i % 4 == 3],
        photo=lambda i: pictures[i % 4] if i % 4 == 3 else None,
    )
    # Without its photo, this sample has nothing that the model reads.
    data[3]["text"] = None
    given = {"data": data, "validation": None, "test": None}
    call = FitCall(find_preset("fast"))
    fitting, decisions = prepare(given, {"target": None, "seed": 0}, call)
    assert fitting.columns.modalities == ("text",)
    assert len(fitting.parts["train"]) == 30
    assert len(fitting.parts["validation"]) == 9
    (found,) = [d for d in decisions if d.name == "validation_not_read"]
    assert found.value == ["image"] and "image of 10 samples: ignored" in found.reason


@pytest.mark.parametrize(
    "labels, message",
    [
        (["a", "b", "a"], "has 3 samples that can be used; give at least 10"),
        (list("abcdefghijkl"), "each of the 12 classes has one sample"),
    ],
)
def test_too_few_samples_are_an_error(labels, message):
    with pytest.raises(ValueError, match=message):
        check_enough(samples_of(labels), "classify", "it")


def test_every_kind_has_a_metric():
    assert METRICS.keys() == set(KINDS)


# The best snapshots and their average


def quadratic(params):
    return {"loss": float(np.sum((params["w"] - 1.0) ** 2)), "accuracy": 0.5}


def test_the_average_of_snapshots_on_both_sides_is_better():
    snapshots = Snapshots(3, "loss", "min")
    for step, w in enumerate((5.0, 0.0, 2.1, 1.9)):
        params = {"w": np.float32([w])}
        snapshots.show(step, params, quadratic(params))
        params["w"][:] = 9.0  # They are copies.
    assert snapshots.best.step == 3
    np.testing.assert_allclose(snapshots.best.params["w"], 1.9, rtol=1e-6)
    assert [one.step for one in snapshots.ranked()] == [3, 1, 2]
    soup = greedy_soup(snapshots, quadratic)
    # Of 1.9 and 0 the average is 0.95; 2.1 would bring it to 1.33.
    assert soup.steps == (3, 1)
    assert soup.params["w"].dtype == np.float32
    np.testing.assert_allclose(soup.params["w"], 0.95, atol=1e-2)
    assert greedy_soup(snapshots, quadratic, lambda: False) is None


def test_an_average_that_is_no_better_is_not_taken():
    snapshots = Snapshots(2, "loss", "min")
    for step, w in enumerate((1.0, 3.0)):
        snapshots.show(step, {"w": np.float32([w])}, quadratic({"w": np.float32([w])}))
    assert greedy_soup(snapshots, quadratic) is None


def test_equal_metrics_are_ordered_by_loss_and_nan_is_worst():
    snapshots = Snapshots(1, "accuracy", "max")
    for step, (accuracy, loss) in enumerate(
        [(0.5, 2.0), (0.5, 1.0), (0.5, 3.0), (float("nan"), 0.0)]
    ):
        snapshots.show(step, {"w": step}, {"accuracy": accuracy, "loss": loss})
    assert snapshots.best.step == 1
