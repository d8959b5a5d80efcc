"""Adapters alone: round trips, PEFT's own files, and what does not fit."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models_small import small_model
from safetensors.numpy import load_file

from meta_opt.models import huggingface
from meta_opt.models.adapters import (
    load_adapters,
    load_peft,
    save_adapters,
    save_peft,
)
from meta_opt.models.lora import LoRAConfig, LoRAParam, add_lora

GOLDEN = Path(__file__).parent / "golden"
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


def test_adapters_of_peft_that_are_not_plain_or_not_whole_are_errors(tmp_path):
    def changed(name, **settings):
        folder = Path(shutil.copytree(GOLDEN / "clip" / "adapter", tmp_path / name))
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return folder

    model = huggingface.load(GOLDEN / "clip")
    with pytest.raises(ValueError, match="is not plain LoRA: use_dora=True"):
        load_peft(changed("dora", use_dora=True), model)
    folder = changed("part")
    file = folder / "adapter_model.safetensors"
    from safetensors.numpy import save_file

    tensors = load_file(file)
    part = "base_model.model.text_model.encoder.layers.1.mlp.fc1.lora_A.weight"
    save_file({k: v for k, v in tensors.items() if k != part}, file)
    with pytest.raises(ValueError, match=f"a part of the layers: it lacks {part}"):
        load_peft(folder, model)
    save_file({**tensors, "base_model.model.x.lora_A.weight": tensors[part]}, file)
    with pytest.raises(ValueError, match="layers that the model has not: base_model"):
        load_peft(folder, model)


def test_what_has_no_place_in_peft_is_named(tmp_path):
    model = huggingface.load(GOLDEN / "siglip")
    config = LoRAConfig(pattern="pool/attention/query/kernel")
    add_lora(model, config, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="pool/attention/query/kernel is no linear"):
        save_peft(tmp_path / "x", model, config)
    assert not (tmp_path / "x").exists()
