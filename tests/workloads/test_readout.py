"""The linear readout of a multimodal model and its fit before training."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from multimodal_toy import FUSION
from sklearn.linear_model import LogisticRegression, Ridge

from meta_opt.evaluators.multimodal import multimodal_outputs
from meta_opt.models.fusion import Tokens
from meta_opt.models.multimodal import HeadsConfig, Multimodal
from meta_opt.workloads.multimodal_inputs import Inputs
from meta_opt.workloads.readout import fit_readout

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
    inputs = Inputs(
        kind,
        tuple(WIDTHS),
        {"train": arrays},
        *({}, tuple(map(str, range(classes))), {}, None, {}, {}),
    )
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


@pytest.mark.parametrize("classes", [2, 3])
def test_logits_are_those_of_the_regression(classes):
    model, inputs = problem("classify", classes, absent=5)
    chosen = fit_readout(model, inputs)
    arrays = inputs.splits["train"]
    x = normalised_means(arrays)
    means = multimodal_outputs(model, "means", inputs.modalities, arrays)
    np.testing.assert_allclose(means, x, atol=1e-5)
    expected = LogisticRegression(C=chosen, max_iter=1000).fit(x, arrays["label"])
    # The head on the fusion is zero, so that the readout is all there is.
    logits = multimodal_outputs(model, "classify", inputs.modalities, arrays)
    np.testing.assert_allclose(
        jax.nn.softmax(logits), expected.predict_proba(x), atol=1e-4
    )
    assert np.mean(np.argmax(logits, axis=1) == arrays["label"]) > 0.9


def test_scores_are_those_of_the_regression():
    model, inputs = problem("score")
    chosen = fit_readout(model, inputs)
    arrays = inputs.splits["train"]
    x = normalised_means(arrays)
    expected = Ridge(alpha=chosen).fit(x, arrays["score"]).predict(x)
    found = multimodal_outputs(model, "score", inputs.modalities, arrays)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.corrcoef(found, arrays["score"])[0, 1] > 0.85


@pytest.mark.parametrize("labels", [[0] * 6, [0, 0, 0, 0, 0, 1]])
def test_a_class_with_one_example_or_none(labels):
    """There are no folds to choose the penalty by."""
    model, inputs = problem("classify", 3, count=6)
    inputs.splits["train"]["label"] = np.asarray(labels, np.int32)
    fit_readout(model, inputs)
    logits = multimodal_outputs(
        model, "classify", inputs.modalities, inputs.splits["train"]
    )
    assert np.isfinite(logits).all()
    assert (np.argmax(logits, axis=1) == 2).sum() == 0


def test_pairs_have_none():
    model, inputs = problem("classify")
    with pytest.raises(ValueError, match="the task asks for 'retrieve'"):
        fit_readout(model, inputs._replace(kind="retrieve"))
