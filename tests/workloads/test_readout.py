"""The linear readout of a multimodal model, and what its training examples get."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from multimodal_toy import FUSION, MODEL, inputs_config
from sklearn.linear_model import LogisticRegression, Ridge

from meta_opt.evaluators.multimodal import multimodal_outputs
from meta_opt.models.fusion import Tokens
from meta_opt.models.multimodal import HeadsConfig, Multimodal
from meta_opt.workloads.multimodal import MultimodalConfig
from meta_opt.workloads.multimodal_inputs import Inputs
from meta_opt.workloads.readout import set_readout, with_readout

WIDTHS = {"image": 6, "text": 4}


class Given(nnx.Module):
    """An encoder whose features are its inputs."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        width: int

    def __init__(self, width):
        self.config = self.Config(width)

    def tokens(self, inputs):
        return Tokens(inputs, np.ones(inputs.shape[:2], bool))


def problem(kind, classes=3, count=60, absent=0):
    """Features that tell classes or scores, and a model with a readout."""
    rng = np.random.default_rng(0)
    label = np.arange(count) % classes
    arrays = {
        name: rng.normal(size=(count, 2, width)).astype(np.float32)
        for name, width in WIDTHS.items()
    }
    for x in arrays.values():
        x[np.arange(count), :, label] += 1.5
    arrays |= {f"{name}_present": np.arange(count) >= absent for name in WIDTHS}
    arrays["text_present"][:] = True
    if kind == "classify":
        arrays["label"] = label.astype(np.int32)
    else:
        arrays["score"] = (label - 1 + 0.1 * rng.normal(size=count)).astype(np.float32)
    encoders = {name: Given(width) for name, width in WIDTHS.items()}
    splits = {"train": arrays, "test": arrays}
    names = tuple(map(str, range(classes)))
    inputs = Inputs(kind, tuple(WIDTHS), splits, encoders, names, {}, None, {}, {})
    heads = HeadsConfig(
        classes=classes if kind == "classify" else 0,
        scores=int(kind == "score"),
        readout=True,
    )

    @nnx.jit
    def create():
        encoders = {name: Given(width) for name, width in WIDTHS.items()}
        return Multimodal(FUSION, encoders, tuple(WIDTHS), heads, rngs=nnx.Rngs(0))

    return create(), inputs


def normalised_means(arrays):
    """Of each modality and sample; 0 where it is absent."""
    parts = []
    for name in WIDTHS:
        mean = arrays[name].mean(axis=1)
        mean = mean - mean.mean(axis=1, keepdims=True)
        mean /= np.sqrt((mean**2).mean(axis=1, keepdims=True) + 1e-6)
        parts.append(mean * arrays[f"{name}_present"][:, None])
    return np.concatenate(parts, axis=1)


def outputs(model, inputs, split="test"):
    return multimodal_outputs(
        model, inputs.kind, inputs.modalities, inputs.splits[split]
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_logits_are_those_of_the_regression(classes):
    model, given = problem("classify", classes, absent=5)
    inputs = with_readout(given)
    set_readout(model, inputs)
    arrays = inputs.splits["test"]
    x = normalised_means(arrays)
    np.testing.assert_allclose(arrays["means"], x, atol=1e-5)
    # The head on the fusion is zero, so that the readout is all there is.
    logits = outputs(model, inputs)
    np.testing.assert_allclose(
        logits, x @ inputs.readout[0] + inputs.readout[1], atol=1e-4
    )
    assert np.mean(np.argmax(logits, axis=1) == arrays["label"]) > 0.9
    # One of the penalties that are tried gives these probabilities.
    differences = []
    for strength in np.logspace(-4, 1, 8):
        found = LogisticRegression(C=strength, max_iter=1000).fit(x, arrays["label"])
        expected = found.predict_proba(x)
        differences.append(np.abs(jax.nn.softmax(logits) - expected).max())
    assert min(differences) < 1e-3
    # Masking a modality leaves its part of the means out.
    masked = {**arrays, "image_present": np.zeros(len(x), bool)}
    alone = multimodal_outputs(model, "classify", inputs.modalities, masked)
    kernel = inputs.readout[0] * (np.arange(10) >= WIDTHS["image"])[:, None]
    np.testing.assert_allclose(alone, x @ kernel + inputs.readout[1], atol=1e-4)


def test_scores_are_those_of_the_regression():
    model, given = problem("score")
    inputs = with_readout(given)
    set_readout(model, inputs)
    arrays = inputs.splits["test"]
    x, found = normalised_means(arrays), outputs(model, inputs)
    differences = [
        np.abs(Ridge(alpha=a).fit(x, arrays["score"]).predict(x) - found).max()
        for a in np.logspace(-1, 5, 13)
    ]
    assert min(differences) < 1e-4
    assert np.corrcoef(found, arrays["score"])[0, 1] > 0.85


def test_training_examples_are_read_by_regressions_on_others():
    """Labels that mean nothing: fitted well, and not predicted at all."""
    model, given = problem("classify", count=40)
    rng = np.random.default_rng(1)
    given.splits["train"]["label"] = rng.integers(0, 3, 40).astype(np.int32)
    given.splits["train"]["image"] = rng.normal(size=(40, 2, 6)).astype(np.float32)
    inputs = with_readout(given)
    set_readout(model, inputs)
    train, test = inputs.splits["train"], inputs.splits["test"]
    assert "means" not in train and "read" not in test
    np.testing.assert_allclose(outputs(model, inputs, "train"), train["read"], 1e-5)
    label = train["label"]

    def loss(logits):
        return -np.mean(jax.nn.log_softmax(logits)[np.arange(40), label])

    assert loss(outputs(model, inputs)) < 0.95 * loss(train["read"])


@pytest.mark.parametrize("labels", [[0] * 6, [0, 0, 0, 0, 0, 1]])
def test_a_class_with_one_example_or_none(labels):
    """There are no folds to choose the penalty by."""
    model, given = problem("classify", 3, count=6)
    given.splits["train"]["label"] = np.asarray(labels, np.int32)
    inputs = with_readout(given)
    set_readout(model, inputs)
    logits = outputs(model, inputs)
    assert np.isfinite(logits).all()
    assert np.isfinite(inputs.splits["train"]["read"]).all()
    assert (np.argmax(logits, axis=1) == 2).sum() == 0


def test_a_workload_with_a_readout(root):
    """Video by the encoder of pictures; the readout is frozen, and evaluated alone."""
    config = MultimodalConfig(
        inputs_config(root), dataclasses.replace(MODEL, readout=True)
    )
    workload = config.build(seed=1)
    paths = [
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(workload.params)
    ]
    assert not any("readouts" in path for path in paths)
    assert any("heads" in path for path in paths)
    batch = next(workload.train_batches(8, 0, None))
    assert batch["read"].shape == (8, 3) and "means" not in batch
    loss, _ = workload.loss_fn(workload.params, workload.frozen, batch, None)
    # Zero heads: at the start the out-of-fold predictions are all there is.
    logits = jax.nn.log_softmax(batch["read"])
    expected = -np.mean(logits[np.arange(8), batch["label"]])
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    metrics = workload.evaluate(workload.params, workload.frozen, "validation")
    assert metrics["accuracy"] > 0.5
    # Another seed has the same readout, which is fitted once.
    other = workload.reseeded(2)
    again = other.evaluate(other.params, other.frozen, "validation")
    assert again["loss"] == pytest.approx(metrics["loss"], rel=1e-5)


def test_pairs_have_none():
    model, inputs = problem("classify")
    with pytest.raises(ValueError, match="the task asks for 'retrieve'"):
        with_readout(inputs._replace(kind="retrieve"))
    with pytest.raises(ValueError, match="a model with a readout needs 'means'"):
        outputs(model, inputs)
