"""Retrieval results of models for a few queries, for inspection."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.data.pipeline import as_arrays
from meta_opt.data.preprocessing.tokenizer import load_tokenizer
from meta_opt.data.records import MemorySource
from meta_opt.evaluators.encoding import encode_images, encode_texts
from meta_opt.models.vision_text import VisionText
from meta_opt.text_files import write_json
from meta_opt.types import Batch
from meta_opt.workloads.contrastive import contrastive_evaluation
from meta_opt.workloads.image_text import ImageTextConfig
from meta_opt.workloads.image_text_model import load_weights


def retrieved(
    model: VisionText,
    data: Batch,
    queries: Sequence[int],
    top: int = 5,
    batch_size: int = 256,
) -> dict[str, list[list[int]]]:
    """Returns the nearest images of captions and the nearest captions of images.

    Args:
        model: a vision-text model.
        data: a whole split: ``image`` [N, h, w, 3], ``text`` int [N, S].
        queries: rows of ``data``.
        top: number of rows for each query.
        batch_size: rows encoded at a time.

    Returns:
        ``text_to_image`` and ``image_to_text``: the nearest rows for each query, best
        first. Of rows with equal captions, only the first can be retrieved.
    """
    similarity = encode_images(model, data["image"], batch_size) @ (
        encode_texts(model, data["text"], batch_size).T
    )
    _, first = np.unique(data["text"], axis=0, return_index=True)
    captions = np.sort(first)
    return {
        "text_to_image": [_nearest(similarity[:, q], top) for q in queries],
        "image_to_text": [
            captions[_nearest(similarity[q, captions], top)].tolist() for q in queries
        ],
    }


def _nearest(similarity: np.ndarray, top: int) -> Any:
    return np.argsort(-similarity, kind="stable")[:top].tolist()


def collect(
    models: Mapping[str, VisionText],
    source: MemorySource,
    *,
    text_length: int,
    num_queries: int = 6,
    top: int = 5,
    seed: int = 0,
    batch_size: int = 256,
) -> dict[str, Any]:
    """Retrieves with several models for the same random queries.

    Args:
        models: models by label.
        source: the searched split.
        text_length: S, tokens of a caption.
        num_queries: number of records drawn at random as queries.
        top: number of retrieved rows for each query.
        seed: random seed of the queries.
        batch_size: rows encoded at a time.

    Returns:
        JSON values: ``queries`` (rows of the source), ``models`` (results of
        `retrieved` by label), and ``titles`` and ``images`` (PNG in base64) of all
        these rows, by the row's number as a string.
    """
    data = as_arrays(source, load_tokenizer(), text_length)
    rng = np.random.default_rng(seed)
    queries = rng.permutation(len(source))[:num_queries].tolist()
    found = {
        label: retrieved(model, data, queries, top, batch_size)
        for label, model in models.items()
    }
    rows = set(queries)
    for ways in found.values():
        rows.update(row for way in ways.values() for near in way for row in near)
    return {
        "queries": queries,
        "models": found,
        "titles": {str(row): source.captions[row][0] for row in sorted(rows)},
        "images": {str(row): _png(data["image"][row]) for row in sorted(rows)},
    }


def before_and_after(
    folder: str | Path,
    *,
    workload: ImageTextConfig,
    after: VisionText,
    after_label: str,
    splits: Mapping[str, MemorySource],
    **collecting: Any,
) -> None:
    """Evaluates a model before fine-tuning, and compares its retrieval with after.

    Args:
        folder: output folder for ``result.json`` (``pairs`` of each split, and
            ``validation`` and ``test`` metrics of the initial model, in the format of a
            run's) and ``examples.json`` (see `collect`, on test data).
        workload: configuration of the initial model and its evaluation.
        after: the trained model.
        after_label: label of the trained model.
        splits: ``train``, ``validation`` and ``test``.
        **collecting: further arguments of `collect`.
    """
    preprocessing = workload.preprocessing()
    before: Any = load_weights(workload.model, preprocessing)
    sizes: dict[str, Any] = {
        "text_length": preprocessing.text_length,
        "batch_size": workload.data.eval_batch_size,
    }
    scores = {
        name: contrastive_evaluation(
            splits[name], preprocessing.tokenizer, loss=workload.model.loss, **sizes
        )(before)
        for name in ("validation", "test")
    }
    result = {
        "pairs": {name: len(source) for name, source in splits.items()},
        "validation": {f"validation/{k}": v for k, v in scores["validation"].items()},
        "test": scores["test"],
    }
    models = {"before": before, after_label: after}
    examples = collect(models, splits["test"], **sizes, **collecting)
    for file, value in (("result.json", result), ("examples.json", examples)):
        write_json(Path(folder) / file, value, indent=None)


def _png(image: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
