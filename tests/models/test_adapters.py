"""Adapters alone: round trips, PEFT's own files, and what does not fit."""

import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models_small import forward, small_model
from paths import GOLDEN
from safetensors.numpy import load_file, save_file

from meta_opt.models import huggingface
from meta_opt.models.adapters import (
    load_adapters,
    load_peft,
    save_adapters,
    save_peft,
)
from meta_opt.models.int8 import quantise_base
from meta_opt.models.lora import LoRAConfig, LoRAParam, add_lora, merge_lora

CONFIG = LoRAConfig(pattern=r"(query|mlp/up|projection)/kernel$", rank=2, rs_lora=True)


def adapters(model):
    flat = nnx.to_flat_state(nnx.state(model, LoRAParam))
    return {"/".join(path): np.asarray(param[...]) for path, param in flat}


def adapted():
    model = small_model()
    add_lora(model, CONFIG, rngs=nnx.Rngs(1))
    for i, (_, param) in enumerate(nnx.to_flat_state(nnx.state(model, LoRAParam))):
        rng = np.random.default_rng(i)
        param[...] = jnp.asarray(rng.normal(size=param.shape), jnp.float32)
    return model


def equal(a, b):
    assert a.keys() == b.keys() and a
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_round_trip(tmp_path):
    model = adapted()
    save_adapters(tmp_path, model, CONFIG)
    assert {x.name for x in tmp_path.iterdir()} == {
        "adapters.json",
        "adapters.safetensors",
    }
    other = small_model()
    assert load_adapters(tmp_path, other) == CONFIG
    equal(adapters(other), adapters(model))
    with pytest.raises(ValueError, match="has adapters already"):
        load_adapters(tmp_path, other)
    with pytest.raises(ValueError, match="adapters of another model: text/layers/"):
        load_adapters(tmp_path, huggingface.load(GOLDEN / "clip"))
    with pytest.raises(ValueError, match="no adapters to save"):
        save_adapters(tmp_path / "none", small_model(), CONFIG)


def test_damage_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no adapters.json"):
        load_adapters(tmp_path, small_model())
    save_adapters(tmp_path, adapted(), CONFIG)
    file = tmp_path / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"adapters.safetensors is damaged: its SHA"):
        load_adapters(tmp_path, small_model())


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_adapters_of_peft_do_what_they_do_there(kind, tmp_path):
    folder = GOLDEN / kind / "adapter"
    batch = dict(np.load(GOLDEN / kind / "expected.npz"))
    golden = np.load(folder / "expected.npz")["logits"]
    model = huggingface.load(GOLDEN / kind)
    config = load_peft(folder, model)
    assert (config.rank, config.alpha, config.rs_lora) == (3, 6.0, kind == "siglip")
    image, text, scale, bias = nnx.jit(lambda m, b: m(b))(model, batch)
    logits = scale * image @ text.T + (bias if kind == "siglip" else 0.0)
    np.testing.assert_allclose(logits, golden, atol=1e-4)
    assert np.max(np.abs(golden - batch["logits"])) > 0.05

    save_peft(tmp_path, model, config, base_model="somewhere")
    mine, theirs = (
        load_file(x / "adapter_model.safetensors") for x in (tmp_path, folder)
    )
    equal(mine, theirs)
    about, original = (
        json.loads((x / "adapter_config.json").read_text()) for x in (tmp_path, folder)
    )
    for key in ("peft_type", "r", "lora_alpha", "use_rslora", "bias"):
        assert about[key] == original[key], key
    again = huggingface.load(GOLDEN / kind)
    load_peft(tmp_path, again)
    equal(adapters(again), adapters(model))


@pytest.fixture(scope="module")
def clip():
    """The model of the further adapters, and what it computes without them."""
    batch = dict(np.load(GOLDEN / "clip" / "expected.npz"))
    return huggingface.load(GOLDEN / "clip"), batch


def logits_of(model, batch):
    image, text, scale, _ = forward(model, batch)
    return np.asarray(scale * image @ text.T)


@pytest.mark.parametrize("name", ["pissa", "olora", "patterns", "regex"])
def test_every_start_and_pattern_of_peft_does_what_it_does_there(name, clip, tmp_path):
    folder = GOLDEN / "clip" / f"adapter_{name}"
    golden = np.load(folder / "expected.npz")["logits"]
    base, batch = clip
    model = nnx.clone(base)
    config = load_peft(folder, model)
    np.testing.assert_allclose(logits_of(model, batch), golden, atol=1e-4)
    assert np.max(np.abs(golden - batch["logits"])) > 0.05
    # What PiSSA and OLoRA took off the kernels is the second half of the adapters.
    assert config.rank == (6 if name in ("pissa", "olora") else 3)
    # Written again they are plain ones of the same effect.
    save_peft(tmp_path, model, config)
    again = nnx.clone(base)
    load_peft(tmp_path, again)
    np.testing.assert_allclose(logits_of(again, batch), golden, atol=1e-4)
    # The kernels stayed, so that merging gives the model that PEFT would merge.
    kernel = ("vision", "layers", "attention", "query", "kernel")
    for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if path == kernel:
            np.testing.assert_array_equal(
                param[...], base.vision.layers.attention.query.kernel[...]
            )
    merge_lora(model)
    np.testing.assert_allclose(logits_of(model, batch), golden, atol=1e-4)


def peft_folder(folder, **settings):
    """The plain adapters of the CLIP, with other settings."""
    shutil.copytree(GOLDEN / "clip" / "adapter", folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "not plain LoRA: use_dora=True"),
        ({"bias": "lora_only"}, "not plain LoRA: bias='lora_only'"),
        ({"fan_in_fan_out": True}, "not plain LoRA: fan_in_fan_out=True"),
        ({"lora_bias": True}, "not plain LoRA: lora_bias=True"),
        ({"modules_to_save": ["text_projection"]}, r"modules_to_save=\['text_proj"),
        ({"layer_replication": [[0, 2]]}, r"layer_replication=\[\[0, 2\]\]"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices="),
        ({"use_qalora": True}, "use_qalora=True"),
        ({"kasa_config": {"beta": 1}}, "kasa_config="),
        ({"invented_in_2031": 0.5}, r"not plain LoRA: invented_in_2031=0\.5"),
        ({"peft_type": "LOHA"}, "peft_type='LOHA' is not LORA"),
        ({"init_lora_weights": "corda"}, "='corda' changed the kernels .*conversion"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq' changed"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights='lora_ga' changed"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changed"),
        ({"r": 0}, "r=0 must be a positive integer"),
        ({"alpha_pattern": {"fc1": None}}, "fc1=None must be a number above 0"),
        ({"r": 4}, r"k_proj|q_proj has rank 3, and adapter_config.json says 4"),
        ({"rank_pattern": {"fc1": 5}}, r"fc1 has rank 3, .* says 5 \(r, rank_pat"),
        ({"target_modules": ["fc1"]}, "leaves out: base_model.*q_proj"),
        ({"target_modules": ["fc1", "q_proj", "v_proj"]}, "it lacks .*v_proj"),
        ({"layers_to_transform": [0]}, r"leaves out: base_model.*layers\.1"),
    ],
)
def test_settings_of_peft_that_are_not_applied_are_named(
    tmp_path, clip, settings, message
):
    model = nnx.clone(clip[0])
    folder = peft_folder(tmp_path / "x", **settings)
    with pytest.raises(ValueError, match=f"^{re.escape(str(folder))}.*({message})"):
        load_peft(folder, model)
    assert not adapters(model)


def test_factors_of_two_ranks_are_named(tmp_path, clip):
    folder = peft_folder(tmp_path / "x")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(key for key in tensors if "lora_A" in key)
    tensors[name] = np.ascontiguousarray(tensors[name][:-1])
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"has rank 3, and adapter_config\.json says"):
        load_peft(folder, nnx.clone(clip[0]))


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": False, "lora_dropout": 0.1, "task_type": "X"},
        {"alpha_pattern": {"nowhere": 3}, "layers_pattern": "layers"},
    ],
)
def test_settings_of_peft_without_effect(tmp_path, clip, settings):
    batch = clip[1]
    model = nnx.clone(clip[0])
    load_peft(peft_folder(tmp_path / "x", **settings), model)
    golden = np.load(GOLDEN / "clip" / "adapter" / "expected.npz")["logits"]
    np.testing.assert_allclose(logits_of(model, batch), golden, atol=1e-4)


def test_what_pissa_subtracted_is_not_known_of_int8(clip):
    model = nnx.clone(clip[0])
    quantise_base(model)
    with pytest.raises(ValueError, match=r"'pissa' of .*in int8; put the adapters"):
        load_peft(GOLDEN / "clip" / "adapter_pissa", model)


def test_adapters_of_peft_that_are_not_whole_are_errors(tmp_path):
    model = huggingface.load(GOLDEN / "clip")
    folder = peft_folder(tmp_path / "part")
    file = folder / "adapter_model.safetensors"
    from safetensors.numpy import save_file

    tensors = load_file(file)
    part = "base_model.model.text_model.encoder.layers.1.mlp.fc1.lora_A.weight"
    save_file({k: v for k, v in tensors.items() if k != part}, file)
    with pytest.raises(ValueError, match=f"a part of the layers: it lacks {part}"):
        load_peft(folder, model)
    save_file({**tensors, "base_model.model.x.lora_A.weight": tensors[part]}, file)
    with pytest.raises(
        ValueError, match=r"layers that the model has not or .*out: base_model"
    ):
        load_peft(folder, model)


def test_what_has_no_place_in_peft_is_named(tmp_path):
    model = huggingface.load(GOLDEN / "siglip")
    config = LoRAConfig(pattern="pool/attention/query/kernel")
    add_lora(model, config, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="pool/attention/query/kernel is not a linear"):
        save_peft(tmp_path / "x", model, config)
    assert not (tmp_path / "x").exists()
