"""Image-text retrieval over the embeddings of a split."""

import numpy as np

from meta_opt.metrics.retrieval import retrieval_metrics


def caption_groups(tokens: np.ndarray) -> np.ndarray:
    """Maps equal captions to equal numbers, [N, S] to int [N]."""
    return np.unique(tokens, axis=0, return_inverse=True)[1].reshape(-1)


def evaluate_retrieval(
    image_z: np.ndarray, text_z: np.ndarray, tokens: np.ndarray
) -> dict[str, float]:
    """Returns recall and median rank in both directions; equal captions all count.

    Args:
        image_z: image embeddings [N, D].
        text_z: text embeddings [N, D].
        tokens: the captions as int [N, S], or as texts [N, 1].

    Returns:
        The metrics of `retrieval_metrics`.
    """
    return retrieval_metrics(image_z @ text_z.T, caption_groups(tokens))
