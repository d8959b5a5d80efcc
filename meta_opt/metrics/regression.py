"""Metrics of predicted sentiment, as they are reported for CMU-MOSI."""

import numpy as np

from meta_opt.metrics.classification import classification_metrics


def sentiment_metrics(scores: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Mean absolute error, correlation, and accuracy and F1 of the sign.

    Args:
        scores: float [N].
        predictions: float [N].

    Returns:
        ``mae``; ``correlation``, Pearson's, 0 where it is undefined; ``accuracy`` and
        ``macro_f1`` of whether a score is above 0, as fractions of 1 (Acc-2).

    >>> sentiment_metrics(np.array([1.0, -1.0]), np.array([0.5, 0.5]))["accuracy"]
    0.5
    """
    constant = np.ptp(scores) == 0 or np.ptp(predictions) == 0
    return {
        "mae": float(np.mean(np.abs(scores - predictions))),
        "correlation": 0.0
        if constant
        else float(np.corrcoef(scores, predictions)[0, 1]),
        **classification_metrics(scores > 0, predictions > 0),
    }
