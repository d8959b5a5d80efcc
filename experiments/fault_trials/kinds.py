"""Small runs of every kind, which take seconds each."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.fault_trials.commands import Command
from meta_opt.text_files import write_json, write_jsonl
from meta_opt.types import write_atomic

_PICTURES = 40
_SIDE = 64


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        command: maps the run's own folder and the folder that all runs share to the
            command, which writes only to its own folder.
        prepare: maps the shared folder to the command that prepares data in it; None
            if the run needs no such data.
    """

    command: Callable[[Path, Path], Command]
    prepare: Callable[[Path], Command] | None = None


def write_pictures(shared: Path) -> Path:
    """Writes images with captions, unless they exist; returns the JSONL file."""
    file = shared / "pictures" / "captions.jsonl"
    if file.is_file():
        return file
    rng = np.random.default_rng(0)
    lines = []
    for i in range(_PICTURES):
        pixels = rng.integers(0, 256, (_SIDE // 8, _SIDE // 8, 3), np.uint8)
        picture = Image.fromarray(pixels).resize((_SIDE, _SIDE))
        with write_atomic(file.parent / f"{i}.png") as temporary:
            picture.save(temporary, format="png")
        lines.append({"image": f"{i}.png", "text": f"drawing number {i}"})
    write_jsonl(file, lines)
    write_json(file.parent / "about.json", {"pictures": _PICTURES})
    return file


def _image_text(*arguments: str) -> Kind:
    """Returns a run of ``configs/finetune.py``, which saves every other step."""

    def command(folder: Path, shared: Path) -> Command:
        return Command(
            "experiments.finetune",
            (
                "--config=configs/finetune.py:smoke",
                f"--workdir={folder / 'run'}",
                f"--config.data.name={shared / 'pictures' / 'captions.jsonl'}",
                "--config.data.held_out=0.2",
                "--config.batch_size=4",
                "--config.num_steps=8",
                "--config.loop.log_every=1",
                f"--config.export.path={folder / 'exported'}",
                *arguments,
            ),
        )

    return Kind(command)


def _inputs(config: str, section: str, *arguments: str) -> Kind:
    """Returns a smoke run on encoders; all runs share the cached lower features."""

    def command(folder: Path, shared: Path) -> Command:
        return Command(
            "experiments.finetune",
            (
                f"--config=configs/{config}.py:smoke",
                f"--workdir={folder / 'run'}",
                f"--config.{section}.feature_cache_dir={shared / 'features'}",
                "--config.optimizer.name=adamw",
                *arguments,
            ),
        )

    return Kind(command)


def _progressive() -> Kind:
    def prepare(shared: Path) -> Command:
        return Command(
            "experiments.few_shot_data",
            (
                "--config=configs/few_shot_data.py:smoke",
                f"--config.out={shared / 'few_shot'}",
            ),
        )

    def command(folder: Path, shared: Path) -> Command:
        return Command(
            "experiments.progressive",
            (
                "--config=configs/progressive.py:smoke",
                f"--config.study.folder={shared / 'few_shot'}",
                f"--workdir={folder / 'run'}",
                "--config.loop.checkpoint_every=2",
                "--config.optimizers.learned.name=hand_designed",
            ),
        )

    return Kind(command, prepare)


def _meta_train(folder: Path, shared: Path) -> Command:
    return Command(
        "experiments.meta_train",
        (
            "--config=configs/meta_train.py:smoke",
            "--config.meta.checkpoint_every=1",
            "--config.meta.longest=((0,10),)",
            f"--workdir={folder / 'run'}",
            f"--config.export={folder / 'theta'}",
        ),
    )


def _direct_search(folder: Path, shared: Path) -> Command:
    return Command(
        "experiments.direct_search",
        (
            "--config=configs/direct_search.py:smoke",
            "--config.search.generations=4",
            f"--workdir={folder / 'run'}",
            f"--config.export={folder / 'theta'}",
        ),
    )


def _table_cell(folder: Path, shared: Path) -> Command:
    return Command(
        "experiments.reproduce_tables",
        (
            "--config=configs/tables.py:smoke",
            "--only=adamw",
            f"--config.results={folder / 'results'}",
            f"--workdir={folder / 'run'}",
            "--config.tasks.tuxpaint_trimodal.inputs.feature_cache_dir="
            f"{shared / 'features'}",
        ),
    )


def _baseline_search(folder: Path, shared: Path) -> Command:
    return Command(
        "experiments.tune_baselines",
        (
            "--config=configs/tune.py:smoke",
            "--config.search.num_trials=4",
            f"--config.base.data.name={shared / 'pictures' / 'captions.jsonl'}",
            "--config.base.data.held_out=0.2",
            "--config.base.batch_size=4",
            f"--config.results={folder / 'results.json'}",
            f"--workdir={folder / 'run'}",
        ),
    )


KINDS: dict[str, Kind] = {
    "finetune_full": _image_text("--config.optimizer.name=adamw"),
    "finetune_lora": _image_text(
        "--config.model.trainable=lora",
        "--config.model.lora.pattern=(attention/(query|value)|mlp/up)/kernel$",
        "--config.optimizer.name=adamw",
        "--config.pipeline.flip=True",
    ),
    "captions": _image_text(
        "--config.model.size=nano-generative",
        "--config.model.loss=captioning",
        "--config.data.prompt=caption",
        "--config.pipeline.prompt_length=4",
        "--config.optimizer.name=adamw",
    ),
    "multimodal": _inputs("multimodal", "inputs"),
    "meltr": _inputs("meltr", "clips"),
    "progressive": _progressive(),
    "meta_training": Kind(_meta_train),
    "direct_search": Kind(_direct_search),
    "table_cell": Kind(_table_cell),
    "baseline_search": Kind(_baseline_search),
}
"""Kinds of runs by name, in the order of the trials."""
