"""Regression metrics, and sentiment metrics as reported for CMU-MOSI."""

import numpy as np

from meta_opt.metrics.classification import classification_metrics


def regression_metrics(scores: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Mean absolute error and Pearson's correlation.

    Args:
        scores: float [N].
        predictions: float [N].

    Returns:
        ``mae``, in the unit of the scores; ``correlation``, 0 if it is undefined.

    >>> regression_metrics(np.array([1.0, 3.0]), np.array([2.0, 2.0]))
    {'mae': 1.0, 'correlation': 0.0}
    """
    constant = np.ptp(scores) == 0 or np.ptp(predictions) == 0
    return {
        "mae": float(np.mean(np.abs(scores - predictions))),
        "correlation": 0.0
        if constant
        else float(np.corrcoef(scores, predictions)[0, 1]),
    }


def sentiment_metrics(scores: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Mean absolute error, correlation, and accuracy and F1 of the sign.

    Papers define the two classes of Acc-2 in two ways: negative against non-negative,
    and negative against positive without neutral examples. Their F1 is the mean over
    the classes weighted by their share of the examples.

    Args:
        scores: float [N], from -3 to 3, 0 if neutral.
        predictions: float [N].

    Returns:
        - those of `regression_metrics`;
        - ``accuracy`` and ``macro_f1`` of whether a score is above 0;
        - ``acc2_non_negative`` and ``f1_non_negative`` of whether it is 0 or above;
        - ``acc2_non_zero`` and ``f1_non_zero`` of whether it is above 0, where the true
          score is not 0; 0 if it always is.

        Accuracy and F1 are fractions of 1.

    >>> scores, predictions = np.array([2.0, -1.0, 0.0]), np.array([1.0, -0.5, -0.1])
    >>> metrics = sentiment_metrics(scores, predictions)
    >>> round(metrics["acc2_non_negative"], 4), metrics["acc2_non_zero"]
    (0.6667, 1.0)
    """
    clear = scores != 0
    return {
        **regression_metrics(scores, predictions),
        **classification_metrics(scores > 0, predictions > 0),
        **_two_classes("non_negative", scores >= 0, predictions >= 0),
        **_two_classes("non_zero", scores[clear] > 0, predictions[clear] > 0),
    }


def _two_classes(
    name: str, labels: np.ndarray, predictions: np.ndarray
) -> dict[str, float]:
    from sklearn.metrics import f1_score

    if not len(labels):
        return {f"acc2_{name}": 0.0, f"f1_{name}": 0.0}
    f1 = f1_score(labels, predictions, average="weighted", zero_division=0)
    return {
        f"acc2_{name}": float(np.mean(labels == predictions)),
        f"f1_{name}": float(f1),
    }
