"""Metrics of multiple-choice and counting questions about videos.

For generated answers see exact match (`meta_opt.metrics.answers`), for a fixed
vocabulary of answers accuracy (`meta_opt.metrics.classification`).
"""

import numpy as np

from meta_opt.metrics.retrieval import ranks


def multiple_choice_accuracy(
    scores: np.ndarray, answers: np.ndarray, valid: np.ndarray | None = None
) -> float:
    """Share of the questions whose right option has the strictly highest score.

    Ties count as wrong, so that a model with constant scores gets zero.

    Args:
        scores: [N, C], scores of the C options of each question.
        answers: int [N], index of the right option.
        valid: bool [N, C], false at padding of questions with fewer options. None: all
            are valid.

    Returns:
        The accuracy, in [0, 1].

    Raises:
        ValueError: if shapes are inconsistent, or an answer is not a valid option.

    >>> scores = np.array([[0.1, 0.9], [0.5, 0.5]])
    >>> multiple_choice_accuracy(scores, np.array([1, 0]))
    0.5
    """
    valid = np.ones(scores.shape, bool) if valid is None else valid
    if (
        scores.ndim != 2
        or valid.shape != scores.shape
        or answers.shape != scores.shape[:1]
    ):
        raise ValueError(
            f"scores {scores.shape}, answers {answers.shape} and valid {valid.shape} "
            "must be [N, C], [N] and [N, C]"
        )
    correct = np.arange(scores.shape[1])[None, :] == answers[:, None]
    lost = np.flatnonzero(~(correct & valid).any(axis=1))
    if len(lost) or not len(scores):
        raise ValueError(
            f"answers[{lost[0]}]={answers[lost[0]]} is not a valid choice here"
            if len(lost)
            else "no question to score"
        )
    return float(np.mean(ranks(np.where(valid, scores, -np.inf), correct) == 1))


def count_metrics(
    counts: np.ndarray, predictions: np.ndarray, lowest: int = 1, highest: int = 10
) -> dict[str, float]:
    """Accuracy and squared error of counts, as in TGIF-QA (Jang et al. 2017).

    Predictions are first rounded to integers, halves up, and clipped.

    Args:
        counts: int [N].
        predictions: float [N], regression outputs.
        lowest: smallest possible count.
        highest: largest possible count.

    Returns:
        ``accuracy``, in [0, 1], and ``mse``, the mean squared error.

    Raises:
        ValueError: if the shapes differ or are empty, or a prediction is NaN.

    >>> count_metrics(np.array([2, 5, 10]), np.array([2.4, 3.0, 99.0]))["mse"]
    1.3333333333333333
    """
    if counts.shape != predictions.shape or not counts.size:
        raise ValueError(
            f"counts {counts.shape} and predictions {predictions.shape} must have one "
            "shape that is not empty"
        )
    if np.isnan(predictions).any():
        raise ValueError(f"predictions[{np.argmax(np.isnan(predictions))}] is NaN")
    whole = np.clip(np.floor(predictions + 0.5), lowest, highest)
    return {
        "accuracy": float(np.mean(whole == counts)),
        "mse": float(np.mean((whole - counts) ** 2)),
    }
