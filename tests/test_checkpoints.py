"""Checkpoints: exact, whole or absent, verified, onto any layout."""

import contextlib
import os
import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from meta_opt.checkpoints import (
    CheckpointMismatchError,
    Checkpoints,
    CheckpointWriteError,
)
from meta_opt.parallel.mesh import MeshConfig, make_mesh


def make_state(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "kernel": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=(3,)), jnp.bfloat16),
        "scale": jnp.float32(rng.normal()),
        "empty": jnp.zeros((0, 3)),
    }
    return {
        "step": jnp.int32(seed),
        "params": params,
        "opt_state": optax.adamw(1e-3).init(params),
        "rng": jax.random.key(seed),
    }


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture
def open_checkpoints(tmp_path):
    opened = []

    def open_(**kwargs):
        while opened:
            opened.pop().close()
        opened.append(Checkpoints(tmp_path / "checkpoints", **kwargs))
        return opened[-1]

    yield open_
    for checkpoints in opened:
        checkpoints.close()


def test_round_trip(open_checkpoints):
    host = {"next": 7, "loss": 0.1 + 0.2, "nan": None}
    assert open_checkpoints().restore(make_state()) is None
    open_checkpoints().save(3, make_state(3), host)
    restored = open_checkpoints().restore(make_state())
    assert (restored.step, restored.host) == (3, host)
    assert_same(restored.state, make_state(3))


def test_what_is_changed_after_save_is_saved_as_it_was(open_checkpoints):
    x = jnp.arange(2.0**20)
    host = {"list": [1]}
    checkpoints = open_checkpoints()
    checkpoints.save(1, {"x": x}, host)
    host["list"].append(2)
    x = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)(x).block_until_ready()
    restored = checkpoints.restore({"x": x})
    assert restored.host == {"list": [1]}
    np.testing.assert_array_equal(restored.state["x"], np.arange(2.0**20))


def test_keeps_the_latest_and_the_best(open_checkpoints):
    checkpoints = open_checkpoints(keep_latest=2, keep_best=1)
    for step, loss in enumerate([3.0, 1.0, 2.0, None, 4.0, float("nan")]):
        checkpoints.save(step, {"x": jnp.ones(2)}, None, metric=loss)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 4, 5]
    assert checkpoints.best_step() == 1
    assert open_checkpoints(mode="max").best_step() == 4


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: path.unlink(),
        _flip_a_bit,
    ],
    ids=["truncated", "missing", "flipped"],
)
@pytest.mark.parametrize("part", ["state", "host", "metrics"])
def test_falls_back_from_damage_and_says_so(
    open_checkpoints, tmp_path, caplog, part, damage
):
    checkpoints = open_checkpoints()
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), step, metric=1.0)
    checkpoints.close()
    files = [p for p in (tmp_path / "checkpoints/3" / part).rglob("*") if p.is_file()]
    damage(max(files, key=lambda path: path.stat().st_size))
    checkpoints = open_checkpoints()
    restored = checkpoints.restore(make_state())
    assert restored.step == 2
    assert_same(restored.state, make_state(2))
    assert "checkpoint 3" in caplog.text and "damaged" in caplog.text
    assert "the newest other one is of step 2, the steps after it are lost" in (
        caplog.text
    )
    assert (tmp_path / "checkpoints/damaged/3").exists()
    # The step can be saved again.
    checkpoints.save(3, make_state(3), 3)
    assert checkpoints.restore(make_state()).step == 3


# Orbax leaves futures behind when a write fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failed_write_says_what_is_left_and_harms_nothing(open_checkpoints):
    checkpoints = open_checkpoints()
    checkpoints.save(1, make_state(1), None)
    checkpoints.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, before[1]))
    noise = np.random.default_rng(0).normal(size=2**16)
    try:
        with pytest.raises(
            CheckpointWriteError,
            match=r"of step 2 could not be written to .* \(File too large\); the "
            r"newest other one is of step 1, the steps after it are lost",
        ):
            checkpoints.save(2, {"x": jnp.asarray(noise, jnp.float32)}, None)
            checkpoints.wait()
        with contextlib.suppress(CheckpointWriteError):
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    restored = open_checkpoints().restore(make_state())
    assert restored.step == 1
    assert_same(restored.state, make_state(1))


def test_a_checkpoint_whose_writing_was_cut_off_is_not_taken(
    open_checkpoints, tmp_path
):
    checkpoints = open_checkpoints()
    checkpoints.save(1, make_state(1), None)
    checkpoints.close()
    cut_off = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    (cut_off / "state").mkdir(parents=True)
    checkpoints = open_checkpoints()
    assert checkpoints.restore(make_state()).step == 1
    # Orbax removes it in the background, before the next save at the latest.
    checkpoints.save(2, make_state(2), None)
    checkpoints.wait()
    assert not cut_off.exists()
    assert checkpoints.steps() == [1, 2]


# Orbax leaves futures behind when a read fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_manifest_what_cannot_be_read_is_set_aside(
    open_checkpoints, tmp_path, caplog
):
    checkpoints = open_checkpoints()
    for step in (1, 2):
        checkpoints.save(step, make_state(step), None)
    checkpoints.close()
    (tmp_path / "checkpoints/manifests/2.json").unlink()
    (tmp_path / "checkpoints/2/state/manifest.ocdbt").write_bytes(b"")
    assert open_checkpoints().restore(make_state()).step == 1
    assert "checkpoint 2" in caplog.text


def test_another_structure_or_shape_is_an_error(open_checkpoints):
    checkpoints = open_checkpoints()
    checkpoints.save(1, make_state(), None)
    other = make_state()
    other["params"]["kernel"] = jnp.zeros((8, 5))
    with pytest.raises(
        CheckpointMismatchError,
        match=r"params/kernel: float32\[8, 4\] in the checkpoint, float32\[8, 5\]",
    ):
        checkpoints.restore(other)
    other = {**make_state(), "opt_state": optax.sgd(0.1, momentum=0.9).init(1.0)}
    with pytest.raises(CheckpointMismatchError, match="absent in this run"):
        checkpoints.restore(other)
    assert checkpoints.steps() == [1]


def test_restores_onto_another_layout(open_checkpoints):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    state = {"x": jnp.arange(32.0).reshape(8, 4), "empty": jnp.zeros((0, 4))}
    checkpoints = open_checkpoints()
    checkpoints.save(1, state, None)
    sharding = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )
    restored = checkpoints.restore(template).state
    assert restored["x"].sharding == sharding
    assert_same(restored, state)


def test_bad_settings(tmp_path, open_checkpoints):
    with pytest.raises(ValueError, match="mode is 'min' or 'max'"):
        open_checkpoints(mode="least")
    with pytest.raises(ValueError, match="keep_latest=0"):
        open_checkpoints(keep_latest=0)
    with pytest.raises(ValueError, match=r"no checkpoint of step 4; available: \[\]"):
        open_checkpoints().restore({}, step=4)


@pytest.mark.parametrize(
    "text",
    ['"y"', "[", "[" * 100_000, '{"init_tiem": 1, "custom_metadata": {"a": 1}}'],
    ids=["text", "cut", "deep", "unknown"],
)
def test_a_damaged_description_costs_no_checkpoint(
    open_checkpoints, tmp_path, caplog, text
):
    checkpoints = open_checkpoints(keep_best=1)
    for step in (2, 3):
        checkpoints.save(step, make_state(step), {"next": step}, metric=-step)
    checkpoints.wait()
    files = [
        tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA" for step in (2, 3)
    ]
    files[1].write_text(text)
    again = open_checkpoints(keep_best=1)
    assert [file.is_file() for file in files] == [True, False]
    assert f"{files[1]} is damaged" in caplog.text
    restored = again.restore(make_state())
    assert (restored.step, restored.host) == (3, {"next": 3})
    assert again.best_step() is not None
