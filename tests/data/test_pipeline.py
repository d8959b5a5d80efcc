"""Batches: order, determinism, resumption, sharding, augmentation."""

import json

import numpy as np
import pytest

from meta_opt.data import (
    MemorySource,
    PipelineConfig,
    as_arrays,
    bundled_clipart,
    load_tokenizer,
    make_iterator,
)
from meta_opt.types import from_config

COUNT = 21


@pytest.fixture(scope="module")
def source():
    images = np.random.default_rng(0).integers(0, 255, (COUNT, 8, 8, 3), np.uint8)
    captions = [(f"cat {i}", f"dog {i}", f"bird {i}") for i in range(COUNT)]
    return MemorySource(images, captions, range(COUNT), [str(i) for i in range(COUNT)])


def batches(source, count=None, state=None, rows=None, **settings):
    """Returns ``count`` batches, or all, and the state after them."""
    given = {"batch_size": 4, "seed": 3, **settings}
    of_batch = {name: given.pop(name) for name in ("batch_size", "seed")}
    config = PipelineConfig(**given)
    iterator = make_iterator(source, load_tokenizer(), config, rows=rows, **of_batch)
    if state is not None:
        iterator.set_state(state)
    taken = list(iterator) if count is None else [next(iterator) for _ in range(count)]
    return taken, iterator.get_state()


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def labels(taken):
    return np.concatenate([batch["label"] for batch in taken])


def test_batches_have_the_documented_form(source):
    (batch, *_), _ = batches(source, 1, text_length=7)
    assert batch["image"].shape == (4, 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["text"].shape == (4, 7) and batch["text"].dtype == np.int32
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
    for image, text, label in zip(*batch.values(), strict=True):
        np.testing.assert_array_equal(image, source[label]["image"])
        assert load_tokenizer().decode(text) == [source[label]["text"]]


def test_epochs_drop_the_remainder_and_are_shuffled_anew(source):
    taken, _ = batches(source, num_epochs=2)
    assert len(taken) == 2 * (COUNT // 4)
    first, second = labels(taken[:5]), labels(taken[5:])
    assert len(set(first)) == len(set(second)) == 20
    assert first.tolist() != second.tolist()
    ordered, _ = batches(source, num_epochs=1, shuffle=False)
    np.testing.assert_array_equal(labels(ordered), np.arange(20))


@pytest.mark.parametrize(
    "settings",
    [{}, {"captions": "random", "flip": True, "crop_pixels": 2}, {"num_threads": 2}],
)
def test_the_seed_fixes_the_batches(source, settings):
    first, _ = batches(source, 12, **settings)
    second, _ = batches(source, 12, **settings)
    assert_same(first, second)
    other, _ = batches(source, 12, **settings, seed=4)
    assert labels(first).tolist() != labels(other).tolist()


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("taken", [0, 3, 5, 7])
def test_resumption_is_exact(source, taken, threads):
    settings = {
        "captions": "random",
        "flip": True,
        "crop_pixels": 1,
        "num_threads": threads,
    }
    unbroken, end = batches(source, 12, **settings)
    _, state = batches(source, taken, **settings)
    state = json.loads(json.dumps(state))
    resumed, resumed_end = batches(source, 12 - taken, state=state, **settings)
    assert_same(resumed, unbroken[taken:])
    assert resumed_end == end


def test_threads_do_not_change_the_batches(source):
    assert_same(batches(source, 9)[0], batches(source, 9, num_threads=3)[0])


@pytest.mark.parametrize("shares", [((0, 1), (2, 3)), ((0, 2), (1, 3))])
def test_rows_are_those_of_the_whole_batch(source, shares):
    settings = {"captions": "random", "flip": True, "crop_pixels": 1}
    whole, end = batches(source, 7, **settings)
    for rows in shares:
        part, part_end = batches(source, 7, rows=np.array(rows), **settings)
        wanted = [{k: v[list(rows)] for k, v in batch.items()} for batch in whole]
        assert_same(part, wanted)
        assert part_end == end


@pytest.mark.parametrize("rows", [(), (0, 4), (-1,)])
def test_rows_that_a_batch_has_not(source, rows):
    with pytest.raises(ValueError, match="rows of a batch of 4 are 0 to 3, not"):
        batches(source, 1, rows=np.array(rows, int))


def test_other_sources_give_the_same_batches(source):
    records = [source[i] for i in range(COUNT)]
    settings = {"flip": True, "crop_pixels": 2}
    assert_same(batches(records, 7, **settings)[0], batches(source, 7, **settings)[0])
    tokenizer = load_tokenizer()
    assert_same([as_arrays(records, tokenizer)], [as_arrays(source, tokenizer)])


def test_random_captions_are_the_records_own(source):
    taken, _ = batches(source, 50, captions="random")
    seen = set()
    for batch in taken:
        texts = load_tokenizer().decode(batch["text"])
        for text, label in zip(texts, batch["label"], strict=True):
            word, number = text.split()
            assert int(number) == label
            seen.add(word)
    assert seen == {"cat", "dog", "bird"}


def test_flip_and_crop(source):
    plain, _ = batches(source, 10)
    flipped, _ = batches(source, 10, flip=True)
    mirrored = 0
    for a, b in zip(plain, flipped, strict=True):
        for x, y in zip(a["image"], b["image"], strict=True):
            mirrored += (y == x[:, ::-1]).all()
            assert (y == x).all() or (y == x[:, ::-1]).all()
    assert 5 < mirrored < 35
    cropped, _ = batches(source, 10, crop_pixels=1)
    shifts = set()
    for a, b in zip(plain, cropped, strict=True):
        for x, y in zip(a["image"], b["image"], strict=True):
            padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=255)
            windows = {
                (i, j): padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)
            }
            shifts |= {at for at, window in windows.items() if (window == y).all()}
    assert len(shifts) == 9


def test_as_arrays_is_the_whole_split_in_order():
    split = bundled_clipart("validation")
    arrays = as_arrays(split, load_tokenizer(), 12)
    assert arrays["image"].shape == (len(split), 64, 64, 3)
    assert arrays["text"].shape == (len(split), 12)
    np.testing.assert_array_equal(arrays["label"], split.labels)
    texts = load_tokenizer().encode([split[5]["text"]], 12)
    np.testing.assert_array_equal(arrays["text"][5], texts[0])


def test_a_small_source_is_refused(source):
    with pytest.raises(ValueError, match=r"batch of 22 .* source has 21"):
        batches(source, batch_size=22)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, "and below"),
        ({"num_epochs": 0}, "num_epochs must be at least 1"),
        ({"captions": "any"}, "one of first, random, not 'any'"),
    ],
)
def test_bad_settings(source, settings, message):
    with pytest.raises(ValueError, match=message):
        batches(source, 1, **settings)


def test_misspelt_setting():
    with pytest.raises(ValueError, match="'croppixels'; did you mean 'crop_pixels'"):
        from_config(PipelineConfig, {"croppixels": 3})
