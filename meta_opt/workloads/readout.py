"""The readout of a multimodal model, fitted before anything is trained.

A regularised linear regression on the mean features of frozen encoders is hard to beat
where examples are few. A model with a readout begins there, and fine-tuning goes on
from it: linear probing, then fine-tuning (Kumar et al. 2022, arXiv:2202.10054).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from meta_opt.evaluators.multimodal import multimodal_outputs
from meta_opt.models.multimodal import Multimodal
from meta_opt.workloads.multimodal_inputs import Inputs

_STRENGTHS = tuple(np.logspace(-4, 1, 8))
"""Inverse of the penalty of a classification, to choose from by cross-validation."""
_PENALTIES = tuple(np.logspace(-1, 5, 13))
"""Of a regression."""
_MOST_FOLDS = 4
_MOST_EXAMPLES = 10_000
"""Drawn evenly from more: a linear model has learned by then."""
_MOST_WORK = 5e7
"""Examples times features times classes in the search for C: some ten seconds."""
_FEWEST_A_CLASS = 4


def fit_readout(model: Multimodal, inputs: Inputs) -> float:
    """Fits the readout to the training examples; the penalty by cross-validation.

    Classes by multinomial logistic regression, scores by ridge regression, on the mean
    features of the encoders as they are.

    Args:
        model: with a readout, which is set; all else stays.
        inputs: of its task.

    Returns:
        The penalty that was chosen: the inverse strength C of scikit-learn's
        `LogisticRegression`, or alpha of its `Ridge`.

    Raises:
        ValueError: a task without classes or scores.
    """
    if inputs.kind not in ("classify", "score"):
        raise ValueError(
            f"model.readout=True is for classes and scores, and the task asks for "
            f"{inputs.kind!r}: set it to False"
        )
    arrays = inputs.splits["train"]
    x = multimodal_outputs(model, "means", inputs.modalities, arrays)
    step = -(-len(x) // _MOST_EXAMPLES)
    if inputs.kind == "classify":
        kernel, bias, chosen = _logistic(
            x[::step], np.asarray(arrays["label"])[::step], len(inputs.class_names)
        )
    else:
        kernel, bias, chosen = _ridge(x[::step], np.asarray(arrays["score"])[::step])
    layer: Any
    (layer,) = model.readouts.values()
    layer.kernel[...] = jnp.asarray(kernel, layer.kernel[...].dtype)
    layer.bias[...] = jnp.asarray(bias, layer.bias[...].dtype)
    return chosen


def _logistic(
    x: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Kernel [W, K], bias [K] and C; a class without example has a low bias."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    seen, counts = np.unique(labels, return_counts=True)
    kernel, bias = np.zeros((x.shape[1], classes)), np.full(classes, -10.0)
    if len(seen) < 2:
        bias[seen] = 0.0
        return kernel, bias, _STRENGTHS[0]
    chosen = 1e-2
    # The first examples of each class.
    most = max(_FEWEST_A_CLASS, int(_MOST_WORK / (x.shape[1] * len(seen) ** 2)))
    some = np.concatenate([np.flatnonzero(labels == c)[:most] for c in seen])
    with warnings.catch_warnings():
        # What has not converged is as good as it is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if (folds := min(_MOST_FOLDS, int(counts.min()))) > 1:
            search: Any = GridSearchCV(
                LogisticRegression(max_iter=200),
                {"C": _STRENGTHS},
                scoring="neg_log_loss",
                cv=StratifiedKFold(folds, shuffle=True, random_state=0),
                refit=False,
            )
            chosen = float(search.fit(x[some], labels[some]).best_params_["C"])
        found = LogisticRegression(C=chosen, max_iter=500).fit(x, labels)
    coefficients, intercepts = found.coef_, found.intercept_
    if len(seen) == 2:  # One row, the logit of the second class.
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    kernel[:, seen], bias[seen] = coefficients.T, intercepts
    return kernel, bias, chosen


def _ridge(x: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Kernel [W, 1], bias [1] and alpha, by leave-one-out."""
    from sklearn.linear_model import RidgeCV

    found = RidgeCV(alphas=_PENALTIES).fit(x, scores)
    kernel = np.reshape(found.coef_, (-1, 1))
    return kernel, np.reshape(found.intercept_, 1), float(found.alpha_)
