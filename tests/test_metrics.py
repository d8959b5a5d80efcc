import numpy as np
import pytest

from meta_opt.metrics.classification import classification_metrics
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
