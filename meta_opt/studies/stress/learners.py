"""Training runs of a stress test: classifiers or generative models on changed data.

A learner has the settings of a run of `meta_opt.workloads.classification` (with
``pictures``) or of `meta_opt.workloads.image_text`; the stress test sets data, length,
seed and export.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.data.preprocessing.label_noise import noisy_labels
from meta_opt.data.preprocessing.shots import few_shots
from meta_opt.data.records import SPLITS
from meta_opt.data.sources.few_shot.files import answer_of
from meta_opt.data.sources.few_shot.stored import StoredFewShot
from meta_opt.finetuning.run_config import RunConfig, read_run_config
from meta_opt.finetuning.runs import finetune
from meta_opt.optimizers.registry import make_optimizer
from meta_opt.optimizers.weights import weights_digest
from meta_opt.studies.progressive.predictions import lengths_of
from meta_opt.studies.stress.conditions import Condition
from meta_opt.studies.stress.held_out import read_pictures
from meta_opt.text_files import plain_json, write_jsonl
from meta_opt.types import check_mapping
from meta_opt.workloads.classification import ClassificationConfig
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.image_text import ImageTextConfig

_DECIDED = {
    "num_steps": "training.epochs and its neighbours decide it",
    "seed": "training.seeds decide it",
    "export": "a stress test keeps the models that it tests",
    "meta_loss": "a category is one loss",
    "balancing": "a category is one loss of one picture",
}
_OF_DATA = {
    "pictures": ("task", "image_size"),
    "data": ("name", "validation", "test"),
}
_PATHS = {
    "pictures": ("task", "data_dir", "feature_cache_dir"),
    "data": ("name", "validation", "test", "data_dir"),
}


@dataclasses.dataclass(frozen=True)
class Learner:
    """The settings of training runs.

    Attributes:
        name: name in tables.
        run: settings of a run; length, data, seed and export are filled in.
    """

    name: str
    run: RunConfig

    @property
    def classifies(self) -> bool:
        """Whether the model has a classification head and takes no prompt."""
        return isinstance(self.run.workload, ClassificationConfig)

    @property
    def batch_size(self) -> int:
        """Batch size of a run without changes."""
        return self.run.loop.batch_size

    @property
    def processor(self) -> str:
        """Folder of the tokenizer that the exported models need; "" for none."""
        return "" if self.classifies else self.run.workload.model.folder

    def check_width(self, px: int) -> None:
        """Raises ValueError if the model cannot be trained on images of this width."""
        if self.classifies:
            dataclasses.replace(self.run.workload.pictures, image_size=px)


def read_learner(name: str, settings: Mapping[str, Any], where: str) -> Learner:
    """Builds a learner from settings.

    Args:
        name: name in tables.
        settings: settings of a run, see `read_run_config`, with ``batch_size``.
        where: name of the mapping, for error messages.

    Raises:
        ValueError: unknown keys, values out of range, settings that the test sets, or a
            model that is neither a classifier nor generative.
    """
    check_mapping(where, settings)
    for section in _OF_DATA:
        check_mapping(f"{where}.{section}", settings.get(section, {}))
    for key, why in _DECIDED.items():
        if settings.get(key):
            raise ValueError(f"{where}.{key}: {why}")
    settings = dict(settings)
    workload: Any = ImageTextConfig
    if "pictures" in settings:
        workload = ClassificationConfig
        # A placeholder; the task is filled in for each run.
        settings["pictures"] = {"task": "", **settings["pictures"]}
    for section, keys in _OF_DATA.items():
        for key in keys:
            if settings.get(section, {}).get(key):
                raise ValueError(
                    f"{where}.{section}.{key}: data.folder determines the data; leave "
                    "it out"
                )
    run = read_run_config(workload, settings, where)
    if run.loop.batch_size < 1:
        raise ValueError(f"{where}.batch_size={run.loop.batch_size} must be at least 1")
    if workload is ImageTextConfig and run.workload.model.loss != "captioning":
        raise ValueError(
            f"{where}.model.loss={run.workload.model.loss!r}: a model that writes "
            "answers is trained with 'captioning'"
        )
    # Raises for a misspelt name before the first run.
    make_optimizer(dataclasses.replace(run.optimizer, num_steps=1))
    return Learner(name, run)


@dataclasses.dataclass(frozen=True)
class Examples:
    """The data of a run, by split.

    Attributes:
        rows: (key, file, label) of the examples, by split.
        classes: names of the K classes.
        prompt: prompt, the same for all examples.
    """

    rows: Mapping[str, Sequence[tuple[str, Path, str]]]
    classes: tuple[str, ...]
    prompt: str

    def changed(self, condition: Condition) -> "Examples":
        """Returns the examples with the number of shots and label noise of a condition.

        Raises:
            ValueError: a class has fewer examples than shots.
        """
        rows = list(self.rows["train"])
        keys = [key for key, _, _ in rows]
        labels = np.asarray([self.classes.index(label) for _, _, label in rows])
        if condition.shots:
            kept = few_shots(labels, keys, condition.shots)
            rows = [rows[i] for i in kept]
        elif condition.label_noise:
            noisy = noisy_labels(labels, keys, condition.label_noise, len(self.classes))
            rows = [
                (key, file, self.classes[label])
                for (key, file, _), label in zip(rows, noisy, strict=True)
            ]
        return dataclasses.replace(self, rows={**self.rows, "train": rows})

    def write(self, folder: Path) -> None:
        """Writes ``pictures.jsonl`` for classifiers, or a file for each split."""
        folder.mkdir(parents=True, exist_ok=True)
        start = folder.resolve()
        every = []
        for split, rows in self.rows.items():
            lines = []
            for _, file, label in rows:
                image = Path(os.path.relpath(file.resolve(), start)).as_posix()
                known = {"image": image, "label": label, "split": split}
                every.append(known)
                target = answer_of(label)
                lines.append({**known, "prompt": self.prompt, "target": target})
            write_jsonl(folder / f"{split}.jsonl", lines)
        write_jsonl(folder / "pictures.jsonl", every)


def read_training(data: StoredFewShot, prompt: str) -> Examples:
    """Reads the examples of all phases, at the data's width.

    Raises:
        FileNotFoundError: missing files; the message has the command that writes them.
        ValueError: a sample has no image or label, or a label is not among the classes.
    """
    files = {split: data.held_out(split) for split in SPLITS[1:]}
    files = {"train": data.train(data.phases, cumulative=True), **files}
    found = {s: read_pictures([path], data.classes) for s, path in files.items()}
    rows = {
        split: list(zip(x.keys, x.files, x.labels, strict=True))
        for split, x in found.items()
    }
    return Examples(rows, data.classes, prompt)


def run_of(
    learner: Learner,
    folder: Path,
    examples: Examples,
    px: int,
    seed: int,
    batch_size: int,
    steps: int,
    features: str = "",
) -> RunConfig:
    """Returns the settings of a run.

    Args:
        learner: the learner.
        folder: folder of the run, with ``data`` written by `Examples.write`; the
            trained model is exported to ``model``.
        examples: the written examples.
        px: width of the images in pixels.
        seed: random seed of the run.
        batch_size: batch size.
        steps: number of steps.
        features: folder of cached outputs of frozen stages; "" keeps them in memory.
    """
    data, run = folder / "data", learner.run
    workload: Any
    if learner.classifies:
        pictures = dataclasses.replace(
            run.workload.pictures,
            task=str(data / "pictures.jsonl"),
            image_size=px,
            feature_cache_dir=features,
        )
        workload = dataclasses.replace(run.workload, pictures=pictures)
    else:
        paths = {split: str(data / f"{split}.jsonl") for split in SPLITS}
        source = dataclasses.replace(
            run.workload.data,
            name=paths["train"],
            validation=paths["validation"],
            test=paths["test"],
        )
        prompt, answer = lengths_of(
            [examples.prompt], examples.classes, run.workload.preprocessing()
        )
        pipeline = dataclasses.replace(
            run.workload.pipeline, prompt_length=prompt, text_length=answer
        )
        workload = dataclasses.replace(run.workload, data=source, pipeline=pipeline)
    loop = dataclasses.replace(
        run.loop,
        num_steps=steps,
        batch_size=batch_size,
        seed=seed,
        # Only the parameters after the last step are used.
        eval_every=steps,
        checkpoint_every=max(1, steps // 4),
    )
    return dataclasses.replace(
        run,
        workload=workload,
        loop=loop,
        optimizer=dataclasses.replace(run.optimizer, num_steps=steps),
        export=ExportConfig(str(folder / "model")),
    )


def setup_of(run: RunConfig) -> dict[str, Any]:
    """Returns the settings that a run's outcome depends on, without paths, as JSON."""
    settings = plain_json(run.settings())
    for section, keys in _PATHS.items():
        for key in keys:
            settings.get(section, {}).pop(key, None)
    for key in ("export", "mesh"):
        settings.pop(key, None)
    for key in run.loop.idle_settings:
        del settings["loop"][key]
    if run.optimizer.name == "learned":
        settings["learned"] = weights_digest(run.optimizer.weights)
    return settings


def train(run: RunConfig, folder: Path) -> None:
    """Trains and exports a model; resumes an interrupted run.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after saving.
        ValueError: settings and data are incompatible, or the folder has a run with
            other settings.
    """
    finetune(run, folder / "run")
