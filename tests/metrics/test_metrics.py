import numpy as np
import pytest

from meta_opt.metrics.answers import answer_metrics, plain
from meta_opt.metrics.classification import (
    calibration_error,
    classification_metrics,
    probability_metrics,
)
from meta_opt.metrics.question_answering import count_metrics, multiple_choice_accuracy
from meta_opt.metrics.regression import sentiment_metrics
from meta_opt.metrics.retrieval import retrieval_metrics

# Ranks by hand: image to text 1, 2, 3; text to image 1, 1, 3.
SIMILARITY = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.3], [0.6, 0.5, 0.1]])


def test_hand_worked_matrix():
    metrics = retrieval_metrics(SIMILARITY, ks=(1, 2))
    assert metrics == pytest.approx(
        {
            "i2t_r1": 1 / 3,
            "i2t_r2": 2 / 3,
            "i2t_medr": 2,
            "t2i_r1": 2 / 3,
            "t2i_r2": 2 / 3,
            "t2i_medr": 1,
        }
    )


def test_any_item_of_the_group_is_correct():
    # Texts 0 and 2 are the same title: image 2 finds text 0 first, and text 2 finds
    # image 0 behind image 1.
    metrics = retrieval_metrics(SIMILARITY, groups=[0, 1, 0], ks=(1,))
    assert metrics["i2t_r1"] == pytest.approx(2 / 3)
    assert metrics["i2t_medr"] == 1
    assert metrics["t2i_r1"] == pytest.approx(2 / 3)


def test_ties_count_against_the_query():
    metrics = retrieval_metrics(np.ones((20, 20)))
    assert metrics["i2t_r10"] == 0
    assert metrics["t2i_medr"] == 20


def test_nan_is_the_worst_rank():
    assert retrieval_metrics(np.full((4, 4), np.nan), ks=(3,))["i2t_r3"] == 0


def test_perfect_similarity():
    metrics = retrieval_metrics(np.eye(12))
    assert set(metrics) == {
        f"{way}_{m}" for way in ("i2t", "t2i") for m in ("r1", "r5", "r10", "medr")
    }
    assert set(metrics.values()) == {1.0}


@pytest.mark.parametrize(
    ("similarity", "groups"),
    [(np.ones((2, 3)), None), (np.ones((2, 2)), [0]), (np.ones((0, 0)), None)],
)
def test_wrong_shapes_are_an_error(similarity, groups):
    with pytest.raises(ValueError, match=r"must be \[N, N\]"):
        retrieval_metrics(similarity, groups)


def test_accuracy_and_macro_f1_by_hand():
    # Class 0: precision 1/2, recall 1, F1 2/3; class 1: 1, 1/2, 2/3; class 2: all 1.
    metrics = classification_metrics(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 2]))
    assert metrics == pytest.approx({"accuracy": 3 / 4, "macro_f1": 7 / 9})


def test_macro_f1_of_a_class_never_predicted_is_zero():
    metrics = classification_metrics(np.array([0, 1]), np.array([0, 0]))
    assert metrics["macro_f1"] == pytest.approx(1 / 3)


def test_sentiment_by_hand():
    scores = np.array([2.0, 1.0, -1.0, -3.0, 0.0, 0.0])
    predictions = np.array([1.0, -1.0, -1.0, -2.0, 0.5, 0.0])
    metrics = sentiment_metrics(scores, predictions)
    assert metrics["mae"] == pytest.approx((1 + 2 + 0 + 1 + 0.5 + 0) / 6)
    covariance = (2 - 1 + 1 + 6) - 6 * (-1 / 6) * (-2.5 / 6)
    norms = (15 - 1 / 6) * (1 + 1 + 1 + 4 + 0.25 - 6.25 / 6)
    assert metrics["correlation"] == pytest.approx(covariance / np.sqrt(norms))
    # Above 0 against the others: right but for the second and the fifth.
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    # 0 and above (4) against below (2): right but for the second. F1 of the first:
    # precision 1, recall 3/4; of the second: precision 2/3, recall 1.
    assert metrics["acc2_non_negative"] == pytest.approx(5 / 6)
    assert metrics["f1_non_negative"] == pytest.approx((4 * 6 / 7 + 2 * 4 / 5) / 6)
    # Without zeros, 2 of each: F1 2/3 of the positive, 4/5 of the negative.
    assert metrics["acc2_non_zero"] == pytest.approx(3 / 4)
    assert metrics["f1_non_zero"] == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_f1_of_sentiment_is_weighted_by_the_classes():
    scores = np.array([1.0, 1.0, 1.0, -1.0])
    metrics = sentiment_metrics(scores, np.array([1.0, 1.0, -1.0, -1.0]))
    # Positive: precision 1, recall 2/3, F1 4/5; negative: 1/2, 1, 2/3.
    for name in ("f1_non_negative", "f1_non_zero"):
        assert metrics[name] == pytest.approx((3 * 4 / 5 + 2 / 3) / 4)


def test_sentiment_that_is_always_neutral():
    metrics = sentiment_metrics(np.zeros(3), np.array([1.0, -1.0, 0.0]))
    assert metrics["acc2_non_zero"] == metrics["f1_non_zero"] == 0
    assert metrics["acc2_non_negative"] == pytest.approx(2 / 3)
    assert metrics["correlation"] == 0


def test_multiple_choice():
    scores = np.array([[3.0, 2.0, 9.0], [1.0, 1.0, 0.0], [0.0, np.nan, 1.0]])
    answers = np.array([0, 1, 2])
    # The second is tied, and NaN precedes the third.
    assert multiple_choice_accuracy(scores, answers) == 0
    valid = np.array([[True, True, False], [True, True, True], [True, False, True]])
    assert multiple_choice_accuracy(scores, answers, valid) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("scores", "answers", "valid", "message"),
    [
        (np.ones((2, 3)), np.array([0]), None, r"answers \(1,\)"),
        (np.ones((1, 3)), np.array([3]), None, r"answers\[0\]=3 is not a valid choice"),
        (np.ones((1, 2)), np.array([1]), np.array([[True, False]]), r"answers\[0\]=1"),
        (np.ones((0, 3)), np.zeros(0, int), None, "no question"),
    ],
)
def test_errors_of_multiple_choice(scores, answers, valid, message):
    with pytest.raises(ValueError, match=message):
        multiple_choice_accuracy(scores, answers, valid)


def test_counts_are_rounded_and_clipped():
    metrics = count_metrics(
        np.array([3, 3, 1, 10, 2]), np.array([3.4, 2.5, -4.0, 30.0, 6.2])
    )
    assert metrics == {"accuracy": 4 / 5, "mse": 16 / 5}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's a well-known  dog!", "its a wellknown dog"),
        ("3.", "3"),
        ("(-2.50)", "-2.50"),
        ("chapter-5, 1/2", "chapter5 12"),
        ("...", "..."),
        (" ", ""),
    ],
)
def test_texts_for_exact_match(text, expected):
    assert plain(text) == expected


def test_numbers_and_operators_are_not_confused():
    """Without points and signs these would all be right."""
    written, right = ["1.5", "-5", "+", ""], [["15"], ["5"], ["-"], ["?"]]
    assert answer_metrics(written, right)["exact_match"] == 0.0
    assert answer_metrics(written, [["1.5."], ["-5"], ["+"], ["", "a"]])[
        "exact_match"
    ] == pytest.approx(100.0)


def test_errors_of_counts():
    with pytest.raises(ValueError, match=r"counts \(2,\)"):
        count_metrics(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match=r"predictions\[1\] is NaN"):
        count_metrics(np.ones(2), np.array([1.0, np.nan]))


def test_probabilities_are_weighed_by_class_and_calibration():
    labels = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.2, 0.8]])
    found = probability_metrics(labels, probabilities)
    # F1 of class 0: 4 / 5, of class 1: 2 / 3.
    assert found["weighted_f1"] == pytest.approx((3 * 4 / 5 + 2 / 3) / 4)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["accuracy"] == 0.75
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.6, 0.2, 0.8]).mean())
    # Bins of confidence 0.9, 0.6 and 0.8, of which the last is half right.
    assert found["ece"] == pytest.approx((0.1 + 0.4 + 2 * 0.3) / 4)
    sure = np.eye(2)[labels]
    assert calibration_error(labels, sure) == 0
    assert calibration_error(1 - labels, sure) == 1
