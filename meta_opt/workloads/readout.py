"""A linear readout of pretrained encoders, added to a model that is fine-tuned.

A regularised regression on the mean features of frozen encoders is hard to beat with
few examples. It fits its own training examples nearly perfectly, which would leave
nothing to learn for a model trained on top of it. Training examples therefore get
out-of-fold predictions, each from a regression on other examples, and the model learns
to correct the readout's errors on unseen examples (stacked generalisation, Wolpert
1992).
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.models.multimodal import Multimodal
from meta_opt.parallel.processes import arrays_from_first
from meta_opt.types import PyTree
from meta_opt.workloads.lower_features import features_of
from meta_opt.workloads.multimodal_inputs import Inputs

READ_OUT = ("classify", "score")
"""Kinds of tasks that a readout is for."""
_STRENGTHS = tuple(np.logspace(-4, 1, 8))
"""Inverse of the penalty of a classification, to choose from by cross-validation."""
_PENALTIES = tuple(np.logspace(-1, 5, 13))
"""Of a regression."""
_MOST_FOLDS = 4
_MOST_EXAMPLES = 5_000
"""Drawn evenly from more: a linear model has learned by then."""
_MOST_WORK = 5e7
"""Examples times features times classes in the search for C: some ten seconds."""
_SMALL = 5e7
"""Examples times features times classes of products that are not worth dividing."""
_FEWEST_A_CLASS = 4
_FEW_EXAMPLES = 1e-2
"""The C where a class has a single example."""
_UNSEEN = 2.0
"""Logits of a class without example below the smallest bias."""
_FOLDS = 5
"""Of the out-of-fold predictions."""


class Linear(NamedTuple):
    """A linear map from mean features [N, W] to outputs [N, K].

    Attributes:
        kernel: float [W, K].
        bias: float [K].
    """

    kernel: np.ndarray
    bias: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Returns outputs float32 [N, K]."""
        return (x @ self.kernel + self.bias).astype(np.float32)


def with_readout(inputs: Inputs) -> Inputs:
    """Fits a readout to the training examples.

    Classes are predicted by multinomial logistic regression and scores by ridge
    regression on the mean features of the pretrained encoders. The penalty is chosen by
    cross-validation.

    Args:
        inputs: inputs with the encoders, and classes or scores.

    Returns:
        The inputs with ``readout``. Training examples have ``read``, out-of-fold
        predictions float32 [N, K]; other splits have ``means`` float32 [N, W].

    Raises:
        ValueError: the task has no classes or scores.
    """
    if inputs.kind not in READ_OUT:
        raise ValueError(
            f"model.readout=True is for classes and scores, and the task asks for "
            f"{inputs.kind!r}: set it to False"
        )
    inputs = with_means(inputs)
    train = dict(inputs.splits["train"])
    x = train.pop("means")
    used = np.arange(0, len(x), -(-len(x) // _MOST_EXAMPLES))
    y = np.asarray(train["label" if inputs.kind == "classify" else "score"])
    with _few_threads(len(used) * x.shape[1] * max(1, len(inputs.class_names))):
        fit = _chosen_fit(inputs, x[used], y[used])
        whole = fit(x[used], y[used])
        read = whole(x)
        if len(used) > 1:
            for fold in _folds(inputs.kind, y[used]):
                held_out, others = used[fold], np.delete(used, fold)
                read[held_out] = fit(x[others], y[others])(x[held_out])
    # Rounding may make processes choose different penalties.
    read, kernel, bias = arrays_from_first((read, whole.kernel, whole.bias))
    splits = {**inputs.splits, "train": {**train, "read": read}}
    return inputs._replace(splits=splits, readout=(kernel, bias))


@contextlib.contextmanager
def _few_threads(work: float) -> Iterator[None]:
    """Limits BLAS to one thread for matrix products too small to parallelise.

    OpenBLAS threads busy-wait for each other: on busy cores a regression on 500
    examples takes fifty times as long with two threads as with one.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1 if work < _SMALL else None, user_api="blas"):
        yield


def _chosen_fit(
    inputs: Inputs, x: np.ndarray, y: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], Linear]:
    """Returns the regression for the kind of task, with a cross-validated penalty."""
    if inputs.kind == "classify":
        classes, strength = len(inputs.class_names), _choose_strength(x, y)
        return functools.partial(_logistic, classes=classes, strength=strength)
    return functools.partial(_ridge, alpha=_choose_alpha(x, y))


def with_means(inputs: Inputs) -> Inputs:
    """Returns inputs with ``means`` in each split; see `mean_features`."""
    splits = {
        name: arrays
        if "means" in arrays
        else {
            **arrays,
            "means": mean_features(inputs.encoders, inputs.modalities, arrays),
        }
        for name, arrays in inputs.splits.items()
    }
    return inputs._replace(splits=splits)


def mean_features(
    encoders: Mapping[str, Any], modalities: Sequence[str], arrays: Mapping[str, PyTree]
) -> np.ndarray:
    """Returns the mean features of encoders, the input of a readout.

    Args:
        encoders: pretrained encoders by modality; video may be encoded frame by frame
            by the image encoder.
        modalities: modalities in the order of the result.
        arrays: arrays [N, ...] in the format of `Inputs.splits`.

    Returns:
        float32 [N, W], the concatenated means over each modality's features, each
        normalised to mean 0 and variance 1 per sample; 0 where a modality is missing.
    """
    parts = []
    for modality in modalities:
        clips = modality == "video"
        encoder = encoders["image" if modality not in encoders else modality]

        def mean(batch: PyTree, encoder: Any = encoder) -> jax.Array:
            x, real = encoder.tokens(jax.tree.map(jnp.asarray, batch))
            weight = jnp.asarray(real)[..., None].astype(jnp.float32)
            total = jnp.sum(x.astype(jnp.float32) * weight, axis=1)
            return total / jnp.maximum(jnp.sum(weight, axis=1), 1.0)

        found = np.asarray(features_of(arrays[modality], mean, clips=clips))
        if clips:
            found = found.mean(axis=1)
        found = found - found.mean(axis=1, keepdims=True)
        found /= np.sqrt(np.square(found).mean(axis=1, keepdims=True) + 1e-6)
        there = arrays.get(f"{modality}_present")
        if there is not None:
            found = np.where(np.asarray(there)[:, None], found, 0.0)
        parts.append(found)
    return np.concatenate(parts, axis=1).astype(np.float32)


def set_readout(model: Multimodal, inputs: Inputs) -> None:
    """Copies the readout of the inputs into the model.

    Args:
        model: a model with a readout; its other arrays are unchanged.
        inputs: result of `with_readout`.
    """
    assert inputs.readout is not None
    layer: Any
    (layer,) = model.readouts.values()
    for variable, value in zip((layer.kernel, layer.bias), inputs.readout, strict=True):
        variable[...] = jnp.asarray(value, variable[...].dtype)


def _folds(kind: str, y: np.ndarray) -> list[np.ndarray]:
    """Indices of the held-out examples of each fold."""
    import warnings

    from sklearn.model_selection import KFold, StratifiedKFold

    count = min(_FOLDS, len(y))
    make: Any = StratifiedKFold if kind == "classify" else KFold
    if kind == "classify" and np.bincount(y).max() < count:
        make = KFold  # No class has enough examples for stratified folds.
    with warnings.catch_warnings():
        # Warns of classes with fewer examples than folds.
        warnings.simplefilter("ignore", UserWarning)
        split = make(count, shuffle=True, random_state=0).split(y, y)
        return [held_out for _, held_out in split]


def _choose_strength(x: np.ndarray, labels: np.ndarray) -> float:
    """Returns the C of least cross-validated loss; a small C if no folds exist."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    seen, counts = np.unique(labels, return_counts=True)
    folds = min(_MOST_FOLDS, int(counts.min()))
    if len(seen) < 2 or folds < 2:
        return _FEW_EXAMPLES
    # Only the first examples of each class, to bound the cost.
    most = max(_FEWEST_A_CLASS, int(_MOST_WORK / (x.shape[1] * len(seen) ** 2)))
    some = np.concatenate([np.flatnonzero(labels == c)[:most] for c in seen])
    with warnings.catch_warnings():
        # Solutions that have not converged are good enough to compare.
        warnings.simplefilter("ignore", ConvergenceWarning)
        search: Any = GridSearchCV(
            LogisticRegression(max_iter=200),
            {"C": _STRENGTHS},
            scoring="neg_log_loss",
            cv=StratifiedKFold(folds, shuffle=True, random_state=0),
            refit=False,
        )
        return float(search.fit(x[some], labels[some]).best_params_["C"])


def _logistic(
    x: np.ndarray, labels: np.ndarray, classes: int, strength: float
) -> Linear:
    """Fits a multinomial logistic regression; unseen classes get a low bias."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    seen = np.unique(labels)
    kernel, bias = np.zeros((x.shape[1], classes)), np.full(classes, -10.0)
    if len(seen) < 2:
        bias[seen] = 0.0
        return Linear(kernel, bias)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = LogisticRegression(C=strength, max_iter=500).fit(x, labels)
    coefficients, intercepts = found.coef_, found.intercept_
    if len(seen) == 2:  # scikit-learn returns one row, the second class's logit.
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    kernel[:, seen], bias[seen] = coefficients.T, intercepts
    # Just below the least likely seen class, so that training can still correct it.
    bias[np.setdiff1d(np.arange(classes), seen)] = intercepts.min() - _UNSEEN
    return Linear(kernel, bias)


def _choose_alpha(x: np.ndarray, scores: np.ndarray) -> float:
    """Returns the alpha of least leave-one-out squared error."""
    from sklearn.linear_model import RidgeCV

    return float(RidgeCV(alphas=_PENALTIES).fit(x, scores).alpha_)


def _ridge(x: np.ndarray, scores: np.ndarray, alpha: float) -> Linear:
    """Fits a ridge regression with one output."""
    from sklearn.linear_model import Ridge

    found = Ridge(alpha=alpha).fit(x, scores)
    kernel = np.reshape(found.coef_, (-1, 1))
    return Linear(kernel, np.reshape(found.intercept_, 1))
