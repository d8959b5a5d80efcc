"""Text classification tasks as CSV files, with a folder of the encoder."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from meta_opt.data.catalog.encoder_weights import encoder_folder
from meta_opt.data.records import SPLITS
from meta_opt.tasks.foreign.data import root_of
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

Rows = Sequence[tuple[str, str]]


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
    from meta_opt.data.sources.multimodal import find_task, read_split

    name = "clipart_category"
    parts = [read_split(find_task(name), name, s, folder, 32) for s in SPLITS]
    rows: dict[str, str] = {}
    for part in parts:
        names = [part.class_names[i] for i in part.label]
        for text, label in zip(part.text or (), names, strict=True):
            rows.setdefault(text, label)
    return [row for row in rows.items() if row[0]]


TASKS: dict[str, Callable[[str | None], Rows]] = {
    "docstrings": _docstrings,
    "sayings": _sayings,
    "titles": _titles,
}
"""Functions that return the (text, class) pairs of a task, in a fixed order."""


def write_task(
    name: str, counts: Sequence[int], folder: Path, data_dir: str | None
) -> dict[str, list[str]]:
    """Writes ``train.csv``, ``validation.csv``, ``test.csv`` and ``encoder``.

    Args:
        name: name of the task.
        counts: number of texts of each split.
        folder: output folder; ``encoder`` in it is MiniLM's folder.
        data_dir: folder of the data that `meta_opt.data.prepare` wrote.

    Returns:
        The classes of each split's texts.

    Raises:
        MissingDataError: the data are not prepared.
        ValueError: an unknown task, or more texts requested than available.
    """
    check_name("config.tasks", name, TASKS)
    rows = TASKS[name](data_dir)
    if sum(counts) > len(rows):
        raise ValueError(
            f"config.tasks.{name} = {tuple(counts)}: there are {len(rows)} texts only"
        )
    order = iter(np.random.default_rng(0).permutation(len(rows)))
    folder.mkdir(parents=True, exist_ok=True)
    labels = {}
    for split, count in zip(SPLITS, counts, strict=True):
        of_split = [rows[next(order)] for _ in range(count)]
        labels[split] = [label for _, label in of_split]
        with (
            write_atomic(folder / f"{split}.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            writer.writerows(of_split)
    _write_encoder(folder / "encoder", encoder_folder("minilm", root_of(data_dir)))
    return labels


def _write_encoder(folder: Path, source: Path) -> None:
    """Writes MiniLM in Hugging Face's layout: links to files, and ``config.json``."""
    folder.mkdir(exist_ok=True)
    for file in source.iterdir():
        link = folder / file.name
        if not link.is_symlink():
            link.symlink_to(file.absolute())
    write_json(folder / "config.json", BERT)
