"""Zero-shot classification by the class whose prompts are nearest to the image."""

from collections.abc import Callable, Sequence

import numpy as np

from meta_opt.evaluators.encoding import encode_texts
from meta_opt.metrics.classification import classification_metrics
from meta_opt.models.vision_text import VisionText

TEMPLATES = ("{}", "a picture of {}", "clip art of {}", "an icon of {}")
"""Prompt templates with a placeholder for the class name."""


def class_prompts(
    class_names: Sequence[str],
    encode: Callable[[list[str], int], np.ndarray],
    length: int,
    templates: Sequence[str] = TEMPLATES,
) -> np.ndarray:
    """Tokenises every template with every class name.

    Args:
        class_names: K names; underscores and hyphens are read as spaces.
        encode: maps texts and length to int [N, length], as
            ``CaptionTokenizer.encode``.
        length: S, number of tokens of a prompt.
        templates: M strings with ``{}``.

    Returns:
        int [K, M, S].
    """
    words = [name.replace("_", " ").replace("-", " ") for name in class_names]
    prompts = [template.format(word) for word in words for template in templates]
    return np.asarray(encode(prompts, length)).reshape(
        len(words), len(templates), length
    )


def class_embeddings(
    model: VisionText, prompts: np.ndarray, batch_size: int = 256
) -> np.ndarray:
    """Averages prompt embeddings by class: int [K, M, S] to unit [K, embed_dim]."""
    classes, templates, length = prompts.shape
    z = encode_texts(model, prompts.reshape(-1, length), batch_size)
    mean = z.reshape(classes, templates, -1).mean(axis=1)
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def evaluate_zero_shot(
    image_z: np.ndarray, class_z: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Returns accuracy and macro F1 of the nearest class.

    Args:
        image_z: image embeddings [N, D].
        class_z: class embeddings [K, D] from `class_embeddings`.
        labels: class indices, int [N].

    Returns:
        ``zero_shot_accuracy`` and ``zero_shot_macro_f1``.
    """
    predictions = np.argmax(image_z @ class_z.T, axis=1)
    metrics = classification_metrics(labels, predictions)
    return {f"zero_shot_{name}": value for name, value in metrics.items()}
