"""Hugging Face folders: parity with PyTorch, exact round trips, damage that is named.

The golden folders come from ``tests/golden/renew_huggingface.py``.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models_small import small_model, tensors
from paths import GOLDEN
from safetensors.numpy import load_file, save_file

from meta_opt.models import huggingface
from meta_opt.models.int8 import quantise_base, restore_base
from meta_opt.models.vision_text import resize_positions
from meta_opt.parallel.mesh import MeshConfig, make_mesh
from meta_opt.parallel.sharding import VISION_TEXT_RULES, parameter_shardings

KINDS = ("clip", "siglip")


def expected(kind):
    return np.load(GOLDEN / kind / "expected.npz")


def outputs(model, batch):
    return nnx.jit(lambda model, batch: model(batch))(model, dict(batch))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, tmp_path):
    return Path(shutil.copytree(GOLDEN / kind, tmp_path / kind))


def test_outputs_are_those_of_pytorch(kind):
    model, golden = huggingface.load(GOLDEN / kind), expected(kind)
    image, text, scale, bias = outputs(model, golden)
    np.testing.assert_allclose(image, golden["image_embeds"], atol=1e-5)
    np.testing.assert_allclose(text, golden["text_embeds"], atol=1e-5)
    logits = scale * image @ text.T + (bias if kind == "siglip" else 0.0)
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4)
    # The images and captions are far enough apart for this to mean something.
    assert np.std(golden["logits"]) > 0.05


def test_saved_again_it_is_the_same_to_the_bit(kind, tmp_path):
    model = huggingface.load(GOLDEN / kind)
    huggingface.save(tmp_path / "new", model, max_shard_bytes=30_000)
    assert len(list((tmp_path / "new").glob("*.safetensors"))) > 2
    found, golden = tensors(tmp_path / "new"), tensors(GOLDEN / kind)
    assert found.keys() == golden.keys()
    for name, tensor in golden.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    again = huggingface.load(tmp_path / "new")
    assert again.config == model.config
    huggingface.save(tmp_path / "one", again)
    assert (tmp_path / "one" / "model.safetensors").is_file()
    assert tensors(tmp_path / "one").keys() == golden.keys()


def test_int8_kernels_are_not_written_before_they_are_floats_again(kind, tmp_path):
    model = huggingface.load(GOLDEN / kind)
    quantise_base(model)
    quantised = outputs(model, expected(kind))
    with pytest.raises(
        ValueError, match=r"restore_base before saving.*mlp/down/kernel"
    ):
        huggingface.save(tmp_path / "new", model)
    assert not (tmp_path / "new").exists()
    restore_base(model)
    huggingface.save(tmp_path / "new", model)
    again = outputs(huggingface.load(tmp_path / "new"), expected(kind))
    for a, b in zip(again[:3], quantised[:3], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_sharded_arrays_are_read_in_parts(kind):
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    rules = [dataclasses.replace(r, min_size=0) for r in VISION_TEXT_RULES]
    sharded = huggingface.load(
        GOLDEN / kind, lambda p: parameter_shardings(rules, mesh, p)[0]
    )
    whole = huggingface.load(GOLDEN / kind)
    pairs = zip(
        nnx.to_flat_state(nnx.state(sharded)),
        nnx.to_flat_state(nnx.state(whole)),
        strict=True,
    )
    divided = 0
    for (path, a), (_, b) in pairs:
        np.testing.assert_array_equal(a[...], b[...], err_msg=str(path))
        divided += not a[...].sharding.is_fully_replicated
    assert divided > 10


def test_types_and_resolution_can_be_others(kind):
    model = huggingface.load(
        GOLDEN / kind, image_size=32, param_dtype="bfloat16", dtype="bfloat16"
    )
    params = nnx.to_flat_state(nnx.state(model, nnx.Param))
    found = {path[-1]: str(p[...].dtype) for path, p in params}
    assert found.pop("log_scale") == found.pop("logit_bias") == "float32"
    assert set(found.values()) == {"bfloat16"}
    assert len(model.vision.positions[...]) == 16 + (kind == "clip")
    golden = dict(expected(kind))
    twice = golden["image"].repeat(2, axis=1).repeat(2, axis=2)
    assert model.encode_image(twice).shape == golden["image_embeds"].shape
    text = model.encode_text(golden["text"])
    np.testing.assert_allclose(text, golden["text_embeds"], atol=0.05)


def test_resized_positions_keep_a_plane_and_the_class_token():
    rows, columns = np.meshgrid(np.arange(4.0), np.arange(4.0), indexing="ij")
    plane = np.stack([rows, columns], axis=-1).reshape(16, 2)
    table = np.concatenate([[[9.0, -9.0]], plane]).astype(np.float32)
    found = np.asarray(resize_positions(table, 4, 8))
    assert found.shape == (65, 2)
    np.testing.assert_array_equal(found[0], table[0])
    inner = found[1:].reshape(8, 8, 2)[1:-1, 1:-1]
    np.testing.assert_allclose(inner[:, 0, 0], np.arange(6) / 2 + 0.25, atol=1e-5)
    np.testing.assert_array_equal(resize_positions(table, 4, 4), table)
    with pytest.raises(ValueError, match="17 positions are neither 3x3"):
        resize_positions(table, 3, 8)


def first_file(folder):
    return sorted(folder.glob("model-*.safetensors"))[0]


def test_a_file_that_is_cut_short_is_named(folder):
    file = first_file(folder)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{file.name} is damaged or cut short"):
        huggingface.load(folder)


def test_a_missing_file_names_its_tensors(folder):
    file = first_file(folder)
    file.unlink()
    with pytest.raises(ValueError, match=rf"lacks {file.name}, where \w+.*should be"):
        huggingface.load(folder)


def test_a_missing_tensor_is_named(folder):
    file = first_file(folder)
    left = load_file(file)
    name = sorted(left)[0]
    del left[name]
    save_file(left, file)
    with pytest.raises(ValueError, match=f"lists are missing: {name}"):
        huggingface.load(folder)
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors(folder), folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"it lacks {name}"):
        huggingface.load(folder)


def test_other_tensors_than_the_config_says_are_named(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 44
    config["vision_config"]["num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError,
        match=r"unknown vision_model.encoder.layers.2.*"
        r"text_model.encoder.layers.0.mlp.fc1.weight \[40, 24\] instead of \[44, 24\]",
    ):
        huggingface.load(folder)


def test_other_models_and_no_models_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json: not a model's folder"):
        huggingface.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ValueError, match=r"model_type 'blip'.*did you mean 'clip'"):
        huggingface.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        huggingface.load(tmp_path)
    with pytest.raises(ValueError, match=r"neither CLIP's nor SigLIP's: \w+"):
        huggingface.save(tmp_path / "new", small_model())
    assert not (tmp_path / "new").exists()


def test_defaults_that_a_config_leaves_out():
    def config(folder, **parts):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(parts))
        return huggingface.read_config(folder)

    import tempfile

    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        siglip = config(base / "s", model_type="siglip")
        assert siglip.vision.width == 768 and siglip.text_length == 64
        assert siglip.patch_size == 16 and siglip.vocab_size == 32000
        clip = config(base / "c", model_type="clip", text_config={"eos_token_id": 2})
        assert clip.end_id == 49407 and clip.patch_size == 32
        assert clip.embed_dim == clip.text.width == 512
        assert jnp.dtype(clip.dtype) == jnp.float32
        assert len(jax.devices()) == 8
