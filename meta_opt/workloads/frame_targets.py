"""Prediction targets of masked frames: frame features, or visual tokens of them."""

import numpy as np

from meta_opt.types import PyTree


def centre_targets(splits: dict[str, dict[str, PyTree]]) -> None:
    """Centres frame targets on the training mean and normalises them, in place.

    Args:
        splits: arrays with ``targets`` [N, T, F] and ``present`` bool [N, T], by split.
    """
    train = splits["train"]
    mean = train["targets"][train["present"]].mean(axis=0)
    for arrays in splits.values():
        x = arrays["targets"] - mean[None, None]
        norm = np.linalg.norm(x, axis=-1, keepdims=True)
        arrays["targets"] = x / np.maximum(norm, 1e-6)


def make_codebook(targets: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Returns visual tokens: k-means centres of frame features (scikit-learn).

    Args:
        targets: features of training frames, float32 [N, F].
        size: K, number of centres.
        seed: random seed of the initial centres.

    Returns:
        The centres, float32 [K, F].

    Raises:
        ValueError: there are fewer distinct frames than centres.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    different = len(np.unique(targets, axis=0))
    if different < size:
        raise ValueError(
            f"clips.codebook_size={size} is more than the {different} different frames "
            "to train on"
        )
    # One thread: multi-threaded sums differ in their last bits between runs.
    with threadpool_limits(1):
        found = KMeans(size, n_init=1, random_state=seed).fit(targets)
    return found.cluster_centers_.astype(np.float32)
