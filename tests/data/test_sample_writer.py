"""Samples survive writing and reading unchanged."""

import numpy as np
import pytest

from meta_opt.data.samples import Samples
from meta_opt.data.sources.sample_task import sample_task
from meta_opt.data.sources.sample_writer import write_samples

SIDE = 16


def samples(seed, kind):
    rng = np.random.default_rng(seed)
    count = 5
    tone = np.sin(np.arange(1600) * (0.1 + 0.05 * seed))
    absent = np.array([False, True, False, False, False])
    asked = {
        "classify": {
            "label": np.array([1, 0, 1, 0, 1], np.int32),
            "class_names": ("cat", "dog"),
        },
        "score": {"score": rng.normal(size=count).astype(np.float32)},
        "caption": {"caption": [f"number {i}" for i in range(count)]},
    }[kind]
    inputs = {
        "image": rng.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8),
        "video": rng.integers(0, 256, (count, 8, SIDE, SIDE, 3), np.uint8),
        "audio": [(9000 * tone[: 1600 - 100 * i]).astype(np.int16) for i in range(4)]
        + [np.zeros(0, np.int16)],
    }
    if kind != "caption":
        inputs["text"] = ["one", "", "three \u00e9", "four", "five"]
    return Samples(**inputs, **asked, absent={"image": absent}, rate=16000)


@pytest.mark.parametrize("kind", ["classify", "score", "caption"])
def test_what_is_written_is_read(tmp_path, kind):
    parts = {"train": samples(0, kind), "test": samples(1, kind)}
    task = sample_task(write_samples(parts, tmp_path))
    assert task.kind == kind
    for split, given in parts.items():
        found = task.read(split, None, SIDE)
        for modality, there in given.present().items():
            np.testing.assert_array_equal(found.present()[modality], there)
            for i in np.flatnonzero(there):
                expected = given.inputs()[modality][i]
                np.testing.assert_array_equal(found.inputs()[modality][i], expected)
        np.testing.assert_array_equal(found.label, given.label)
        np.testing.assert_allclose(found.score, given.score, rtol=1e-6)
        assert tuple(found.caption) == tuple(given.caption)
        assert found.class_names == given.class_names


def test_pairs_ask_for_nothing(tmp_path):
    """An image and its caption are to be found by each other."""
    pictures = np.zeros((3, SIDE, SIDE, 3), np.uint8)
    pictures += np.arange(3, dtype=np.uint8)[:, None, None, None]
    texts = ["one", "two", "three"]
    pairs = Samples(image=pictures, text=texts, caption=texts)
    task = sample_task(write_samples({"train": pairs}, tmp_path))
    assert task.kind == "retrieve"
    assert list(task.read("train", None, SIDE).text) == texts
