"""The bundled shard and the in-memory source."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import meta_opt.data as data
from meta_opt.data.preprocessing.images import (
    TooManyPixelsError,
    decode,
    encode_png,
    fit_square,
    shrink,
)
from meta_opt.data.records import SPLITS, MemorySource, Source, source_arrays
from meta_opt.data.sources import clipart
from meta_opt.data.sources.selection import CLASS_NAMES, Described, captions, select
from meta_opt.data.splits import split_of, title_key


def test_shard_counts_and_size():
    description = json.loads((clipart.BUNDLED / "openclipart64.json").read_text())
    assert description["splits"] == {"train": 1546, "validation": 170, "test": 162}
    assert sum(p.stat().st_size for p in clipart.BUNDLED.iterdir()) < 6_000_000
    for split, count in description["splits"].items():
        source = data.bundled_clipart(split)
        assert isinstance(source, Source)
        assert len(source) == count
        assert source.class_names == CLASS_NAMES
        # Each class is in each split, twice at least.
        assert np.bincount(source.labels, minlength=len(CLASS_NAMES)).min() >= 2


def test_shard_pixels_are_those_that_were_cut():
    description = json.loads((clipart.BUNDLED / "openclipart64.json").read_text())
    pictures = {}
    for split in SPLITS:
        source = data.bundled_clipart(split)
        pictures.update(zip(source.keys, source.images(), strict=True))
    joined = b"".join(pictures[path].tobytes() for path in sorted(pictures))
    assert hashlib.sha256(joined).hexdigest() == description["pixels_sha256"]


def test_shard_splits_share_no_picture_and_no_title():
    for of in ("pictures", "titles"):
        seen: dict[object, str] = {}
        for split in SPLITS:
            source = data.bundled_clipart(split)
            values = (
                [image.tobytes() for image in source.images()]
                if of == "pictures"
                else [title_key(texts[0]) for texts in source.captions]
            )
            for value in values:
                assert seen.setdefault(value, split) == split


def test_shard_records():
    source = data.bundled_clipart("test")
    record = source[-1]
    assert record["image"].shape == (64, 64, 3)
    assert record["image"].dtype == np.uint8
    assert record["text"] and isinstance(record["label"], int)
    assert data.bundled_clipart("test") is source
    with pytest.raises(ValueError, match="read-only"):
        record["image"][0] = 0
    with pytest.raises(IndexError, match="record 162"):
        source[162]


def test_shard_splits_follow_the_hash_of_the_title():
    for split in SPLITS:
        titles = [texts[0] for texts in data.bundled_clipart(split).captions]
        assert {split_of(title_key(title)) for title in titles} == {split}


def test_unknown_split():
    with pytest.raises(ValueError, match=r"'val'.*train, validation, test"):
        data.bundled_clipart("val")


def test_damaged_shard(tmp_path):
    for path in clipart.BUNDLED.glob("openclipart64.*"):
        shutil.copy(path, tmp_path)
    shard = tmp_path / "openclipart64.zip"
    assert len(clipart.read_shard(tmp_path, "test")) == 162
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(clipart.DamagedShardError, match="is damaged: its SHA-256"):
        clipart.read_shard(tmp_path, "test")


def test_import_is_light():
    code = (
        "import sys, meta_opt.data; "
        "print([m for m in ('PIL', 'grain', 'tensorflow_datasets', 'tokenizers')"
        " if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_public_names_exist():
    for name in data.__all__:
        assert getattr(data, name) is not None
    assert not hasattr(data, "no_such_name")


def test_data_dir(monkeypatch):
    monkeypatch.setenv("META_OPT_DATA_DIR", "/somewhere")
    assert str(data.data_dir()) == "/somewhere"
    monkeypatch.delenv("META_OPT_DATA_DIR")
    assert str(data.data_dir()) == "data"


def test_memory_source_checks_its_columns():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="differ in length: 2 images, 1 captions"):
        MemorySource(images, ["a"], [0, 0], ["k"])
    with pytest.raises(ValueError, match="labels run from 0 to 1"):
        MemorySource(images, ["a", "b"], [0, 1], ["k"])
    with pytest.raises(ValueError, match="record 1 has no caption"):
        MemorySource(images, ["a", ()], [0, 0], ["k"])
    with pytest.raises(ValueError, match="uint8"):
        MemorySource(images.astype(float), ["a", "b"], [0, 0], ["k"])
    with pytest.raises(ValueError, match="image_size"):
        MemorySource([b"", b""], ["a", "b"], [0, 0], ["k"])


@pytest.mark.parametrize("encoded", [False, True])
def test_memory_source_subset_and_arrays(encoded):
    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), np.uint8)
    source = MemorySource(
        [encode_png(i) for i in images] if encoded else images,
        ["a", "b", ("c", "d"), "e"],
        [0, 1, 1, 0],
        ["k", "l"],
        image_size=8,
        keys=["w", "x", "y", "z"],
    )
    part = source.subset([2, 0])
    assert part.captions == (("c", "d"), ("a",))
    assert part.keys == ("y", "w")
    np.testing.assert_array_equal(part.images(), images[[2, 0]])
    arrays, labels = source_arrays(part)
    np.testing.assert_array_equal(arrays, images[[2, 0]])
    np.testing.assert_array_equal(labels, [1, 0])
    assert source_arrays(part, size=4)[0].shape == (2, 4, 4, 3)
    # A plain list of records is a source too.
    records = [source[i] for i in range(4)]
    np.testing.assert_array_equal(source_arrays(records, size=8)[0], images)


def test_images_are_composited_on_white_and_padded():
    from PIL import Image

    image = Image.new("RGBA", (40, 20), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 20, 20))
    pixels = fit_square(decode(encode_png(image)), 20)
    assert pixels.shape == (20, 20, 3)
    np.testing.assert_array_equal(pixels[:5], 255)  # padding
    np.testing.assert_array_equal(pixels[10, 1], (0, 0, 255))
    np.testing.assert_array_equal(pixels[10, -1], 255)  # transparent
    assert shrink(Image.new("RGB", (400, 100)), 100).size == (100, 25)


def test_images_have_a_pixel_limit():
    from PIL import Image

    large = encode_png(np.zeros((50, 50, 3), np.uint8))
    assert decode(large).size == (50, 50)
    with pytest.raises(TooManyPixelsError, match="50 x 50"):
        decode(large, max_pixels=2499)
    with pytest.raises(TooManyPixelsError):
        decode(encode_png(Image.new("1", (15_000, 15_000))))  # Pillow would warn


def test_selection():
    items = [
        Described("shapes/stars/s.png", "a star"),
        Described("food/a.png", "Cake"),
        Described("food/b.png", "cake"),
        Described("food/c.png", ""),
        Described("food/d.png", "pie"),
        Described("logos/e.png", "logo"),
        *(Described(f"animals/{i}.png", "dino") for i in range(3)),
    ]
    assert select(items) == [1, 2, 4]
    assert select(items, max_title_uses=3) == [1, 2, 4, 6, 7, 8]
    assert len(select(items, class_limit=2)) == 2


def test_captions_with_keywords():
    item = Described("food/a.png", "Cake", ("food", "hash", "0xab1", "birth_day"))
    assert captions(item) == ("Cake", "Cake, birth day")
    assert captions(Described("food/a.png", "Cake", ("food",))) == ("Cake",)


def test_splits_are_fixed_and_in_proportion():
    assert [split_of(k) for k in ("cat", "dog", "1f600")] == [
        "train",
        "test",
        "train",
    ]
    counts = [sum(split_of(str(i)) == s for i in range(2000)) for s in SPLITS]
    np.testing.assert_allclose(counts, [1600, 200, 200], atol=60)
