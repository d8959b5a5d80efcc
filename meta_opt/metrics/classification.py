"""Classification metrics, with bootstrap weights of examples, and calibration."""

import numpy as np


def classification_metrics(
    labels: np.ndarray, predictions: np.ndarray
) -> dict[str, float]:
    """Accuracy and macro F1.

    Args:
        labels: int or bool [N].
        predictions: [N], of the same type.

    Returns:
        ``accuracy``, and ``macro_f1``: the mean over the classes that occur in labels
        or predictions, where an undefined F1 counts as zero. Both are in [0, 1].
    """
    found = class_averages(labels, predictions)
    return {name: float(found[name]) for name in ("accuracy", "macro_f1")}


def probability_metrics(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 15
) -> dict[str, float]:
    """Metrics of predicted probabilities: loss, F1 and calibration.

    Args:
        labels: int [N].
        probabilities: float [N, K], each row with the sum 1.
        bins: see `calibration_error`.

    Returns:
        The metrics of `classification_metrics`, and ``weighted_f1``: the mean over
        classes weighted by their number of labels; ``ece``: see `calibration_error`;
        ``loss``: mean cross-entropy in nats.
    """
    predictions = np.argmax(probabilities, axis=-1)
    averages = class_averages(labels, predictions)
    given = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    tiny = np.finfo(np.float32).tiny
    return {
        "loss": float(-np.mean(np.log(np.maximum(given, tiny)))),
        **{
            name: float(averages[name])
            for name in ("accuracy", "macro_f1", "weighted_f1")
        },
        "ece": calibration_error(labels, probabilities, bins),
    }


def calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 15
) -> float:
    """Expected calibration error of the predicted class (Guo et al. 2017).

    Predictions are grouped by confidence into bins of equal width; the error is the
    mean over all predictions of the absolute difference between accuracy and mean
    confidence of their bin (arXiv:1706.04599, equation 3).

    Args:
        labels: int [N].
        probabilities: float [N, K].
        bins: number of bins.

    >>> probabilities = np.array([[0.8, 0.2], [0.8, 0.2]])
    >>> round(calibration_error(np.array([0, 1]), probabilities), 3)
    0.3
    """
    right = np.argmax(probabilities, axis=-1) == labels
    return _calibration_gap(probabilities.max(axis=-1), right, bins)


def class_averages(
    labels: np.ndarray, predictions: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Class-averaged precision, recall and F1, for many weightings of the examples.

    Equal to scikit-learn's with ``sample_weight``, but for R weightings in one pass,
    such as the 2,000 samples of a bootstrap.

    Args:
        labels: int [N].
        predictions: int [N]; negative for none, which counts as wrong and not as a
            class.
        weights: float [R, N], non-negative; None for equal weights.

    Returns:
        ``accuracy``, and ``macro_`` and ``weighted_`` ``precision``, ``recall`` and
        ``f1``, each float [R] in [0, 1], scalars without weights. Macro averages are
        means over the classes with positive weight in labels or predictions, weighted
        averages use the classes' share of the labels; undefined values count as zero.

    Raises:
        ValueError: no examples, or inconsistent shapes.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.ndim != 1 or labels.shape != predictions.shape or not len(labels):
        raise ValueError(
            f"labels of shape {list(labels.shape)} and predictions of "
            f"{list(predictions.shape)} must be two [N] of at least one example"
        )
    given = np.ones(len(labels)) if weights is None else np.asarray(weights)
    if given.shape[-1:] != labels.shape:
        raise ValueError(
            f"weights of shape {list(given.shape)} must be [R, {len(labels)}]"
        )
    classes = np.union1d(labels, predictions)
    classes = classes[classes >= 0]
    is_label = (labels[:, None] == classes).astype(float)
    is_prediction = (predictions[:, None] == classes).astype(float)
    hits = given @ (is_label * is_prediction)
    support, predicted = given @ is_label, given @ is_prediction
    scores = {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + predicted),
    }
    occurring = np.sum(support + predicted > 0, axis=-1)
    total = np.sum(support, axis=-1)
    averages = {"accuracy": _ratio(np.sum(hits, axis=-1), total)}
    for name, score in scores.items():
        averages[f"macro_{name}"] = _ratio(np.sum(score, axis=-1), occurring)
        averages[f"weighted_{name}"] = _ratio(np.sum(score * support, axis=-1), total)
    return averages


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.where(below > 0, above / np.where(below > 0, below, 1), 0.0)


def expected_calibration_error(
    confidences: np.ndarray, correct: np.ndarray, bins: int = 15
) -> float:
    """`calibration_error` from confidences only.

    ``sum_b n_b / N |accuracy_b - confidence_b|`` (Guo et al. 2017, arXiv:1706.04599).
    It is biased above 0 even for a calibrated model, more so for few examples.

    Args:
        confidences: float [N], probabilities of the predictions.
        correct: bool [N].
        bins: number of bins of (0, 1], closed on the right; 0 belongs to the first.

    Returns:
        The error, in [0, 1].

    Raises:
        ValueError: no examples, inconsistent shapes, or confidences outside [0, 1].

    Example:
        >>> round(expected_calibration_error([0.9, 0.9, 0.6], [True, False, True]), 3)
        0.4
    """
    confidences, correct = np.asarray(confidences, float), np.asarray(correct, bool)
    if confidences.ndim != 1 or confidences.shape != correct.shape or not len(correct):
        raise ValueError(
            f"confidences of shape {list(confidences.shape)} and answers of "
            f"{list(correct.shape)} must be two [N] of at least one example"
        )
    if not np.all((confidences >= 0) & (confidences <= 1)):
        raise ValueError(
            f"confidences run from {confidences.min():g} to {confidences.max():g} and "
            "must be probabilities, from 0 to 1"
        )
    if bins < 1:
        raise ValueError(f"bins={bins} must be at least 1")
    return _calibration_gap(confidences, correct, bins)


def _calibration_gap(confidences: np.ndarray, correct: np.ndarray, bins: int) -> float:
    confidences = confidences.astype(np.float64)
    place = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=correct - confidences, minlength=bins)
    return float(np.abs(gaps).sum() / len(correct))
