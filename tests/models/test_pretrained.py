import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models_small import SMALL, TOWER, forward, small_batch, small_model

from meta_opt.models import pretrained
from meta_opt.models.lora import LoRAConfig, add_lora


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "small"
    pretrained.save(path, small_model(), card="# Small\n")
    return path


def edit_json(path, **changes):
    file = path.with_suffix(".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_round_trip_to_float16(saved):
    model, loaded = small_model(), pretrained.load(saved)
    assert loaded.config == SMALL
    expected = nnx.to_flat_state(nnx.state(model))
    for (path, a), (other, b) in zip(
        expected, nnx.to_flat_state(nnx.state(loaded)), strict=True
    ):
        assert path == other
        assert b.dtype == jnp.float32
        np.testing.assert_array_equal(b[...], np.asarray(a[...], np.float16))
    assert np.isfinite(forward(loaded, small_batch())[0]).all()
    assert saved.with_suffix(".md").read_text() == "# Small\n"


def test_numerics_can_be_changed(saved):
    assert pretrained.load(saved, dtype="bfloat16").config.dtype == "bfloat16"


def test_unknown_name_lists_those_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "WEIGHTS_DIR", tmp_path)
    pretrained.save(tmp_path / "nano", small_model())
    assert pretrained.names() == ["nano"]
    assert pretrained.load("nano").config == SMALL
    with pytest.raises(
        ValueError, match=r"'nanno'; did you mean 'nano'.*shipped: nano"
    ):
        pretrained.load("nanno")


def test_damaged_file_is_an_error_with_both_hashes(saved):
    file = saved.with_suffix(".safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged.*SHA-256 is [0-9a-f]{64}.*says"):
        pretrained.load(saved)


def test_other_architecture_names_the_tensors(saved):
    with pytest.raises(ValueError, match=r"text/projection/kernel \(16, 8\) instead"):
        pretrained.load(saved, embed_dim=4)
    with pytest.raises(ValueError, match="lacks text/pool/attention/key/bias"):
        pretrained.load(saved, text=dataclasses.replace(TOWER, pooling="attention"))


def test_other_format_version_is_an_error(saved):
    edit_json(saved, format_version=1)
    with pytest.raises(ValueError, match="format version 1; this code reads 2"):
        pretrained.load(saved)


def test_misspelt_setting_is_named(saved):
    with pytest.raises(ValueError, match=r"'rematt'; did you mean 'remat'"):
        pretrained.load(saved, rematt=False)


def test_what_float16_cannot_hold_is_not_saved(tmp_path):
    model = small_model()
    model.logit_bias[...] = jnp.float32(1e6)
    with pytest.raises(ValueError, match="not finite in float16: logit_bias"):
        pretrained.save(tmp_path / "bad", model)
    assert list(tmp_path.iterdir()) == []


def test_adapters_are_merged_before_saving(tmp_path):
    model = small_model()
    add_lora(model, LoRAConfig(rank=2), rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match="merge the LoRA adapters"):
        pretrained.save(tmp_path / "adapted", model)


def test_parameters_are_float32_unless_others_are_asked_for(tmp_path):
    model = small_model(dataclasses.replace(SMALL, param_dtype="bfloat16"))
    pretrained.save(tmp_path / "half", model)
    assert pretrained.read_config(tmp_path / "half") == SMALL
    for dtype in ("float32", "bfloat16"):
        changes = {} if dtype == "float32" else {"param_dtype": dtype}
        loaded = pretrained.load(tmp_path / "half", **changes)
        assert loaded.config.param_dtype == dtype
        assert str(loaded.text.positions[...].dtype) == dtype
        assert str(loaded.log_scale[...].dtype) == "float32"
