"""PaliGemma's folders: parity with PyTorch, exact round trips, what is not read.

The golden folder comes from ``tests/golden/renew_huggingface.py``.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import paths
import pytest
from flax import nnx
from generative_small import small_batch, small_model
from models_small import tensors
from safetensors.numpy import save_file

from meta_opt.losses.captioning import captioning_loss
from meta_opt.models import huggingface
from meta_opt.models.adapters import save_peft
from meta_opt.models.decoding import DecodingConfig, generate
from meta_opt.models.generative import Generative, named_config
from meta_opt.models.huggingface.names import paligemma_spelling
from meta_opt.models.huggingface.paligemma import parse_config, write_config
from meta_opt.models.int8 import quantise_base
from meta_opt.models.lora import LoRAConfig, add_lora
from meta_opt.models.parameters import by_path
from meta_opt.parallel.mesh import MeshConfig, make_mesh
from meta_opt.parallel.sharding import GENERATIVE_RULES, parameter_shardings

EXPECTED = paths.GOLDEN / "paligemma"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(EXPECTED, tmp_path / "folder"))


def rewrite(folder, part=None, **changes):
    """Other settings in ``config.json``."""
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    (settings[part] if part else settings).update(changes)
    file.write_text(json.dumps(settings))


def test_outputs_are_those_of_pytorch():
    model, golden = (
        huggingface.load_generative(EXPECTED),
        np.load(EXPECTED / "expected.npz"),
    )
    batch = {name: golden[name] for name in ("image", "prompt", "text")}

    @jax.jit
    def outputs(params):
        model = nnx.merge(graphdef, params)
        logits = model.logits(batch["image"], batch["prompt"], batch["text"])
        return logits, captioning_loss(*model(batch), chunk_length=4)

    graphdef, params = nnx.split(model)
    logits, loss = outputs(params)
    real = batch["text"] != 0
    np.testing.assert_allclose(logits[real], golden["logits"][real], atol=1e-4)
    np.testing.assert_allclose(loss, golden["loss"], atol=1e-5)
    # The rows differ enough for this to mean something.
    assert np.min(np.std(golden["logits"][real], axis=0)) > 0.1


def test_answers_are_those_of_pytorch():
    golden = np.load(EXPECTED / "expected.npz")
    found = generate(
        huggingface.load_generative(EXPECTED),
        golden["image"],
        golden["prompt"],
        DecodingConfig(max_tokens=6),
    )
    np.testing.assert_array_equal(found, golden["written"])
    assert len(set(golden["written"].ravel())) > 10


def test_saved_again_it_is_the_same_to_the_bit(tmp_path):
    model = huggingface.load_generative(EXPECTED)
    huggingface.save(tmp_path, model, max_shard_bytes=30_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    found = tensors(tmp_path)
    golden = {paligemma_spelling(k): v for k, v in tensors(EXPECTED).items()}
    # Under the names of the published checkpoints.
    assert found.keys() == golden.keys()
    for name, tensor in golden.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    again = huggingface.load_generative(tmp_path)
    assert again.config == model.config
    about = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert about["image_seq_length"] == 4


@pytest.mark.parametrize(
    "spelling",
    [
        lambda name: paligemma_spelling(name),
        lambda name: (
            "model."
            + paligemma_spelling(name).replace(
                "language_model.model.", "language_model."
            )
        ),
    ],
    ids=["published", "with model"],
)
def test_names_of_other_versions_are_read(tmp_path, spelling):
    shutil.copy(EXPECTED / "config.json", tmp_path)
    golden = tensors(EXPECTED)
    other = {spelling(name): tensor for name, tensor in golden.items()}
    assert other.keys() != golden.keys()
    embedding = golden["language_model.model.embed_tokens.weight"]
    save_file({**other, "lm_head.weight": embedding}, tmp_path / "model.safetensors")
    found, expected = (
        by_path(huggingface.load_generative(x)) for x in (tmp_path, EXPECTED)
    )
    for path, param in expected.items():
        np.testing.assert_array_equal(found[path][...], param[...], err_msg=path)


def test_sharded_arrays_are_read_in_parts():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    rules = [dataclasses.replace(r, min_size=0) for r in GENERATIVE_RULES]
    # 50 tokens are not divided by four.
    rules[0] = dataclasses.replace(rules[0], spec=("tensor", None))
    sharded = huggingface.load_generative(
        EXPECTED, lambda p: parameter_shardings(rules, mesh, p)[0]
    )
    whole = by_path(huggingface.load_generative(EXPECTED))
    divided = 0
    for path, param in by_path(sharded).items():
        np.testing.assert_array_equal(param[...], whole[path][...], err_msg=path)
        divided += not param[...].sharding.is_fully_replicated
    assert divided > 20


def test_types_and_resolution_can_be_others():
    model = huggingface.load_generative(
        EXPECTED, image_size=32, param_dtype="bfloat16", dtype="bfloat16"
    )
    assert {str(p.dtype) for p in by_path(model).values()} == {"bfloat16"}
    assert len(model.vision.positions[...]) == 16


def test_what_is_not_plain_is_not_written(tmp_path):
    model = huggingface.load_generative(EXPECTED)
    add_lora(model, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="merge the LoRA adapters before saving"):
        huggingface.save(tmp_path / "new", model)
    with pytest.raises(ValueError, match="query/kernel is of PaliGemma"):
        save_peft(tmp_path / "new", model, LoRAConfig())
    plain = huggingface.load_generative(EXPECTED)
    quantise_base(plain)
    with pytest.raises(ValueError, match="restore_base before saving"):
        huggingface.save(tmp_path / "new", plain)
    other = nnx.eval_shape(
        lambda: Generative(
            dataclasses.replace(plain.config, patch_bias=False), rngs=nnx.Rngs(0)
        )
    )
    with pytest.raises(ValueError, match="is not PaliGemma's: patch_bias"):
        huggingface.save(tmp_path / "new", other)
    assert not (tmp_path / "new").exists()


def test_any_generative_model_can_be_written(tmp_path):
    model, batch = small_model(), small_batch()
    huggingface.save(tmp_path, model)
    again = huggingface.load_generative(tmp_path)
    # Beyond the vocabulary, since the model has no token for patches.
    assert again.config == dataclasses.replace(model.config, image_id=32)
    np.testing.assert_array_equal(
        *(m.hidden(batch["image"], None, batch["text"]) for m in (model, again))
    )


def test_the_published_config_is_3b():
    """What ``config.json`` of the published checkpoint at 224 pixels says."""
    given = {
        "model_type": "paligemma",
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "hidden_size": 2048,
        "image_token_index": 257152,
        "projection_dim": 2048,
        "text_config": {
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "model_type": "gemma",
            "num_attention_heads": 8,
            "num_hidden_layers": 18,
            "num_image_tokens": 256,
            "num_key_value_heads": 1,
            "vocab_size": 257216,
        },
        "vision_config": {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "num_image_tokens": 256,
            "patch_size": 14,
            "projection_dim": 2048,
            "vision_use_head": False,
        },
    }
    assert parse_config(given) == named_config("3B/14")
    assert parse_config(write_config(named_config("3B/14"))) == named_config("3B/14")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_config", {"model_type": "gemma2"}, "text_config.model_type='gemma2'"),
        ("text_config", {"attention_bias": True}, "attention_bias=True must be False"),
        (None, {"tie_word_embeddings": False}, "tie_word_embeddings=False must be"),
        (None, {"projection_dim": 8}, "projection_dim=8 must be 24"),
        (None, {"text_config": None}, "it has no text_config"),
        ("text_config", {"hidden_act": "relu"}, "hidden_act='relu' must be one of"),
        (None, {"model_type": "blip"}, "model_type 'blip'; paligemma can be read"),
        (
            "text_config",
            {"rope_parameters": {"rope_type": "linear"}},
            "rope_type='linear' must be 'default'",
        ),
        (
            "text_config",
            {"num_hidden_layers": 3},
            r"it lacks language_model.model.layers.2.self_attn",
        ),
        (
            "text_config",
            {"vocab_size": 51},
            r"embed_tokens.weight \[50, 24\] instead of \[51, 24\]",
        ),
    ],
)
def test_other_models_than_the_config_says_are_named(folder, part, changes, message):
    rewrite(folder, part, **changes)
    with pytest.raises(ValueError, match=message):
        huggingface.load_generative(folder)


def test_a_folder_of_the_other_kind_names_the_function_that_reads_it():
    with pytest.raises(ValueError, match=r"'paligemma'.*load_generative"):
        huggingface.load(EXPECTED)
    with pytest.raises(ValueError, match=r"model_type 'clip', which `load` reads"):
        huggingface.load_generative(EXPECTED.parent / "clip")
