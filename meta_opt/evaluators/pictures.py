"""Class probabilities of an image classifier, and its metrics on a split."""

from collections.abc import Callable

import jax
import numpy as np

from meta_opt.evaluators.encoding import in_batches
from meta_opt.metrics.classification import probability_metrics
from meta_opt.models.convnets import Classifier
from meta_opt.types import PyTree


def picture_evaluation(
    inputs: np.ndarray, labels: np.ndarray, batch_size: int = 64
) -> Callable[[Classifier], dict[str, float]]:
    """Returns an evaluation on a split: `probability_metrics`, with ``loss`` in nats.

    Args:
        inputs: inputs of the classifier's trunk, [N, ...].
        labels: class indices, int [N].
        batch_size: number of examples per batch.
    """

    def evaluate(model: Classifier) -> dict[str, float]:
        return probability_metrics(labels, probabilities(model, inputs, batch_size))

    return evaluate


def probabilities(
    model: Classifier, inputs: np.ndarray, batch_size: int = 64
) -> np.ndarray:
    """Returns class probabilities, float32 [N, K].

    Args:
        model: the classifier.
        inputs: inputs of the classifier's trunk, [N, ...].
        batch_size: number of examples per batch.
    """
    logits = in_batches(model, _logits, inputs, batch_size)
    return np.asarray(jax.nn.softmax(logits))


def _logits(model: Classifier, inputs: PyTree) -> jax.Array:
    return model(inputs)
