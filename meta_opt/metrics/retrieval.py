"""Image-text retrieval: recall at k and median rank in both directions."""

from collections.abc import Sequence

import numpy as np


def ranks(similarity: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Rank of the best correct item of each query, from 1, with pessimistic ties.

    Incorrect items that are at least as similar as the best correct one precede it; all
    of them do if the correct item's similarity is NaN.

    Args:
        similarity: [Q, N], similarities of queries and items.
        correct: bool [Q, N], at least one true in each row.

    Returns:
        int [Q].
    """
    best = np.max(np.where(correct, similarity, -np.inf), axis=1, keepdims=True)
    return 1 + np.sum(~correct & ~(similarity < best), axis=1)


def retrieval_metrics(
    similarity: np.ndarray,
    groups: Sequence[int] | np.ndarray | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Recall at k and median rank, image to text and text to image.

    A query is solved at k if one of its correct items is among the k most similar, with
    pessimistic ties (`ranks`), so that a model with constant embeddings scores zero.
    Items of other groups with equal captions are not merged.

    Args:
        similarity: [N, N], images by texts; pair i is image i and text i.
        groups: int [N]; items of the same group (such as equal titles) are correct
            answers to each other. None: only the pair itself.
        ks: cut-offs.

    Returns:
        ``i2t_r1`` ... and ``t2i_r1`` ... as fractions of 1, ``i2t_medr`` and
        ``t2i_medr`` as ranks from 1.

    Raises:
        ValueError: if ``similarity`` is not square, or ``groups`` not of its length.
    """
    similarity = np.asarray(similarity)
    size = len(similarity)
    groups = np.arange(size) if groups is None else np.asarray(groups)
    if similarity.shape != (size, size) or size == 0 or groups.shape != (size,):
        raise ValueError(
            f"similarity has shape {similarity.shape} and groups {groups.shape}; they "
            "must be [N, N] and [N]"
        )
    correct = groups[:, None] == groups[None, :]
    metrics: dict[str, float] = {}
    for way, scores in (("i2t", similarity), ("t2i", similarity.T)):
        found = ranks(scores, correct)
        metrics |= {f"{way}_r{k}": float(np.mean(found <= k)) for k in ks}
        metrics[f"{way}_medr"] = float(np.median(found))
    return metrics
