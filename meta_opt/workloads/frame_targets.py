"""What is predicted of masked frames: their features, or the visual tokens of these."""

import numpy as np

from meta_opt.types import PyTree


def centre_targets(splits: dict[str, dict[str, PyTree]]) -> None:
    """Makes frames' targets unit vectors from the mean of the training ones, in place.

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
    """Visual tokens: centres of frames' features by k-means, scikit-learn's.

    Args:
        targets: float32 [N, F], of training frames.
        size: K.
        seed: of the first centres.

    Returns:
        float32 [K, F].

    Raises:
        ValueError: fewer different frames than centres.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    different = len(np.unique(targets, axis=0))
    if different < size:
        raise ValueError(
            f"clips.codebook_size={size} is more than the {different} different frames "
            "to train on"
        )
    # Sums of several threads differ in their last bits from run to run.
    with threadpool_limits(1):
        found = KMeans(size, n_init=1, random_state=seed).fit(targets)
    return found.cluster_centers_.astype(np.float32)
