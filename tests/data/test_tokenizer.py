"""The caption tokenizer that ships with the package."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers

from meta_opt.data import bundled_clipart, load_tokenizer
from meta_opt.data.bundled import BUNDLED
from meta_opt.data.preprocessing.tokenizer import (
    CaptionTokenizer,
    read_tokenizer,
    train,
)


def test_golden_ids():
    # Weights depend on them; `python -m meta_opt.data.bundled.train_tokenizer` renews.
    rows = load_tokenizer().encode(["Grinning Face", "stick man 02", ""], 8)
    assert rows.tolist() == GOLDEN_IDS
    assert rows.dtype == np.int32


GOLDEN_IDS = [
    [2, 741, 116, 3, 0, 0, 0, 0],
    [2, 1112, 125, 68, 17, 19, 3, 0],
    [2, 3, 0, 0, 0, 0, 0, 0],
]


def test_vocabulary():
    tokenizer = load_tokenizer()
    assert tokenizer.vocab_size == 2048
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 2, 3)
    assert load_tokenizer() is tokenizer


@pytest.mark.parametrize(
    "text", ["grinning face", "flag of norway 02", "don't stop!", "led (purple), 3/4"]
)
def test_round_trip(text):
    tokenizer = load_tokenizer()
    assert tokenizer.decode(tokenizer.encode([text.upper()], 32)) == [text]


def test_case_and_accents_are_dropped_and_foreign_signs_unknown():
    tokenizer = load_tokenizer()
    rows = tokenizer.encode(["Café 日", "cafe 本"], 16)
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows == tokenizer.unk_id).any()
    assert tokenizer.decode(rows) == ["cafe", "cafe"]


def test_truncation_keeps_the_end():
    tokenizer = load_tokenizer()
    row = tokenizer.encode(["one two three four five six seven eight"], 6)[0]
    assert row[0] == tokenizer.bos_id and row[-1] == tokenizer.eos_id
    assert tokenizer.pad_id not in row
    assert "one two three four five six seven eight".startswith(
        tokenizer.decode(row)[0]
    )


def test_most_titles_fit_sixteen_tokens():
    titles = [texts[0] for texts in bundled_clipart("validation").captions]
    rows = load_tokenizer().encode(titles, 40)
    lengths = (rows != 0).sum(axis=1)
    assert (lengths <= 16).mean() > 0.95
    assert (rows == 1).any(axis=1).mean() < 0.02


def test_bad_arguments():
    tokenizer = load_tokenizer()
    with pytest.raises(ValueError, match="at least 2 tokens, not 1"):
        tokenizer.encode(["a"], 1)
    with pytest.raises(TypeError, match="list of texts"):
        tokenizer.encode("a", 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unk_token": "nothing"}, "Unk token `nothing` not found"),
        ({"continuing_subword_prefix": "a long one"}, "the reader failed"),
        ({"vocab": {"[PAD]": 2**32 - 1}}, "a token has the id 4294967295"),
    ],
)
def test_damaged_files_are_named(tmp_path, changes, message):
    file = BUNDLED / "tokenizer.json"
    value = json.loads(file.read_text())
    vocab = {**value["model"]["vocab"], **changes.pop("vocab", {})}
    value["model"] |= {"vocab": vocab, **changes}
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match=rf"tokenizer\.json is damaged: .*{message}"):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_an_unknown_token_is_asked_of_the_model(tmp_path):
    tokenizer = Tokenizer(models.WordPiece({"a": 0, "[PAD]": 1}, unk_token="[UNK]"))
    # It drops characters of private use before the model sees them.
    tokenizer.normalizer = normalizers.BertNormalizer(clean_text=True)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"is damaged: .*\[UNK\]"):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_training_is_deterministic():
    texts = [t for captions in bundled_clipart("test").captions for t in captions]
    first, second = (train(texts, 300) for _ in range(2))
    assert first.to_str() == second.to_str()
    assert CaptionTokenizer(first).vocab_size == 300


def test_other_vocabularies_are_refused():
    from tokenizers import Tokenizer, models

    with pytest.raises(ValueError, match=r"must begin with \('\[PAD\]'"):
        CaptionTokenizer(Tokenizer(models.BPE()))
