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
