"""Runs of the vision-text model, and the command line in front of them."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest
from commands import run_command
from flax import nnx
from models_small import small_batch, small_model

from meta_opt.evaluators.contrastive import evaluate
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.objective import single_loss
from meta_opt.finetuning.run_config import read_run_config
from meta_opt.finetuning.runs import run
from meta_opt.finetuning.state import init_state
from meta_opt.finetuning.step import make_train_step
from meta_opt.models.lora import LoRAConfig, add_lora
from meta_opt.models.vision_text import STACKED
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from meta_opt.parallel.sharding import VISION_TEXT_RULES
from meta_opt.workloads.contrastive import contrastive_loss
from meta_opt.workloads.image_text import ImageTextConfig
from meta_opt.workloads.image_text_architecture import ModelConfig
from meta_opt.workloads.image_text_data import DataConfig
from meta_opt.workloads.image_text_model import trainable_filter
from meta_opt.workloads.workload import Workload, split_module


@pytest.fixture
def configs():
    return lambda name: importlib.import_module(f"configs.{name}")


class Repeated:
    """One batch, again and again."""

    def __init__(self, batch):
        self.batch = batch

    def __next__(self):
        return self.batch

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def take_steps(model, mesh_config, rules, steps=2):
    mesh = make_mesh(mesh_config)
    tx = make_optimizer(
        OptimizerConfig("sgd", learning_rate=0.1, momentum=0.9, num_steps=4)
    )
    state = init_state(model.params, model.frozen, tx, mesh, rules)
    batch = jax.device_put(small_batch(16), batch_sharding(mesh))
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = (
        jax.jit(
            make_train_step(single_loss(contrastive_loss(model)), tx),
            out_shardings=(shardings, None),
        )
        .lower(state, batch)
        .compile()
    )
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics


@pytest.fixture(scope="module")
def unsharded():
    return take_steps(split_module(small_model()), MeshConfig(), VISION_TEXT_RULES)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(MeshConfig(data=2, fsdp=4), marks=pytest.mark.slow),
        MeshConfig(data=2, fsdp=2, tensor=2),
    ],
    ids=["fsdp", "data-fsdp-tensor"],
)
def test_sharded_training_equals_unsharded(unsharded, mesh):
    # The small model is below the size from which parameters are divided.
    rules = [dataclasses.replace(rule, min_size=0) for rule in VISION_TEXT_RULES]
    state, metrics = take_steps(split_module(small_model()), mesh, rules)
    kernel = state.params["vision"]["layers"]["mlp"]["up"]["kernel"]
    parts = kernel.size // kernel.addressable_shards[0].data.size
    assert parts == mesh.fsdp * mesh.tensor
    np.testing.assert_allclose(metrics["loss"], unsharded[1]["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
        jax.device_get(state.params),
        jax.device_get(unsharded[0].params),
    )


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_a_run_lowers_the_loss_and_leaves_the_frozen_part(trainable, tmp_path):
    module = small_model()
    if trainable == "lora":
        add_lora(module, LoRAConfig(rank=2), rngs=nnx.Rngs(0))
    model = split_module(module, trainable_filter(trainable))
    batch = small_batch(8)
    optimizer = OptimizerConfig("adamw", num_steps=6, learning_rate=0.02)
    workload = Workload(
        params=model.params,
        frozen=model.frozen,
        loss_fn=contrastive_loss(model),
        train_batches=lambda batch_size, seed, rows: Repeated(batch),
        evaluate=lambda params, frozen, split: evaluate(
            model.merge(params, frozen), batch
        ),
    )
    result = run(
        workload,
        make_optimizer(dataclasses.replace(optimizer, stacked=STACKED)),
        LoopConfig(num_steps=6, batch_size=8, eval_every=3, progress=False),
        workdir=tmp_path,
    )
    scores = [r["validation/loss"] for r in result.history if "validation/loss" in r]
    assert len(scores) == 3 and scores[0] > scores[1] > scores[2]
    jax.tree.map(np.testing.assert_array_equal, result.state.frozen, model.frozen)
    assert bool(model.frozen) == (trainable == "lora")
    if trainable == "lora":
        names = {
            jax.tree_util.keystr(path, simple=True, separator="/").split("/")[-2]
            for path, _ in jax.tree_util.tree_flatten_with_path(result.state.params)[0]
        }
        assert names == {"query", "value"}
        # Adapters only.
        size = sum(
            f.stat().st_size for f in tmp_path.glob("checkpoints/6/state/**/d/*")
        )
        frozen = sum(x.nbytes for x in jax.tree.leaves(model.frozen))
        assert size < frozen


@pytest.mark.parametrize(
    ("file", "variant"),
    [
        ("finetune", "nano_clipart"),
        ("finetune", "nano_clipart_lora"),
        ("finetune", "so400m"),
        ("finetune", "so400m_lora"),
        ("finetune", "smoke"),
        ("pretrain", "nano_emoji"),
        ("pretrain", "smoke"),
    ],
)
def test_configs_build(configs, file, variant):
    config = configs(file).get_config(variant)
    built = read_run_config(ImageTextConfig, config.to_dict())
    assert built.loop.batch_size == config.batch_size
    assert built.optimizer.stacked == STACKED
    config.num_steps = 7
    built = read_run_config(ImageTextConfig, config.to_dict())
    assert built.optimizer.num_steps == 7


@pytest.mark.parametrize(
    ("section", "key", "near"),
    [
        ("loop", "evl_every", "eval_every"),
        ("optimizer", "learning_rat", "learning_rate"),
        ("pipeline", "flp", "flip"),
        (None, "optimiser", "optimizer"),
    ],
)
def test_misspelt_key_in_a_config_file_is_an_error(configs, section, key, near):
    config = configs("finetune").get_config("smoke").to_dict()
    (config[section] if section else config)[key] = 1
    with pytest.raises(ValueError, match=f"{key}.*did you mean '{near}'"):
        read_run_config(ImageTextConfig, config)


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("optimizer", "adamw"),
        ("loop", 5),
        ("balancing", "pcgrad"),
        ("meta_loss", "meltr"),
        ("privacy", 8.0),
    ],
)
def test_a_section_that_is_a_value_is_an_error(configs, section, value):
    config = configs("finetune").get_config("smoke").to_dict()
    message = rf"config\.{section} must be settings by name, not {value!r}"
    with pytest.raises(ValueError, match=message):
        read_run_config(ImageTextConfig, {**config, section: value})


def test_bad_names_and_variants(configs):
    with pytest.raises(ValueError, match=r"one of all, lora, .*; did you mean 'lora'"):
        ModelConfig(trainable="lra")
    with pytest.raises(ValueError, match="did you mean 'clipart'"):
        DataConfig(name="clipar")
    with pytest.raises(ValueError, match=r"unknown variant 'nano'.*available: nano"):
        configs("finetune").get_config("nano")
    config = configs("finetune").get_config("smoke").to_dict()
    config["optimizer"]["num_steps"] = 5
    message = r"config.optimizer.num_steps: give config.num_steps instead"
    with pytest.raises(ValueError, match=message):
        read_run_config(ImageTextConfig, config)


def test_misspelt_override_is_an_error_with_the_near_match(tmp_path):
    finished = run_command(
        "finetune",
        "--config=configs/finetune.py:smoke",
        f"--workdir={tmp_path}",
        "--config.optimizer.learning_rat=0.1",
    )
    assert finished.returncode != 0
    message = "config.optimizer has no setting 'learning_rat'; did you mean 'learning_r"
    assert message in finished.stderr


@pytest.mark.slow
def test_experiment_runs_and_exports(tmp_path):
    args = (
        "--config=configs/finetune.py:smoke",
        f"--workdir={tmp_path / 'run'}",
        "--config.model.trainable=lora",
        f"--config.export.path={tmp_path / 'exported'}",
    )
    finished = run_command("finetune", *args)
    assert finished.returncode == 0, finished.stderr
    assert "test zero_shot_macro_f1" in finished.stdout
    assert "parameters train" in finished.stderr
    for name in ("result.json", "config.json", "environment.json", "metrics.jsonl"):
        assert (tmp_path / "run" / name).exists()
    assert (tmp_path / "exported.safetensors").exists()
    again = run_command("finetune", *args)
    assert "resuming" in again.stderr
    assert again.stdout.splitlines()[:12] == finished.stdout.splitlines()[:12]
