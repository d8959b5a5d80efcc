"""A run resumes only with the data that it was started with."""

import json

import numpy as np
import pytest

from meta_opt.data.array_batches import array_batches
from meta_opt.data.sources.image_text_rows import ImageTextRows


def test_batches_go_on_over_the_same_arrays_and_over_no_others():
    arrays = {"x": np.arange(8.0), "y": np.arange(8)}
    batches = array_batches(arrays, 2, seed=1)
    next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    wanted = [next(batches)["x"].tolist() for _ in range(5)]
    again = array_batches({k: v.copy() for k, v in arrays.items()}, 2, seed=1)
    again.set_state(state)
    assert [next(again)["x"].tolist() for _ in range(5)] == wanted
    changed = {**arrays, "y": np.where(arrays["y"] == 7, 6, arrays["y"])}
    with pytest.raises(ValueError, match="not those that the run began with"):
        array_batches(changed, 2, seed=1).set_state(state)


def test_a_state_without_a_checksum_is_that_of_an_older_run():
    batches = array_batches(np.arange(8.0), 2)
    next(batches)
    state = batches.get_state()["batches"]
    wanted = next(batches).tolist()
    again = array_batches(np.arange(8.0), 2)
    again.set_state(state)
    assert next(again).tolist() == wanted


@pytest.mark.parametrize(
    "change",
    [
        lambda f: (f / "a.png").write_bytes(b"other"),
        lambda f: (f / "a.png").unlink(),
        lambda f: (f / "s.jsonl").write_text('{"image": "a.png", "text": "blue"}'),
    ],
    ids=["picture of another size", "missing picture", "another caption"],
)
def test_the_digest_of_samples_tells_changed_ones(tmp_path, change):
    (tmp_path / "a.png").write_bytes(b"one")
    (tmp_path / "s.jsonl").write_text('{"image": "a.png", "text": "red"}')
    before = ImageTextRows(tmp_path / "s.jsonl").digest()
    assert ImageTextRows(tmp_path / "s.jsonl").digest() == before
    change(tmp_path)
    assert ImageTextRows(tmp_path / "s.jsonl").digest() != before
