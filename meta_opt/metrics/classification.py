"""Classification metrics, by scikit-learn."""

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
        ``accuracy``, ``weighted_precision``, ``weighted_recall`` (which is accuracy),
        ``weighted_f1``: fractions of 1; those of a class are zero where undefined.

    >>> found = weighted_metrics(np.array([0, 0, 1]), np.array([0, -1, 1]), 2)
    >>> round(found["accuracy"], 4), round(found["weighted_f1"], 4)
    (0.6667, 0.7778)
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        labels,
        predictions,
        labels=range(num_classes),
        average="weighted",
        zero_division=0,
    )
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "weighted_precision": float(precision),
        "weighted_recall": float(recall),
        "weighted_f1": float(f1),
    }
