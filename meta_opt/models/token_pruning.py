"""Training-free pruning of a clip's visual tokens, with output shapes that are static.

After PruneVid (Huang et al. 2024, arXiv:2412.16117): patches that do not change within
a stretch of similar frames are merged over time, those that remain are clustered in
space by density peaks (DPC-KNN, Du et al. 2016), and of the clusters those that a text
is most related to may be kept. Nothing is learned. What differs from the paper:

- Stretches are runs of consecutive frames, cut where the mean features of two
  neighbours differ. The paper clusters frames, and a scene may come back.
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

from meta_opt.types import check_name

_FAR = 1e30
"""Above every squared distance between features."""


@dataclasses.dataclass(frozen=True)
class PruningConfig:
    """What a video model reads of a frame, and how much of it.

    Attributes:
        tokens: ``frames``, the mean of a frame's patches; or ``patches``, each patch of
            each frame, of which some may be pruned.
        kept_share: tokens that are left, over patches of the clip; 1: all of them.
        relevant_share: of the tokens that are left, those that are read together with a
            text, by how related they are to it; 1: all of them.
        temporal_threshold: mean cosine of a patch between the frames of a stretch from
            which on it counts as static.
        segment_threshold: cosine of two neighbouring frames below which a new stretch
            begins.
        neighbours: nearest tokens that the density around a token is of.
    """

    tokens: str = "frames"
    kept_share: float = 1.0
    relevant_share: float = 1.0
    temporal_threshold: float = 0.8
    segment_threshold: float = 0.6
    neighbours: int = 4

    def __post_init__(self) -> None:
        """Checks the ranges, and that there are patches to prune."""
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
        """K, tokens that are left of a clip's patches, at least one.

        >>> PruningConfig("patches", kept_share=0.2).kept(32)
        6
        """
        return max(1, round(self.kept_share * patches))

    def relevant(self, tokens: int) -> int:
        """How many of a clip's tokens are read together with a text, at least one."""
        return max(1, round(self.relevant_share * tokens))


class Pruned(NamedTuple):
    """Which token each patch of a clip became a part of.

    Attributes:
        shares: float32 [B, K, T, P], the weight of each patch in the mean that a token
            is; they sum to 1 over the patches of a token that is real.
        real: bool [B, K], false on tokens that a clip does not need.
    """

    shares: jax.Array
    real: jax.Array

    def tokens(self, features: jax.Array) -> jax.Array:
        """Means [B, K, D] of features [B, T, P, D]; zeros where nothing is real."""
        means = jnp.einsum(
            "bktp,btpd->bkd", self.shares.astype(features.dtype), features
        )
        return means

    def frames(self) -> jax.Array:
        """How much of each token is of each frame, float32 [B, K, T]."""
        return jnp.sum(self.shares, axis=3)


def prune_tokens(
    features: jax.Array, present: jax.Array, config: PruningConfig
) -> Pruned:
    """Merges patches over time and clusters what is left.

    Labels are constants to differentiation: gradients go through the means alone.

    Args:
        features: [B, T, P, D], of the patches of each frame.
        present: bool [B, T], false on frames that a shorter clip does not have.
        config: how many tokens are left, and what counts as static.

    Returns:
        Assignments to K tokens, K by ``config.kept``, in the order of the patches that
        they are centred at. With a share of 1 each patch is a token of its own.

    Raises:
        ValueError: shapes that do not fit together.

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
    """The patch that each patch of a clip is merged into: itself, if it changes.

    A patch is static in a stretch of frames if the mean cosine between its features in
    every two of them reaches ``config.temporal_threshold``; all of it is then merged
    into that of the stretch's first frame.

    Args:
        x: float32 [T, P, D].
        present: bool [T].
        config: the thresholds.

    Returns:
        int32 [T, P], numbers of patches (frame times P plus place); -1 on frames that
        are not there.
    """
    frames, patches = x.shape[:2]
    mean = _unit(jnp.mean(x, axis=1))
    # Frames that are there come first, so that neighbours in time are neighbours here.
    new = jnp.sum(mean[1:] * mean[:-1], axis=-1) < config.segment_threshold
    stretch = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(new)])
    same = (stretch[:, None] == stretch[None]) & present[:, None] & present[None]
    unit = _unit(x)
    cosines = jnp.einsum("spd,tpd->stp", unit, unit)
    pairs = same & ~jnp.eye(frames, dtype=bool)
    # Of the whole stretch that a frame is in, for each place [T, P].
    per_frame = jnp.sum(jnp.where(pairs[..., None], cosines, 0), axis=1)
    total = jnp.einsum("st,tp->sp", same.astype(jnp.float32), per_frame)
    size = jnp.sum(same, axis=1)[:, None]
    mean_cosine = total / jnp.maximum(size * (size - 1), 1)
    static = (mean_cosine >= config.temporal_threshold) & (size > 1)
    # The first frame of the stretch.
    first = jnp.argmax(same, axis=1)[:, None]
    place = jnp.arange(patches)[None]
    own = jnp.arange(frames)[:, None] * patches + place
    merged = jnp.where(static, first * patches + place, own)
    return jnp.where(present[:, None], merged, -1).astype(jnp.int32)


def cluster(
    x: jax.Array, leaders: jax.Array, kept: int, neighbours: int
) -> tuple[jax.Array, jax.Array]:
    """Clusters merged patches around density peaks (DPC-KNN).

    The density of a token is ``exp(-m)``, m the mean squared distance to its nearest
    ones; centres are tokens of the largest density times squared distance to the
    nearest token that is denser. Each token goes to the nearest centre.

    Args:
        x: float32 [N, D], features of patches.
        leaders: int [N], see `merge_static`; a token is the mean of those that share
            one.
        kept: K, clusters.
        neighbours: nearest tokens that the density is of; as many as there are, if
            there are fewer.

    Returns:
        The cluster of each patch, int32 [N], -1 where there is none; and bool [K],
        which clusters are not empty, all of them first.
    """
    count = len(x)
    members = jax.nn.one_hot(leaders, count, axis=0, dtype=jnp.float32)
    sizes = jnp.sum(members, axis=1)
    real = sizes > 0
    means = (members @ x) / jnp.maximum(sizes, 1)[:, None]
    # To one scale, so that the density does not vanish where features are large.
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
    # Of equal ones the first is the denser.
    tied = (log_density[None] == log_density[:, None]) & (index[None] < index[:, None])
    denser = (denser | tied) & both
    apart = jnp.min(jnp.where(denser, squares, _FAR), axis=1)
    largest = jnp.max(jnp.where(both, squares, 0))
    # Distances of at least the densest token's, which is far from all.
    apart = jnp.where(jnp.any(denser, axis=1), apart, largest)
    score = jnp.where(real, jnp.exp(log_density) * apart, -1.0)
    _, centres = jax.lax.top_k(score, kept)
    # In the order of the patches, those that are none last.
    centres = jnp.sort(jnp.where(real[centres], centres, count))
    found = centres < count
    to_centres = squares[:, jnp.minimum(centres, count - 1)]
    of_token = jnp.argmin(jnp.where(found[None], to_centres, jnp.inf), axis=1)
    labels = jnp.where(leaders >= 0, of_token[jnp.maximum(leaders, 0)], -1)
    return labels.astype(jnp.int32), found


def relevant_tokens(
    video: jax.Array, real: jax.Array, text: jax.Array, words: jax.Array, kept: int
) -> tuple[jax.Array, jax.Array]:
    """The tokens of clips that their texts are most related to, in their order.

    Args:
        video: [B, K, D].
        real: bool [B, K], false where there is no token; these come last.
        text: [B, S, D].
        words: bool [B, S], false where a text has no token.
        kept: how many.

    Returns:
        [B, kept, D], and bool [B, kept].
    """
    if kept >= video.shape[1]:
        return video, real
    seen = _unit(jax.lax.stop_gradient(video).astype(jnp.float32))
    read = _unit(jax.lax.stop_gradient(text).astype(jnp.float32))
    cosines = jnp.einsum("bkd,bsd->bks", seen, read)
    best = jnp.max(jnp.where(words[:, None], cosines, -2.0), axis=2)
    _, chosen = jax.lax.top_k(jnp.where(real, best, -3.0), kept)
    chosen = jnp.sort(chosen, axis=1)
    return (
        jnp.take_along_axis(video, chosen[..., None], axis=1),
        jnp.take_along_axis(real, chosen, axis=1),
    )


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def _squared_distances(x: jax.Array) -> jax.Array:
    """Between rows of [N, D]; exactly 0 on the diagonal."""
    x = x - jnp.mean(x, axis=0, keepdims=True)
    norms = jnp.sum(x * x, axis=1)
    squares = norms[:, None] + norms[None] - 2 * (x @ x.T)
    return jnp.where(jnp.eye(len(x), dtype=bool), 0.0, jnp.maximum(squares, 0))
