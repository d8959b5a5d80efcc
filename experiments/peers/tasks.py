"""Classification tasks of texts or images as CSV files, with the encoder's folder."""

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from PIL import Image

from meta_opt.data.catalog.encoder_weights import encoder_folder
from meta_opt.data.records import SPLITS
from meta_opt.tasks.foreign.data import root_of
from meta_opt.tensor_files import read_tensors
from meta_opt.text_files import write_json
from meta_opt.types import check_name, write_atomic

BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
"""Configuration of MiniLM, whose package has no ``config.json``."""

IMAGE_SIZE = 224
"""Side of the image files in pixels."""
EFFICIENTNET = {
    "architectures": ["TimmWrapperForImageClassification"],
    "model_type": "timm_wrapper",
    "architecture": "tf_efficientnet_lite0",
    "num_classes": 1000,
    "num_features": 1280,
    "pretrained_cfg": {
        "input_size": [3, IMAGE_SIZE, IMAGE_SIZE],
        "mean": [127 / 255] * 3,
        "std": [128 / 255] * 3,
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "first_conv": "conv_stem",
        "classifier": "classifier",
    },
}
"""Configuration of EfficientNet-Lite0 for timm, transformers and AutoGluon."""
_REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each of its stages."""

Rows = Sequence[tuple[Any, str]]


def _docstrings(folder: str | None) -> Rows:
    """Docstring summaries in SciPy and scikit-learn; classes are ten subpackages."""
    from meta_opt.tasks.foreign.data import docstrings
    from meta_opt.tasks.foreign.docstrings_linen import LABELS

    return [row for row in docstrings(("scipy", "sklearn")) if row[1] in LABELS]


def _sayings(folder: str | None) -> Rows:
    """Debian's fortunes; classes are twenty subjects."""
    from meta_opt.tasks.foreign.data import sayings
    from meta_opt.tasks.foreign.sayings_head import SUBJECTS

    return [row for row in sayings(folder) if row[1] in SUBJECTS]


def _titles(folder: str | None) -> Rows:
    """Titles of Open Clip Art's drawings; classes are their categories."""
    rows: dict[str, str] = {}
    for text, label in _clipart(folder, "text", 32):
        rows.setdefault(text, label)
    return [row for row in rows.items() if row[0]]


def _drawings(folder: str | None) -> Rows:
    """Open Clip Art's drawings; classes are their categories."""
    return _clipart(folder, "image", IMAGE_SIZE)


def _clipart(folder: str | None, modality: str, side: int) -> Rows:
    from meta_opt.data.sources.multimodal import find_task, read_split

    name = "clipart_category"
    rows = []
    for split in SPLITS:
        part = read_split(find_task(name), name, split, folder, side)
        names = [part.class_names[i] for i in part.label]
        rows += zip(part.inputs()[modality], names, strict=True)
    return rows


@dataclasses.dataclass(frozen=True)
class PeerTask:
    """A classification task.

    Attributes:
        read: function from the folder of the data to (input, class) pairs, in a fixed
            order.
        column: ``text``, for inputs that are strings; or ``image``, for uint8 arrays
            [h, w, 3].
    """

    read: Callable[[str | None], Rows]
    column: str = "text"


TASKS: dict[str, PeerTask] = {
    "docstrings": PeerTask(_docstrings),
    "sayings": PeerTask(_sayings),
    "titles": PeerTask(_titles),
    "drawings": PeerTask(_drawings, "image"),
}
"""Tasks by name."""


def write_task(
    name: str, counts: Sequence[int], folder: Path, data_dir: str | None
) -> dict[str, list[str]]:
    """Writes ``train.csv``, ``validation.csv``, ``test.csv`` and ``encoder``.

    Args:
        name: name of the task.
        counts: number of examples of each split.
        folder: output folder; ``encoder`` in it is MiniLM's folder, or for images
            EfficientNet-Lite0's. Images are PNG files, with absolute paths in the CSV.
        data_dir: folder of the data that `meta_opt.data.prepare` wrote.

    Returns:
        The classes of each split's examples.

    Raises:
        MissingDataError: the data are not prepared.
        ValueError: an unknown task, or more examples requested than available.
    """
    check_name("config.tasks", name, TASKS)
    task = TASKS[name]
    rows = task.read(data_dir)
    if sum(counts) > len(rows):
        raise ValueError(
            f"config.tasks.{name} = {tuple(counts)}: there are {len(rows)} examples"
        )
    order = iter(np.random.default_rng(0).permutation(len(rows)))
    folder.mkdir(parents=True, exist_ok=True)
    labels = {}
    for split, count in zip(SPLITS, counts, strict=True):
        of_split = [rows[next(order)] for _ in range(count)]
        labels[split] = [label for _, label in of_split]
        if task.column == "image":
            of_split = _write_images(of_split, folder / split)
        with (
            write_atomic(folder / f"{split}.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow((task.column, "label"))
            writer.writerows(of_split)
    root = root_of(data_dir)
    if task.column == "image":
        write_timm(folder / "encoder", encoder_folder("efficientnet_lite0", root))
    else:
        _link_bert(folder / "encoder", encoder_folder("minilm", root))
    return labels


def _write_images(rows: Rows, folder: Path) -> list[tuple[str, str]]:
    folder.mkdir(exist_ok=True)
    found = []
    for i, (image, label) in enumerate(rows):
        file = (folder / f"{i:05d}.png").absolute()
        Image.fromarray(image).save(file)
        found.append((str(file), label))
    return found


def _link_bert(folder: Path, source: Path) -> None:
    """Writes MiniLM in Hugging Face's layout: links to files, and ``config.json``."""
    folder.mkdir(exist_ok=True)
    for file in source.iterdir():
        link = folder / file.name
        if not link.is_symlink():
            link.symlink_to(file.absolute())
    write_json(folder / "config.json", BERT)


def write_timm(folder: Path, source: Path) -> None:
    """Writes EfficientNet-Lite0 in timm's layout, which AutoGluon and Trainer read.

    Args:
        folder: output folder.
        source: folder of ``efficientnet_lite0``, whose tensors have the names of
            EfficientNet-PyTorch.
    """
    folder.mkdir(exist_ok=True)
    tensors = {
        timm_name(name): x
        for name, x in read_tensors(source / "model.safetensors").items()
    }
    with write_atomic(folder / "model.safetensors") as temporary:
        safetensors.numpy.save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(folder / "config.json", EFFICIENTNET)


def timm_name(name: str) -> str:
    """Returns timm's name of a tensor of EfficientNet-Lite0.

    >>> timm_name("_blocks.2._depthwise_conv.weight")
    'blocks.1.1.conv_dw.weight'
    >>> timm_name("_fc.bias")
    'classifier.bias'
    """
    first, *parts = name.split(".")
    if first != "_blocks":
        outer = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        return ".".join((outer[first], *parts))
    number, layer, *end = parts
    index, stage = int(number), 0
    while index >= _REPEATS[stage]:
        index, stage = index - _REPEATS[stage], stage + 1
    layers = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    if not stage:  # The first stage does not expand, and timm numbers its layers so.
        layers |= {"_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    return ".".join(("blocks", str(stage), str(index), layers[layer], *end))
