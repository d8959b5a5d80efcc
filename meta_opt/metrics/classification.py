"""Classification metrics, by scikit-learn, and the calibration of probabilities."""

import numpy as np


def classification_metrics(
    labels: np.ndarray, predictions: np.ndarray
) -> dict[str, float]:
    """Accuracy and macro F1.

    Args:
        labels: int [N].
        predictions: int [N].

    Returns:
        ``accuracy``, and ``macro_f1``: the mean over the classes that occur in labels
        or predictions, with zero where F1 is undefined. Both are fractions of 1.
    """
    from sklearn.metrics import accuracy_score, f1_score

    macro_f1 = f1_score(labels, predictions, average="macro", zero_division=0)
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": float(macro_f1),
    }


def weighted_metrics(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 weighted by the classes' sizes.

    Args:
        labels: int [N].
        predictions: int [N]; -1, as of an answer that could not be read, is wrong.
        num_classes: K.

    Returns:
        ``accuracy``, ``precision``, ``recall``, ``f1``: fractions of 1, zero where
        undefined. Weighted recall is accuracy.

    >>> found = weighted_metrics(np.array([0, 0, 1]), np.array([0, -1, 1]), 2)
    >>> round(found["accuracy"], 4), round(found["f1"], 4), found["precision"]
    (0.6667, 0.7778, 1.0)
    """
    return _averaged(labels, predictions, num_classes, "weighted")


def macro_metrics(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 as means over all classes.

    Args:
        labels: int [N].
        predictions: int [N]; -1, as of an answer that could not be read, is wrong.
        num_classes: K. Unlike `classification_metrics`, -1 is no class of its own.

    Returns:
        As `weighted_metrics`.

    >>> found = macro_metrics(np.array([0, 0, 1]), np.array([0, -1, 1]), 2)
    >>> round(found["recall"], 4), round(found["f1"], 4)
    (0.75, 0.8333)
    """
    return _averaged(labels, predictions, num_classes, "macro")


def _averaged(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int, average: str
) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        labels,
        predictions,
        labels=range(num_classes),
        average=average,
        zero_division=0,
    )
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }


def probability_metrics(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 15
) -> dict[str, float]:
    """Metrics of predicted probabilities: loss, F1 and calibration.

    Args:
        labels: int [N].
        probabilities: float [N, K], each row with the sum 1.
        bins: see `calibration_error`.

    Returns:
        Those of `classification_metrics`, and ``weighted_f1``: the mean over classes
        by their number of labels; ``ece``: see `calibration_error`; ``loss``: mean
        cross-entropy in nats.
    """
    from sklearn.metrics import f1_score

    predictions = np.argmax(probabilities, axis=-1)
    weighted = f1_score(labels, predictions, average="weighted", zero_division=0)
    given = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    tiny = np.finfo(np.float32).tiny
    return {
        "loss": float(-np.mean(np.log(np.maximum(given, tiny)))),
        **classification_metrics(labels, predictions),
        "weighted_f1": float(weighted),
        "ece": calibration_error(labels, probabilities, bins),
    }


def calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 15
) -> float:
    """Expected calibration error of the predicted class (Guo et al. 2017).

    Predictions are put into bins of equal width by their confidence; of each bin the
    accuracy and the mean confidence differ by some amount, of which this is the mean
    over all predictions (arXiv:1706.04599, equation 3).

    Args:
        labels: int [N].
        probabilities: float [N, K].
        bins: how many.

    >>> probabilities = np.array([[0.8, 0.2], [0.8, 0.2]])
    >>> round(calibration_error(np.array([0, 1]), probabilities), 3)
    0.3
    """
    confidence = probabilities.max(axis=-1).astype(np.float64)
    right = np.argmax(probabilities, axis=-1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))
