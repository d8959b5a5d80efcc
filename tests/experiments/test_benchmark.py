"""The benchmark of meta-training runs; what it measures is not for a test."""

import importlib

import pytest
from absl import flags
from absl.testing import flagsaver
from meta_training_toy import line_task


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["es", "bptt"])
def test_meta_training_is_compared_with_plain_training(monkeypatch, estimator):
    benchmark = importlib.import_module("experiments.benchmarks.meta")
    monkeypatch.setattr(benchmark, "make_task", lambda name: line_task(name))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(families=["line"], estimators=[estimator]):
        (found,) = benchmark.bench_meta()
    runs = {"es": 25 + 3 * 5, "bptt": 3}[estimator]
    assert f"{estimator} of {runs} runs" in found.what
    assert found.ours > 0 and found.theirs > 0
