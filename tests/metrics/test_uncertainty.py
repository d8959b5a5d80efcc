"""Intervals, paired tests, averages over classes, calibration and corruption error."""

import math

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support

from meta_opt.metrics.classification import (
    class_averages,
    expected_calibration_error,
)
from meta_opt.metrics.corruption_error import mean_corruption_error, mean_error
from meta_opt.metrics.intervals import (
    interval,
    percentile_interval,
    resample,
    wilson,
)
from meta_opt.metrics.paired_tests import combine_p_values, mcnemar


@pytest.mark.parametrize(("successes", "count"), [(144, 180), (0, 20), (20, 20)])
def test_wilson_in_closed_form(successes, count):
    z, p = 1.959963984540054, successes / count
    middle = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count)
    half *= math.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    found = wilson(successes, count)
    assert found.mean == p
    assert found.low == pytest.approx(max(0, middle - half), abs=1e-12)
    assert found.high == pytest.approx(min(1, middle + half), abs=1e-12)


def test_180_examples_at_80_percent_are_known_to_six_points():
    found = wilson(144, 180)
    assert 0.05 < 0.8 - found.low < 0.065 and 0.05 < found.high - 0.8 < 0.065
    correct = np.arange(180) < 144
    samples = resample(180, count=4000).mean(correct[None])
    boot = percentile_interval(0.8, samples)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 180)
    assert half == pytest.approx(0.058, abs=0.001)
    assert boot.low == pytest.approx(0.8 - half, abs=0.006)
    assert boot.high == pytest.approx(0.8 + half, abs=0.006)


def test_bootstrap_of_runs_adds_their_variance():
    rng = np.random.default_rng(0)
    runs, examples = rng.normal(size=(8, 1)), rng.normal(size=(1, 50))
    found = np.var(resample(50, 8, count=20_000).mean(runs + examples))
    expected = np.var(runs) / 8 + np.var(examples) / 50
    assert found == pytest.approx(expected, rel=0.04)


def test_samples_of_examples_do_not_depend_on_the_runs():
    one, three = resample(9, 1, 50), resample(9, 3, 50)
    np.testing.assert_array_equal(one.examples, three.examples)
    np.testing.assert_allclose(three.examples.sum(axis=1), 1)
    np.testing.assert_allclose(three.runs.sum(axis=1), 1)
    assert np.any(resample(9, 1, 50, seed=1).examples != one.examples)


def test_bootstrap_covers_the_truth():
    """Of 200 experiments with 100 examples, about 95% have an interval over 0.7."""
    correct = np.random.default_rng(1).random((200, 100)) < 0.7
    samples = resample(100, count=400)
    found = [percentile_interval(0, samples.mean(row[None])) for row in correct]
    covered = sum(x.low <= 0.7 <= x.high for x in found)
    assert 180 <= covered <= 198


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(3, 2), "3 successes of 2 trials"),
        (lambda: wilson(0, 0), "0 successes of 0 trials"),
        (lambda: resample(0), "0 examples"),
        (lambda: mcnemar([True], [True, False]), r"\[1\] and \[2\]"),
        (lambda: combine_p_values([]), "no p value"),
        (lambda: class_averages([0, 1], [0]), r"\[2\] and predictions of \[1\]"),
        (lambda: class_averages([0], [0], [[1.0, 2.0]]), r"\[1, 2\] must be \[R, 1\]"),
        (lambda: expected_calibration_error([], []), "at least one example"),
        (lambda: expected_calibration_error([1.5], [True]), "from 0 to 1"),
        (lambda: expected_calibration_error([math.nan], [True]), "from 0 to 1"),
        (lambda: expected_calibration_error([0.5], [True], 0), "bins=0"),
        (lambda: mean_error({}), "no corruption"),
        (lambda: mean_corruption_error({}, {}), "no corruption"),
        (lambda: mean_corruption_error({"a": [1]}, {"b": [1]}), "has a, b"),
        (lambda: mean_corruption_error({"a": [1]}, {"a": [1, 2]}), "1 severities"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_mcnemar_in_closed_form():
    # Of ten examples that one of two gets right, the first has two.
    first = np.array([True] * 2 + [False] * 8 + [True] * 30)
    second = np.array([False] * 2 + [True] * 8 + [True] * 30)
    expected = 2 * sum(math.comb(10, k) for k in range(3)) / 2**10
    assert mcnemar(first, second) == pytest.approx(expected)
    assert mcnemar(second, first) == pytest.approx(expected)
    assert mcnemar(first, first) == 1.0


def test_combined_p_value_of_dependent_runs():
    assert combine_p_values([0.04]) == 0.04
    assert combine_p_values([0.3, 0.3, 0.3]) == pytest.approx(0.45)
    assert combine_p_values([0.9, 0.8]) == pytest.approx(0.9)
    assert combine_p_values([0.9, 0.9, 0.9]) == 1.0
    # Under the hypothesis, one run repeated three times rejects no more often.
    p = np.random.default_rng(0).random(2000)
    assert np.mean([combine_p_values([x] * 3) <= 0.05 for x in p]) <= 0.05


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_class_averages_are_those_of_scikit_learn(average):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 60)
    predictions = np.where(rng.random(60) < 0.6, labels, rng.integers(0, 6, 60))
    counts = rng.multinomial(60, np.full(60, 1 / 60), 4)
    found = class_averages(labels, predictions, counts / 60)
    for row, count in enumerate(counts):
        drawn = np.repeat(np.arange(60), count)
        precision, recall, f1, _ = precision_recall_fscore_support(
            labels[drawn], predictions[drawn], average=average, zero_division=0
        )
        assert found[f"{average}_precision"][row] == pytest.approx(precision)
        assert found[f"{average}_recall"][row] == pytest.approx(recall)
        assert found[f"{average}_f1"][row] == pytest.approx(f1)
        accuracy = np.mean(labels[drawn] == predictions[drawn])
        assert found["accuracy"][row] == pytest.approx(accuracy)
    plain = class_averages(labels, predictions)
    macro = f1_score(labels, predictions, average="macro", zero_division=0)
    assert float(plain["macro_f1"]) == pytest.approx(macro)


def test_no_prediction_is_wrong_and_no_class():
    found = class_averages(np.array([0, 0, 1]), np.array([0, -1, 1]))
    assert float(found["accuracy"]) == pytest.approx(2 / 3)
    # Class 0: recall 1/2, F1 2/3; class 1: 1.
    assert float(found["macro_recall"]) == pytest.approx(3 / 4)
    assert float(found["macro_f1"]) == pytest.approx(5 / 6)
    assert float(found["macro_precision"]) == 1.0


def test_calibration_error_by_hand():
    # Bins of a half: 0.5 and 0.25 (one of two right), 0.75 twice (both right).
    found = expected_calibration_error([0.5, 0.25, 0.75, 0.75], [1, 0, 1, 1], bins=2)
    assert found == pytest.approx((0.25 + 0.5) / 4)
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0.0
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    assert expected_calibration_error(p, rng.random(20_000) < p) < 0.02


def test_mean_corruption_error_by_hand():
    errors = {"noise": np.array([0.2, 0.4]), "blur": np.array([0.1, 0.1])}
    baseline = {"noise": np.array([0.4, 0.8]), "blur": np.array([0.1, 0.1])}
    assert mean_error(errors) == pytest.approx(0.2)
    assert mean_corruption_error(errors, baseline) == pytest.approx((0.5 + 1) / 2)
    assert mean_corruption_error(baseline, baseline) == 1.0
    relative = mean_corruption_error(errors, baseline, 0.05, 0.05)
    assert relative == pytest.approx((0.5 / 1.1 + 1) / 2)
    flawless = {"noise": np.zeros(2), "blur": np.ones(2)}
    assert math.isnan(mean_corruption_error(errors, flawless))


def test_corruption_error_of_samples_is_that_of_each():
    rng = np.random.default_rng(0)
    errors = {name: rng.random((5, 7)) for name in "abc"}
    baseline = {name: rng.random((5, 7)) for name in "abc"}
    found = mean_corruption_error(errors, baseline)
    one = mean_corruption_error(
        {k: v[:, 3] for k, v in errors.items()},
        {k: v[:, 3] for k, v in baseline.items()},
    )
    assert found.shape == (7,) and found[3] == pytest.approx(one)


def test_interval_of_one_value_is_none():
    assert interval([2.0]).low is None
