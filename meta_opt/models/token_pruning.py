"""Training-free pruning of a clip's visual tokens, with static output shapes.

After PruneVid (Huang et al. 2024, arXiv:2412.16117): patches that do not change within
a segment of similar frames are merged over time, the remaining ones are clustered in
space by density peaks (DPC-KNN, Du et al. 2016), and optionally only the clusters most
relevant to a text are kept. Nothing is learned. Differences from the paper:

- Segments are sequences of consecutive frames, cut where the mean features of two
  neighbours differ. The paper clusters frames, so that a scene may recur.
- Clusters are of the patches of the whole clip, and of a number that is given. The
  paper has a share of each frame's patches, of which there are more or fewer by what
  the clip shows. Here all clips of a batch give as many tokens, those that a clip does
  not need are masked, and the program is compiled once.
- A token is the mean of all the patches it stands for.
- Relevance to a text is the largest cosine to any of its tokens, before the layers that
  read both. The paper takes attention weights from inside the language model.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meta_opt.models.layers import l2_normalize
from meta_opt.types import check_name

_FAR = 1e30
"""An upper bound of all squared distances between features."""


@dataclasses.dataclass(frozen=True)
class PruningConfig:
    """The tokens of a frame in a video model, and their pruning.

    Attributes:
        tokens: ``frames``, the mean of a frame's patches; or ``patches``, each patch of
            each frame, of which some may be pruned.
        kept_share: number of kept tokens, as a share of the clip's patches; 1 for all.
        relevant_share: share of the kept tokens, by relevance to a text, that are
            processed together with it; 1 for all.
        temporal_threshold: smallest mean cosine of a patch between the frames of a
            segment for which it counts as static.
        segment_threshold: cosine of two neighbouring frames below which a new segment
            begins.
        neighbours: number of nearest neighbours for the density of a token.
    """

    tokens: str = "frames"
    kept_share: float = 1.0
    relevant_share: float = 1.0
    temporal_threshold: float = 0.8
    segment_threshold: float = 0.6
    neighbours: int = 4

    def __post_init__(self) -> None:
        """Raises ValueError for values out of range, or pruning without patches."""
        check_name("pruning.tokens", self.tokens, ("frames", "patches"))
        for name in ("kept_share", "relevant_share"):
            share = getattr(self, name)
            if not 0 < share <= 1:
                raise ValueError(f"pruning.{name}={share} must be above 0, at most 1")
            if share < 1 and self.tokens == "frames":
                raise ValueError(
                    f"pruning.{name}={share} needs pruning.tokens='patches': a frame "
                    "that is read as one token has nothing to be pruned"
                )
        for name in ("temporal_threshold", "segment_threshold"):
            if not -1 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"pruning.{name}={getattr(self, name)} must be a cosine, in [-1, 1]"
                )
        if self.neighbours < 1:
            raise ValueError(f"pruning.neighbours={self.neighbours} must be at least 1")

    def kept(self, patches: int) -> int:
        """K, number of kept tokens of a clip, at least one.

        >>> PruningConfig("patches", kept_share=0.2).kept(32)
        6
        """
        return max(1, round(self.kept_share * patches))

    def relevant(self, tokens: int) -> int:
        """Number of a clip's tokens that are processed with a text, at least one."""
        return max(1, round(self.relevant_share * tokens))


class Pruned(NamedTuple):
    """Assignment of a clip's patches to tokens.

    Attributes:
        shares: float32 [B, K, T, P], weight of each patch in the mean of a token; they
            sum to 1 over the patches of a real token.
        real: bool [B, K], false for unused tokens of a clip.
    """

    shares: jax.Array
    real: jax.Array

    def tokens(self, features: jax.Array) -> jax.Array:
        """Means [B, K, D] of features [B, T, P, D]; zeros for unused tokens."""
        means = jnp.einsum(
            "bktp,btpd->bkd", self.shares.astype(features.dtype), features
        )
        return means

    def frames(self) -> jax.Array:
        """Share of each frame in each token, float32 [B, K, T]."""
        return jnp.sum(self.shares, axis=3)


def prune_tokens(
    features: jax.Array, present: jax.Array, config: PruningConfig
) -> Pruned:
    """Merges patches over time and clusters the remaining ones.

    Assignments are not differentiated: gradients flow through the means only.

    Args:
        features: [B, T, P, D], features of the patches of each frame.
        present: bool [B, T], false after the end of a shorter clip.
        config: settings of the pruning.

    Returns:
        Assignments to K tokens, K by ``config.kept``, in the order of their centre
        patches. With a share of 1 each patch is a separate token.

    Raises:
        ValueError: inconsistent shapes.

    Example:
        >>> still = jnp.broadcast_to(jnp.eye(4)[None, None], (1, 8, 4, 4))
        >>> config = PruningConfig("patches", kept_share=0.5)
        >>> pruned = prune_tokens(still, jnp.ones((1, 8), bool), config)
        >>> pruned.shares.shape, int(pruned.real.sum())
        ((1, 16, 8, 4), 4)
    """
    if features.ndim != 4 or present.shape != features.shape[:2]:
        raise ValueError(
            f"features {features.shape} and present {present.shape} must be "
            "[B, T, P, D] and [B, T]"
        )
    frames, patches = features.shape[1:3]
    count = frames * patches
    kept = config.kept(count)
    x = jax.lax.stop_gradient(features).astype(jnp.float32)

    def labels(x: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array]:
        leaders = merge_static(x, present, config).reshape(count)
        return cluster(x.reshape(count, -1), leaders, kept, config.neighbours)

    if kept == count:
        labelled = jnp.broadcast_to(jnp.arange(count), (len(x), count))
        real = jnp.repeat(present, patches, axis=1)
        labelled = jnp.where(real, labelled, -1)
    else:
        labelled, real = jax.vmap(labels)(x, present)
    one_hot = jax.nn.one_hot(labelled, kept, axis=1, dtype=jnp.float32)
    shares = one_hot / jnp.maximum(jnp.sum(one_hot, axis=2, keepdims=True), 1)
    return Pruned(shares.reshape(len(x), kept, frames, patches), real)


def merge_static(x: jax.Array, present: jax.Array, config: PruningConfig) -> jax.Array:
    """The patch that each patch of a clip is merged into; itself if it is not static.

    A patch is static in a segment of frames if the mean cosine between its features in
    all pairs of frames reaches ``config.temporal_threshold``; it is then merged into
    the patch of the segment's first frame.

    Args:
        x: float32 [T, P, D].
        present: bool [T].
        config: the thresholds.

    Returns:
        int32 [T, P], indices of patches (frame times P plus position); -1 for missing
        frames.
    """
    frames, patches = x.shape[:2]
    mean = l2_normalize(jnp.mean(x, axis=1))
    # Existing frames come first, so that neighbours in time are adjacent here.
    new = jnp.sum(mean[1:] * mean[:-1], axis=-1) < config.segment_threshold
    stretch = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(new)])
    same = (stretch[:, None] == stretch[None]) & present[:, None] & present[None]
    unit = l2_normalize(x)
    cosines = jnp.einsum("spd,tpd->stp", unit, unit)
    pairs = same & ~jnp.eye(frames, dtype=bool)
    # For the whole segment of a frame, by position [T, P].
    per_frame = jnp.sum(jnp.where(pairs[..., None], cosines, 0), axis=1)
    total = jnp.einsum("st,tp->sp", same.astype(jnp.float32), per_frame)
    size = jnp.sum(same, axis=1)[:, None]
    mean_cosine = total / jnp.maximum(size * (size - 1), 1)
    static = (mean_cosine >= config.temporal_threshold) & (size > 1)
    # The first frame of the segment.
    first = jnp.argmax(same, axis=1)[:, None]
    place = jnp.arange(patches)[None]
    own = jnp.arange(frames)[:, None] * patches + place
    merged = jnp.where(static, first * patches + place, own)
    return jnp.where(present[:, None], merged, -1).astype(jnp.int32)


def cluster(
    x: jax.Array, leaders: jax.Array, kept: int, neighbours: int
) -> tuple[jax.Array, jax.Array]:
    """Clusters merged patches around density peaks (DPC-KNN).

    The density of a token is ``exp(-m)`` with the mean squared distance m to its
    nearest neighbours; centres are the tokens with the largest product of density and
    squared distance to the nearest denser token. Each token is assigned to the nearest
    centre.

    Args:
        x: float32 [N, D], features of patches.
        leaders: int [N], output of `merge_static`; patches with the same leader are
            averaged to a token.
        kept: K, number of clusters.
        neighbours: number of nearest neighbours for the density, limited to the number
            of tokens.

    Returns:
        The cluster of each patch, int32 [N], -1 for none; and bool [K], which clusters
        are not empty, sorted first.
    """
    count = len(x)
    members = jax.nn.one_hot(leaders, count, axis=0, dtype=jnp.float32)
    sizes = jnp.sum(members, axis=1)
    real = sizes > 0
    means = (members @ x) / jnp.maximum(sizes, 1)[:, None]
    # Normalised, so that the density does not underflow for large features.
    squares = _squared_distances(means) / x.shape[1]
    both = real[:, None] & real[None]
    others = both & ~jnp.eye(count, dtype=bool)
    nearest = jnp.sort(jnp.where(others, squares, _FAR), axis=1)
    nearest = nearest[:, : min(neighbours, count - 1)]
    counted = nearest < _FAR
    mean = jnp.sum(jnp.where(counted, nearest, 0), axis=1)
    log_density = -mean / jnp.maximum(jnp.sum(counted, axis=1), 1)
    index = jnp.arange(count)
    denser = log_density[None] > log_density[:, None]
    # Of equally dense tokens the first counts as denser.
    tied = (log_density[None] == log_density[:, None]) & (index[None] < index[:, None])
    denser = (denser | tied) & both
    apart = jnp.min(jnp.where(denser, squares, _FAR), axis=1)
    largest = jnp.max(jnp.where(both, squares, 0))
    # The densest token gets the largest distance, so that it is always a centre.
    apart = jnp.where(jnp.any(denser, axis=1), apart, largest)
    score = jnp.where(real, jnp.exp(log_density) * apart, -1.0)
    _, centres = jax.lax.top_k(score, kept)
    # In the order of the patches, with empty clusters last.
    centres = jnp.sort(jnp.where(real[centres], centres, count))
    found = centres < count
    to_centres = squares[:, jnp.minimum(centres, count - 1)]
    of_token = jnp.argmin(jnp.where(found[None], to_centres, jnp.inf), axis=1)
    labels = jnp.where(leaders >= 0, of_token[jnp.maximum(leaders, 0)], -1)
    return labels.astype(jnp.int32), found


def relevant_tokens(
    video: jax.Array, real: jax.Array, text: jax.Array, words: jax.Array, kept: int
) -> tuple[jax.Array, jax.Array]:
    """Selects the tokens of clips that are most relevant to their texts, in order.

    Args:
        video: [B, K, D].
        real: bool [B, K], false for unused tokens, which come last.
        text: [B, S, D].
        words: bool [B, S], false at padding of the texts.
        kept: number of tokens to keep.

    Returns:
        [B, kept, D], and bool [B, kept].
    """
    if kept >= video.shape[1]:
        return video, real
    seen = l2_normalize(jax.lax.stop_gradient(video).astype(jnp.float32))
    read = l2_normalize(jax.lax.stop_gradient(text).astype(jnp.float32))
    cosines = jnp.einsum("bkd,bsd->bks", seen, read)
    best = jnp.max(jnp.where(words[:, None], cosines, -2.0), axis=2)
    _, chosen = jax.lax.top_k(jnp.where(real, best, -3.0), kept)
    chosen = jnp.sort(chosen, axis=1)
    return (
        jnp.take_along_axis(video, chosen[..., None], axis=1),
        jnp.take_along_axis(real, chosen, axis=1),
    )


def _squared_distances(x: jax.Array) -> jax.Array:
    """Squared distances between rows of [N, D]; exactly 0 on the diagonal."""
    x = x - jnp.mean(x, axis=0, keepdims=True)
    norms = jnp.sum(x * x, axis=1)
    squares = norms[:, None] + norms[None] - 2 * (x @ x.T)
    return jnp.where(jnp.eye(len(x), dtype=bool), 0.0, jnp.maximum(squares, 0))
