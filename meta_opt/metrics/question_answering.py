"""Metrics of video question answering by choice or by count.

Answers in words have exact match (`meta_opt.metrics.answers`), answers out of a fixed
vocabulary accuracy (`meta_opt.metrics.classification`).
"""

import numpy as np

from meta_opt.metrics.retrieval import ranks


def multiple_choice_accuracy(
    scores: np.ndarray, answers: np.ndarray, valid: np.ndarray | None = None
) -> float:
    """Share of the questions whose right choice alone has the highest score.

    A tie counts as wrong, so that a model which scores all choices equally gets zero.

    Args:
        scores: [N, C], of C choices to each question.
        answers: int [N], the right choice.
        valid: bool [N, C], false at padding where a question has fewer choices. None:
            all are choices.

    Returns:
        A fraction of 1.

    Raises:
        ValueError: if the shapes do not fit, or an answer is not a valid choice.

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

    Predictions are rounded to whole numbers, halves up, and clipped first.

    Args:
        counts: int [N].
        predictions: float [N], of a regression.
        lowest: the smallest count there is.
        highest: the largest.

    Returns:
        ``accuracy``, a fraction of 1, and ``mse``, the mean squared error.

    Raises:
        ValueError: if the shapes differ, there is no count, or a prediction is NaN.

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
