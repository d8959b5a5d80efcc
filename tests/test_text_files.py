"""Texts of users: encodings, and JSON as strict as it should be, with file and line."""

import json

import pytest
from own_data import write_folder

from meta_opt.data.preprocessing.folder_tokenizer import FolderTokenizer
from meta_opt.data.preprocessing.image_fit import read_image_fit
from meta_opt.data.preprocessing.tokenizer import BUNDLED, load_tokenizer
from meta_opt.text_files import decode_text, read_json, read_jsonl, read_text

BOM = b"\xef\xbb\xbf"
LINES = '{"text": "thé"}\n\n{"text": "café"}\n'


def values(path):
    return list(read_jsonl(path, lambda value, line: (line, value["text"])))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("beginning", [b"", BOM])
def test_utf_8_is_read_with_and_without_a_mark(tmp_path, beginning, newline):
    path = tmp_path / "a.jsonl"
    path.write_bytes(beginning + LINES.replace("\n", newline).encode())
    assert values(path) == [(1, "thé"), (3, "café")]
    # Of files that were joined each has its mark.
    path.write_bytes(2 * (beginning + LINES.encode()))
    assert [text for _, text in values(path)] == 2 * ["thé", "café"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LINES.encode("latin-1"), r"line 1: not UTF-8: 0xe9 at byte 13;.*LATIN1"),
        ('{"text": "a"}\n{"text": "é"}'.encode("cp1252"), r"line 2: not UTF-8: 0xe9"),
        (LINES.encode("utf-16"), r"line 1: not UTF-8; .* UTF-16.*iconv -f UTF-16"),
        (LINES.encode("utf-16-be"), r"line 1: it has NUL char.*convert it to UTF-8"),
        (b"\xfe\xff" + LINES.encode("utf-16-be"), r"line 1: not UTF-8; looks like UTF"),
        (b"\x1f\x8b\x08\x00" + b"\xff\x00", r"line 1: not UTF-8; looks like a gzip"),
    ],
    ids=["latin-1", "second line", "utf-16", "utf-16-be", "marked-be", "gzip"],
)
def test_other_encodings_are_refused_by_file_and_line(tmp_path, data, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.jsonl, {message}"):
        values(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "\\ud83d"}', r"half of a surrogate pair, \\ud83d at character 1"),
        ('{"text": "a\\ude00b"}', r"half of a surrogate pair, \\ude00 at character 2"),
        ('{"text": ["a", "\\ud83d"]}', "half of a surrogate pair"),
        ('{"\\ud83d": 1}', "half of a surrogate pair"),
        ('{"text": NaN}', "NaN is not JSON; leave the key out, or write null"),
        ('{"text": -Infinity}', "-Infinity is not JSON"),
        ('{"text": "a", "text": "b"}', "duplicate key 'text'"),
        ('{"text": "a"', r"invalid JSON: Expecting ',' delimiter at column 13"),
        ('{"text": "a"} {}', "invalid JSON: Extra data at column 15"),
        ("{", "a value over several lines; write each on one"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_no_strict_json_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: .*{message}"):
        values(path)


def test_whole_surrogate_pairs_are_characters(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}')
    assert values(path) == [(1, "\U0001f600")]


def test_files_of_models_may_have_a_mark(tmp_path):
    folder = write_folder(tmp_path / "siglip")
    (folder / "preprocessor_config.json").write_text('{"resample": 2}')
    tokenizer, fit = FolderTokenizer(folder, 1), read_image_fit(folder, 8, "stretch")
    for file in folder.glob("*.json"):
        file.write_bytes(BOM + file.read_bytes())
    marked = FolderTokenizer(folder, 1)
    assert marked.pieces(["a red"]) == tokenizer.pieces(["a red"])
    assert read_image_fit(folder, 8, "stretch") == fit and fit.resample == "bilinear"
    path = tmp_path / "tokenizer.json"
    path.write_bytes(BOM + (BUNDLED / "tokenizer.json").read_bytes())
    assert load_tokenizer(path).pieces(["a cat"]) == load_tokenizer().pieces(["a cat"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"a": "é"}'.encode("latin-1"), "not UTF-8: 0xe9 at byte 8"),
        (b'{\n"a": }', "is damaged: invalid JSON: Expecting value at line 2, column 6"),
        (b"[1]", "is damaged: it is not a JSON object"),
    ],
)
def test_damaged_files_are_named(tmp_path, data, message):
    path = tmp_path / "tokenizer_config.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json:? {message}"):
        read_json(path)


def test_texts(tmp_path):
    (tmp_path / "a.txt").write_bytes(BOM + "é\n".encode())
    assert read_text(tmp_path / "a.txt") == "é\n" == decode_text("é\n".encode())
    assert json.loads(decode_text(BOM + b"{}")) == {}
