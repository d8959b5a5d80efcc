"""What a Hugging Face folder says of its data: tokenizer, sizes, filters."""

import json

import numpy as np
import pytest
from own_data import SENTENCES, write_tokenizer
from PIL import Image
from tokenizers import Tokenizer

from meta_opt.data.preprocessing.folder_tokenizer import FolderTokenizer
from meta_opt.data.preprocessing.image_fit import ImageFit


@pytest.fixture
def siglip(tmp_path):
    write_tokenizer(tmp_path, "siglip")
    return tmp_path


def settings(folder, **changes):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_siglip_texts_end_and_are_padded_with_one_token(siglip):
    tokenizer = FolderTokenizer(siglip, 1)
    reference = Tokenizer.from_file(str(siglip / "tokenizer.json"))
    rows = tokenizer.encode([SENTENCES[0], ""], 12)
    ids = reference.encode(SENTENCES[0]).ids
    assert ids[-1] == 1 and len(ids) < 12
    np.testing.assert_array_equal(rows[0], ids + [1] * (12 - len(ids)))
    np.testing.assert_array_equal(rows[1], 12 * [1])
    assert tokenizer.special_ids == (1,)


def test_siglip_texts_are_plain_and_lower_case(siglip):
    tokenizer = FolderTokenizer(siglip, 1)
    one, two = tokenizer.encode(["  A RED,  picture!\n", "a red picture"], 8)
    np.testing.assert_array_equal(one, two)
    settings(siglip, tokenizer_class="T5Tokenizer", do_lower_case=False)
    one, two = FolderTokenizer(siglip, 1).encode(["A red, picture", "a red picture"], 8)
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_long_texts_are_cut_as_the_tokenizers_package_cuts_them(tmp_path, kind):
    write_tokenizer(tmp_path, kind)
    tokenizer = FolderTokenizer(tmp_path, 0)
    reference = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [" ".join(SENTENCES[:3]), SENTENCES[1], "red"]
    for length in (4, 7, 9):
        reference.enable_truncation(length)
        reference.enable_padding(length=length, pad_id=tokenizer.pad_id)
        expected = [encoding.ids for encoding in reference.encode_batch(texts)]
        np.testing.assert_array_equal(tokenizer.encode(texts, length), expected)
    # The file's own settings of that kind do not count.
    reference.enable_truncation(3)
    reference.save(str(tmp_path / "tokenizer.json"))
    again = FolderTokenizer(tmp_path, 0)
    np.testing.assert_array_equal(again.encode(texts, 9), tokenizer.encode(texts, 9))


def test_the_padding_is_the_files_token_else_the_models(siglip):
    settings(siglip, pad_token={"content": "<unk>"})
    assert FolderTokenizer(siglip, 1).pad_id == 0
    settings(siglip, pad_token=None)
    assert FolderTokenizer(siglip, 1).pad_id == 1


def test_folders_without_a_tokenizer_or_with_a_damaged_one(siglip):
    tokenizer = FolderTokenizer(siglip, 1)
    with pytest.raises(ValueError, match="at least 2 tokens, not 1"):
        tokenizer.encode(["red"], 1)
    with pytest.raises(TypeError, match="a list of texts"):
        tokenizer.encode("red", 8)
    (siglip / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is damaged"):
        FolderTokenizer(siglip, 1)
    (siglip / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        FolderTokenizer(siglip, 1)
    (siglip / "tokenizer.json").unlink()
    with pytest.raises(
        ValueError, match=r"has no tokenizer\.json: fetch it.*model\.pro"
    ):
        FolderTokenizer(siglip, 1)


@pytest.mark.parametrize(
    ("file", "reader"),
    [
        ("spiece.model", "T5TokenizerFast as T; T.from_pretrained({!r}, extra_ids=0)"),
        ("vocab.json", "AutoTokenizer as T; T.from_pretrained({!r})"),
        ("tokenizer.model", "AutoTokenizer as T; T.from_pretrained({!r})"),
    ],
)
def test_the_advice_of_a_folder_without_a_tokenizer(siglip, file, reader):
    """With Transformers 4.57 and 5.24 it gives the ids that SigLIP's own class does."""
    (siglip / "tokenizer.json").unlink()
    (siglip / file).touch()
    save = f".backend_tokenizer.save({str(siglip / 'tokenizer.json')!r})"
    command = f'python -c "from transformers import {reader.format(str(siglip))}{save}"'
    with pytest.raises(ValueError) as caught:
        FolderTokenizer(siglip, 1)
    assert command in str(caught.value)
    assert "\n" not in str(caught.value)


def gradient(width, height):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def test_fits():
    wide = gradient(40, 20)
    padded = ImageFit(10)(wide)
    np.testing.assert_array_equal(padded[0], 255)
    np.testing.assert_array_equal(padded[5, :, 2], 0)
    stretched = ImageFit(10, "stretch", "bicubic")(wide)
    reference = np.asarray(wide.resize((10, 10), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(stretched, reference)
    cropped = ImageFit(10, "crop", "bicubic")(wide)
    whole = np.asarray(wide.resize((20, 10), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(cropped, whole[:, 5:15])
    tall = ImageFit(10, "crop", "bicubic")(gradient(13, 31))
    whole = np.asarray(gradient(13, 31).resize((10, 23), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(tall, whole[6:16])
    # Shrinking averages: of stripes a pixel wide an even grey is left.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = ImageFit(8, "stretch", "bicubic")(Image.fromarray(stripes))
    assert np.abs(small.astype(int) - 127).max() < 8
    same = ImageFit(10, "stretch")(Image.fromarray(stretched))
    np.testing.assert_array_equal(same, stretched)
    with pytest.raises(ValueError, match=r"how='padd' must be .*did you mean 'pad'"):
        ImageFit(8, "padd")
    with pytest.raises(ValueError, match=r"resample='cubic'.*did you mean 'bicubic'"):
        ImageFit(8, "pad", "cubic")
    with pytest.raises(ValueError, match="size=0"):
        ImageFit(0)
    with pytest.raises(ValueError, match="resized=9 of images is not for 'pad'"):
        ImageFit(8, "pad", resized=9)
