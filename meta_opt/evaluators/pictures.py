"""Metrics of a picture classifier on a split."""

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
    """Returns the evaluation on a split: `probability_metrics`, with ``loss`` in nats.

    Args:
        inputs: what the classifier's trunk reads, [N, ...].
        labels: int [N].
        batch_size: examples at a time.
    """

    def evaluate(model: Classifier) -> dict[str, float]:
        logits = in_batches(model, _logits, inputs, batch_size)
        return probability_metrics(labels, np.asarray(jax.nn.softmax(logits)))

    return evaluate


def _logits(model: Classifier, inputs: PyTree) -> jax.Array:
    return model(inputs)
