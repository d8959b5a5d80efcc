"""The mean corruption error of ImageNet-C, with a baseline and without.

Hendrycks and Dietterich 2019, arXiv:1903.12261, section 4.1.
"""

from collections.abc import Mapping

import numpy as np


def mean_error(errors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The error over all severities and then over all corruptions, not normalised.

    Args:
        errors: top-1 error by corruption, float [V, ...] of V severities.

    Returns:
        float [...], fractions of 1.

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
    """Errors over the baseline's, in the mean over corruptions: mCE.

    The corruption error of one corruption is the sum of the errors over its severities
    over the baseline's sum, so that hard corruptions do not outweigh easy ones. With
    the errors on clean images it is the relative mCE: what corruption adds, over
    what it adds to the baseline's errors.

    Args:
        errors: top-1 error by corruption, float [V, ...] of V severities.
        baseline: the same of the model that it is relative to (AlexNet in the paper).
        clean: error on clean images, [...]; 0 for mCE.
        baseline_clean: the baseline's, [...]; 0 for mCE.

    Returns:
        float [...]; 1 is as good as the baseline. NaN where the baseline has, or is
        added, no error by a corruption.

    Raises:
        ValueError: other corruptions or severities than the baseline's.

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
