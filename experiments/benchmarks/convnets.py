"""Time that cached features of frozen stages save in training an image classifier."""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image

from experiments.benchmarks.timing import Ratio, medians
from meta_opt.data.preprocessing.augment import AugmentConfig
from meta_opt.finetuning.objective import single_loss
from meta_opt.finetuning.state import init_state
from meta_opt.finetuning.step import make_train_step
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.parallel.mesh import MeshConfig, make_mesh
from meta_opt.workloads.classification import (
    ClassificationConfig,
    PicturesConfig,
)
from meta_opt.workloads.classification_network import NetworkConfig
from meta_opt.workloads.workload import Workload

_NETWORK = flags.DEFINE_string(
    "network", "resnet50", "Network of the convnet benchmark."
)
_PIXELS = flags.DEFINE_integer(
    "pixels", 100, "Image side of the convnet benchmark in pixels."
)
_PICTURES = flags.DEFINE_integer("pictures", 16, "Batch size of the convnet benchmark.")
_EPOCH_ROUNDS = flags.DEFINE_integer(
    "epoch_rounds", 5, "Epochs timed per variant in the convnet benchmark."
)
_CLASSES, _STEPS = 4, 2
"""Number of classes, and of training steps per epoch. The validation split has a
quarter as many images as the training split."""


def _write_pictures(folder: Path, batch: int) -> Path:
    """Writes images of noise with labels for three splits; returns the JSONL file."""
    rng = np.random.default_rng(0)
    counts = {"train": _STEPS * batch, "validation": batch // 2, "test": _CLASSES}
    lines = []
    for split, count in counts.items():
        for i in range(count):
            name = f"{split}-{i}.png"
            pixels = rng.integers(0, 256, (_PIXELS.value, _PIXELS.value, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name)
            lines.append({"image": name, "label": i % _CLASSES, "split": split})
    path = folder / "pictures.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return path


def _epoch(workload: Workload, batch: int) -> Callable[[], Any]:
    """Returns a function that trains for an epoch and evaluates on validation."""
    tx = make_optimizer(
        OptimizerConfig("adam", 1000, clip_norm=1.0, rate_factors=((r"^head/", 10.0),))
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    state = init_state(workload.params, workload.frozen, tx, mesh)
    step = jax.jit(make_train_step(single_loss(workload.loss_fn), tx), donate_argnums=0)
    batches = workload.train_batches(batch)
    held = [state]

    def run() -> Any:
        for _ in range(_STEPS):
            held[0], _ = step(held[0], next(batches))
        assert workload.evaluate is not None
        return workload.evaluate(held[0].params, held[0].frozen, "validation")

    return run


def bench_convnets() -> Iterator[Ratio]:
    """Times an epoch with fresh augmented views, and with cached ones.

    The cache is already filled, as in all trials of a search after the first.
    """
    batch = _PICTURES.value
    with tempfile.TemporaryDirectory() as folder:
        task = _write_pictures(Path(folder), batch)
        runs = {}
        for name, views in (("fresh", 0), ("cached", 2)):
            pictures = PicturesConfig(
                str(task),
                image_size=_PIXELS.value,
                augment=AugmentConfig(flip=True, rotate_degrees=15.0, jitter=0.2),
                augmented_views=views,
                feature_cache_dir=folder,
            )
            config = ClassificationConfig(pictures, NetworkConfig(_NETWORK.value))
            runs[name] = _epoch(config.build(), batch)
        ms = medians(runs, _EPOCH_ROUNDS.value)
    what = f"{_NETWORK.value} at {_PIXELS.value} px, epoch, fresh / cached features"
    yield Ratio(what, ms["fresh"], ms["cached"], "ms", None)
