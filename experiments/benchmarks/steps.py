"""Full training step of a vision-text model, and its input pipeline."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from experiments.benchmarks.timing import Ratio, medians
from meta_opt.data.pipeline import PipelineConfig, make_iterator
from meta_opt.data.sources.clipart import bundled_clipart
from meta_opt.finetuning.objective import single_loss
from meta_opt.finetuning.state import init_state
from meta_opt.finetuning.step import make_train_step
from meta_opt.models.lora import LoRAConfig
from meta_opt.models.vision_text import STACKED
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.parallel.mesh import MeshConfig, make_mesh
from meta_opt.parallel.sharding import FSDP_RULES
from meta_opt.workloads.image_text import image_text_loss
from meta_opt.workloads.image_text_architecture import ModelConfig
from meta_opt.workloads.image_text_data import DataConfig, Splits
from meta_opt.workloads.image_text_model import build_model
from meta_opt.workloads.image_text_preprocessing import read_preprocessing

_SIZE = flags.DEFINE_string("size", "nano", "Model size of the step benchmark.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Batch size of the step benchmark.")
_DTYPE = flags.DEFINE_string("dtype", "float32", "Compute dtype of the step benchmark.")
_ROUNDS = flags.DEFINE_integer("rounds", 12, "Steps timed per optimizer.")


def training_step(
    size: str, name: str, trainable: str
) -> tuple[Callable[[], Any], float]:
    """Returns a training step, and bytes of optimizer state per trained parameter."""
    lora = LoRAConfig(r"(attention/(query|value|out)|mlp/(up|down))/kernel$")
    config = ModelConfig(
        weights="", size=size, trainable=trainable, lora=lora, dtype=_DTYPE.value
    )
    preprocessing = read_preprocessing(config, 16 if size == "nano" else None)
    model = build_model(config, preprocessing)
    tx = make_optimizer(OptimizerConfig(name=name, num_steps=1000, stacked=STACKED))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state = init_state(model.params, model.frozen, tx, mesh, FSDP_RULES, seed=0)
    objective = single_loss(image_text_loss(model))
    step = jax.jit(make_train_step(objective, tx), donate_argnums=0)
    pixels, length = preprocessing.fit.size, preprocessing.text_length
    batch = {
        "image": jnp.zeros((_BATCH.value, pixels, pixels, 3), jnp.uint8),
        "text": jax.random.randint(jax.random.key(1), (_BATCH.value, length), 4, 2048),
        "label": jnp.zeros(_BATCH.value, jnp.int32),
    }
    trained = sum(x.size for x in jax.tree.leaves(model.params))
    nbytes = sum(x.nbytes for x in jax.tree.leaves(state.opt_state))
    held = [state]

    def run() -> Any:
        held[0], metrics = step(held[0], batch)
        return metrics

    return run, nbytes / trained


def bench_step() -> Iterator[Ratio]:
    """Times the full training step."""
    nano = _SIZE.value == "nano"
    for trainable, target in (
        ("all", 1.25 if nano else 1.1),
        ("lora", 1.05 if nano else 1.02),
    ):
        runs = {
            n: training_step(_SIZE.value, n, trainable)[0] for n in ("adamw", "learned")
        }
        ms = medians(runs, _ROUNDS.value)
        label = f"{_SIZE.value} step at batch {_BATCH.value}, {trainable}"
        yield Ratio(
            f"{label}, learned / adamw", ms["learned"], ms["adamw"], "ms", target
        )


def write_pictures(folder: Path, count: int) -> Path:
    """Writes bundled drawings as JPEG files of 500 x 375 pixels, a common photo size.

    Returns the JSONL file of captions.
    """
    images = bundled_clipart("train").images(np.arange(count))
    lines = []
    for i in range(count):
        picture = Image.fromarray(images[i])
        picture.convert("RGB").resize((500, 375)).save(folder / f"{i}.jpg", quality=90)
        lines.append(json.dumps({"image": f"{i}.jpg", "text": f"drawing number {i}"}))
    path = folder / "captions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def bench_input() -> Iterator[Ratio]:
    """Measures images per second of the input pipeline and of a LoRA step."""
    config = ModelConfig(weights="", size=_SIZE.value)
    preprocessing = read_preprocessing(config, 16 if _SIZE.value == "nano" else None)
    pipeline = PipelineConfig(
        text_length=preprocessing.text_length,
        num_threads=os.cpu_count() or 1,
    )
    step = training_step(_SIZE.value, "learned", "lora")[0]
    with tempfile.TemporaryDirectory() as folder:
        data = DataConfig(name=str(write_pictures(Path(folder), 256)))
        source = Splits(data, preprocessing.fit).train()
        batches = make_iterator(source, preprocessing.tokenizer, pipeline, _BATCH.value)
        # Measured one after the other, because they would compete for CPU cores.
        ms = medians({"input": lambda: next(batches)}, _ROUNDS.value)
        ms |= medians({"step": step}, _ROUNDS.value)
    rate = {name: 1e3 * _BATCH.value / time for name, time in ms.items()}
    label = f"{_SIZE.value} at batch {_BATCH.value}, input / LoRA step"
    yield Ratio(label, rate["input"], rate["step"], "images/s", 1.0)


def bench_memory() -> Iterator[Ratio]:
    """Measures bytes of optimizer state per parameter."""
    ours, theirs = (training_step("nano", n, "all")[1] for n in ("learned", "adamw"))
    yield Ratio("state of nano, learned (target: bytes)", ours, theirs, "B/param", None)
