"""Mean corruption error of ImageNet-C, with and without a baseline.

Hendrycks and Dietterich 2019, arXiv:1903.12261, section 4.1.
"""

from collections.abc import Mapping

import numpy as np


def mean_error(errors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean error over severities and then over corruptions, not normalised.

    Args:
        errors: top-1 error by corruption, float [V, ...] of V severities.

    Returns:
        The error, float [...], in [0, 1].

    Raises:
        ValueError: no corruption.
    """
    if not errors:
        raise ValueError("no corruption to take the mean over")
    return np.mean([np.mean(e, axis=0) for e in errors.values()], axis=0)


def mean_corruption_error(
    errors: Mapping[str, np.ndarray],
    baseline: Mapping[str, np.ndarray],
    clean: np.ndarray | float = 0.0,
    baseline_clean: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Mean over corruptions of errors relative to the baseline's (mCE).

    The error of a corruption is the sum over its severities, divided by the baseline's
    sum, so that hard corruptions do not outweigh easy ones. With the errors on clean
    images it is the relative mCE: the increase of the error, divided by the baseline's
    increase.

    Args:
        errors: top-1 error by corruption, float [V, ...] of V severities.
        baseline: errors of the baseline model (AlexNet in the paper).
        clean: error on clean images, [...]; 0 for mCE.
        baseline_clean: the baseline's error on clean images, [...]; 0 for mCE.

    Returns:
        float [...]; 1 equals the baseline. NaN if the denominator of a corruption is
        zero.

    Raises:
        ValueError: corruptions or severities differ from the baseline's.

    Example:
        >>> float(mean_corruption_error({"noise": [0.1, 0.2]}, {"noise": [0.2, 0.4]}))
        0.5
    """
    if set(errors) != set(baseline):
        different = sorted(set(errors) ^ set(baseline))
        raise ValueError(
            f"only one of model and baseline has {', '.join(different)}; mCE needs the "
            "same corruptions of both"
        )
    ratios = []
    for name in errors:
        ours, theirs = np.asarray(errors[name]), np.asarray(baseline[name])
        if len(ours) != len(theirs):
            raise ValueError(
                f"{name} has {len(ours)} severities and the baseline {len(theirs)}"
            )
        added = np.sum(ours - clean, axis=0)
        added_to_baseline = np.sum(theirs - baseline_clean, axis=0)
        ratios.append(
            np.where(
                added_to_baseline > 0,
                added / np.where(added_to_baseline > 0, added_to_baseline, 1),
                np.nan,
            )
        )
    if not ratios:
        raise ValueError("no corruption to take the mean over")
    return np.mean(ratios, axis=0)
