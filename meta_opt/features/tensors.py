"""Static descriptions of parameter tensors: path, shape, and a modality group.

Everything here is plain Python over the *structure* of a parameter tree, which runs
once per trace.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from meta_opt.error_messages import first_few
from meta_opt.tree_paths import path_name
from meta_opt.types import PyTree

MODALITIES = ("vision", "text", "audio", "video")
GROUPS = (*MODALITIES, "fusion", "head", "other")

_DEFAULT_GROUPS: tuple[tuple[str, str], ...] = (
    (r"fusion|cross_?att|multi_?modal", "fusion"),
    (r"video|temporal", "video"),
    (r"audio|speech|mel|whisper|wav", "audio"),
    (r"vision|visual|image|img|vit|patch", "vision"),
    (r"text|token|word|language|caption|bert|gpt|decoder", "text"),
    (r"head|classifier|logit|proj_out|output_layer", "head"),
)


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One leaf of the parameter tree.

    Updates do not depend on names: the group is for logs only.

    Attributes:
        path: key path, joined by ``/``.
        shape: shape of one unit, without the layer axis.
        layers: length of the leading layer axis of a scan-stacked leaf, else 0.
        group: one of `GROUPS`.
        split: axes ``[:split]`` of a unit are its rows, the others its columns.
    """

    path: str
    shape: tuple[int, ...]
    layers: int
    group: str
    split: int

    @property
    def units(self) -> int:
        """Tensors with controls of their own: layers, or 1; 0 if empty."""
        if math.prod(self.shape) == 0:
            return 0
        return self.layers if self.layers else 1

    @property
    def is_matrix(self) -> bool:
        """Whether the orthogonalised direction and weight decay apply.

        A tensor with a side of one, such as a class token [1, D], is a vector. A tensor
        of rank two whose longer side is at least 1,024, whose shorter side is at least
        64, and whose sides have a ratio above five, is a vocabulary table: too large to
        orthogonalise, and with sparse gradients. Tensors of higher rank are no tables:
        a convolution's [3, 3, 128, 128] has sides of the same ratio (1,152 x 128), and
        dense gradients.
        """
        short, long = sorted((self.rows, self.columns))
        elongated = long >= 1024 and short >= 64 and long > 5 * short
        return self.has_sides and not (elongated and len(self.shape) == 2)

    @property
    def has_sides(self) -> bool:
        """Whether the unit has more than one row and more than one column."""
        return len(self.shape) >= 2 and min(self.rows, self.columns) > 1

    @property
    def flat(self) -> "TensorInfo":
        """The same unit as [rows, columns], or as [elements] for rank 0 and 1."""
        shape = (self.rows, self.columns) if len(self.shape) >= 2 else (self.rows,)
        return dataclasses.replace(self, shape=shape, split=1)

    @property
    def rows(self) -> int:
        """Rows of the unit seen as a matrix (fan-in by JAX convention)."""
        return math.prod(self.shape[: self.split])

    @property
    def columns(self) -> int:
        """Columns of the unit seen as a matrix."""
        return math.prod(self.shape[self.split :])


def balanced_split(shape: Sequence[int]) -> int:
    """Split of ``shape`` into rows and columns that makes the matrix most square.

    A ``[width, heads, head_dim]`` kernel becomes ``width x (heads * head_dim)`` and a
    ``[h, w, in, out]`` one ``(h * w * in) x out``. Of equal splits the later one is
    used.

    >>> balanced_split((64, 4, 16)), balanced_split((3, 3, 32, 64))
    (1, 3)
    """
    if len(shape) < 2:
        return len(shape)
    ratio = [
        abs(math.log(max(math.prod(shape[:k]), 1) / max(math.prod(shape[k:]), 1)))
        for k in range(1, len(shape))
    ]
    return max(range(1, len(shape)), key=lambda k: (-ratio[k - 1], k))


def modality_group(path: str, groups: Sequence[tuple[str, str]] = ()) -> str:
    """The modality group of a parameter, one of `GROUPS`.

    Args:
        path: '/'-joined.
        groups: (regular expression, group) pairs that come before the default ones.

    >>> modality_group("vision/layers/mlp/up/kernel")
    'vision'
    """
    for pattern, group in (*groups, *_DEFAULT_GROUPS):
        if re.search(pattern, path, re.IGNORECASE):
            return group
    return "other"


def describe(
    params: PyTree,
    stacked: str | None = None,
    groups: Sequence[tuple[str, str]] | None = None,
) -> tuple[TensorInfo, ...]:
    """Describes every leaf of ``params`` in flattening order.

    Args:
        params: pytree of floating-point arrays (or abstract ones).
        stacked: regular expression; leaves whose path it finds have a leading layer
            axis and are controlled layer by layer.
        groups: ordered (regular expression, group) pairs that come before the default
            ones; a group is one of `GROUPS`.

    Returns:
        One `TensorInfo` per leaf.

    Raises:
        TypeError: a leaf is not of floating-point type.
        ValueError: a stacked leaf has rank 0.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [path_name(path) for path, _ in leaves]
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"parameter {path!r} has type {jnp.result_type(leaf)}; the optimizer "
                "updates floating-point parameters only: leave it out with mask= or "
                "keep it outside the parameters"
            )

    infos = []
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        shape = tuple(leaf.shape)
        layers = 0
        if stacked is not None and re.search(stacked, path):
            if not shape:
                raise ValueError(
                    f"{path!r} is a scalar but stacked={stacked!r} says that it has a "
                    "leading layer axis"
                )
            layers, shape = shape[0], shape[1:]
            if not layers:
                shape = (0, *shape)
        infos.append(
            TensorInfo(
                path=path,
                shape=shape,
                layers=layers,
                group=modality_group(path, groups or ()),
                split=balanced_split(shape),
            )
        )
    return tuple(infos)


def check_patterns(
    params: PyTree, stacked: str | None, groups: Sequence[tuple[str, str]]
) -> None:
    """Checks `describe`'s patterns against all parameters, trained or not.

    Raises:
        ValueError: ``stacked`` or a pattern in ``groups`` finds no path, or a group is
            not one of `GROUPS`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [path_name(path) for path, _ in leaves]
    for pattern, group in groups:
        if group not in GROUPS:
            raise ValueError(f"unknown group {group!r}; groups: {', '.join(GROUPS)}")
        _check_found("groups", pattern, paths, re.IGNORECASE)
    if stacked is not None:
        _check_found("stacked", stacked, paths)


def _check_found(
    argument: str, pattern: str, paths: Sequence[str], flags: int = 0
) -> None:
    if paths and not any(re.search(pattern, path, flags) for path in paths):
        raise ValueError(
            f"{argument} pattern {pattern!r} matches no parameter path; paths: "
            f"{first_few(paths, 8)}"
        )
