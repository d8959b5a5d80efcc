"""Static descriptions of parameter tensors: path, role, modality group, depth, shape.

Everything here is plain Python over the *structure* of a parameter tree; it runs once
per trace and costs nothing per step.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.types import PyTree

ADAPTERS = ("lora_a", "lora_b")
ROLES = ("matrix", "embedding", "norm", "bias", *ADAPTERS)
MODALITIES = ("vision", "text", "audio", "video")
GROUPS = (*MODALITIES, "fusion", "head", "other")

STATIC_FEATURES = (
    *("size", "rows", "columns", "rank_0", "rank_1", "rank_2"),
    *(f"role_{role}" for role in ROLES),
    *(f"group_{group}" for group in GROUPS),
    *("depth", "wide"),
)
"""Names of what `static_features` gives."""

_DEFAULT_GROUPS: tuple[tuple[str, str], ...] = (
    (r"fusion|cross_?att|multi_?modal", "fusion"),
    (r"video|temporal", "video"),
    (r"audio|speech|mel|whisper|wav", "audio"),
    (r"vision|visual|image|img|vit|patch", "vision"),
    (r"text|token|word|language|caption|bert|gpt|decoder", "text"),
    (r"head|classifier|logit|proj_out|output_layer", "head"),
)
_WIDE = math.log10(160.0)
_EMBEDDING_LEAF = re.compile(
    r"^(embeddings?|embed|wte|wpe|\w*_embedding|pos_?emb\w*|position\w*|cls(_token)?)$",
    re.IGNORECASE,
)
_EMBEDDING_PARENT = re.compile(
    r"^(?!.*patch)(embed(dings?|der)?|wte|wpe|\w*token_?emb\w*|pos\w*emb\w*)$",
    re.IGNORECASE,
)
_NORM = re.compile(r"norm|(^|[/_])(ln|bn|rms)\w*(/|$)|(^|/)scale$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One leaf of the parameter tree.

    Attributes:
        path: names from the root, joined by ``/``.
        shape: shape of one unit, the layer axis left out.
        layers: length of the leading layer axis of a scan-stacked leaf, else 0.
        role: one of `ROLES`.
        group: one of `GROUPS`.
        depths: relative depth in [0, 1] of each unit, one entry per layer.
        split: axes ``[:split]`` of a unit are its rows, the others its columns.
    """

    path: str
    shape: tuple[int, ...]
    layers: int
    role: str
    group: str
    depths: tuple[float, ...]
    split: int

    @property
    def units(self) -> int:
        """Tensors that the controller steers separately: layers, or 1; 0 if empty."""
        if math.prod(self.shape) == 0:
            return 0
        return self.layers if self.layers else (0 if self.depths == () else 1)

    @property
    def is_matrix(self) -> bool:
        """Whether the orthogonalised direction and weight decay apply."""
        return len(self.shape) >= 2 and self.role != "embedding"

    @property
    def rows(self) -> int:
        """Rows of the unit seen as a matrix (fan-in by JAX convention)."""
        return math.prod(self.shape[: self.split])

    @property
    def columns(self) -> int:
        """Columns of the unit seen as a matrix."""
        return math.prod(self.shape[self.split :])


def path_name(path: tuple) -> str:
    """Joins a JAX key path by ``/``, without the ``value`` that Flax NNX appends."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return re.sub(r"/(raw_)?value$", "", name)


def balanced_split(shape: Sequence[int]) -> int:
    """Where to cut ``shape`` into rows and columns so that the matrix is most square.

    A ``[width, heads, head_dim]`` kernel becomes ``width x (heads * head_dim)`` and a
    ``[h, w, in, out]`` one ``(h * w * in) x out``. Ties go to the later cut.

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


def _role(path: str, rank: int) -> str:
    *parents, leaf = path.split("/")
    for name in (leaf, *parents[-1:]):
        if name.lower() in ADAPTERS:
            return name.lower()
    if rank <= 1:
        return "norm" if _NORM.search(path) and leaf != "bias" else "bias"
    parent_is_table = bool(parents) and _EMBEDDING_PARENT.match(parents[-1])
    named_weight = leaf in ("weight", "w", "table")
    if _EMBEDDING_LEAF.match(leaf) or (parent_is_table and named_weight):
        return "embedding"
    return "matrix"


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


def _layer_index(path: str) -> tuple[str, int] | None:
    """The path with its first layer number replaced by ``*``, and that number."""
    match = re.search(r"(^|[/_.]|(?<=[a-z]))(\d+)(?=/|$)", path)
    if match is None:
        return None
    return path[: match.start(2)] + "*" + path[match.end(2) :], int(match.group(2))


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
        One `TensorInfo` a leaf.

    Raises:
        TypeError: a leaf is not of floating-point type.
        ValueError: ``stacked`` or a pattern in ``groups`` finds no path, a group is not
            known, or a stacked leaf has rank 0.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [path_name(path) for path, _ in leaves]
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"parameter {path!r} has type {jnp.result_type(leaf)}; the optimizer "
                "updates floating-point parameters only: leave it out with "
                "optax.masked or keep it outside the parameters"
            )
    for pattern, group in groups or ():
        if group not in GROUPS:
            raise ValueError(f"unknown group {group!r}; groups: {', '.join(GROUPS)}")
        _check_found("groups", pattern, paths)
    if stacked is not None:
        _check_found("stacked", stacked, paths)

    numbered = [_layer_index(path) for path in paths]
    deepest: dict[str, int] = {}
    for entry in numbered:
        if entry:
            deepest[entry[0]] = max(deepest.get(entry[0], 0), entry[1])

    infos = []
    for path, (_, leaf), number in zip(paths, leaves, numbered, strict=True):
        shape = tuple(leaf.shape)
        layers = 0
        depths: tuple[float, ...] = (0.5,)
        if stacked is not None and re.search(stacked, path):
            if not shape:
                raise ValueError(
                    f"{path!r} is a scalar but stacked={stacked!r} says that it has a "
                    "leading layer axis"
                )
            layers, shape = shape[0], shape[1:]
            depths = tuple(i / max(layers - 1, 1) for i in range(layers))
        elif number is not None:
            depths = (number[1] / max(deepest[number[0]], 1),)
        infos.append(
            TensorInfo(
                path=path,
                shape=shape,
                layers=layers,
                role=_role(path, len(shape)),
                group=modality_group(path, groups or ()),
                depths=depths,
                split=balanced_split(shape),
            )
        )
    return tuple(infos)


def _check_found(argument: str, pattern: str, paths: Sequence[str]) -> None:
    if paths and not any(re.search(pattern, path, re.IGNORECASE) for path in paths):
        shown = ", ".join(paths[:8]) + (", ..." if len(paths) > 8 else "")
        raise ValueError(
            f"{argument} pattern {pattern!r} matches no parameter path; paths: {shown}"
        )


def static_features(info: TensorInfo) -> np.ndarray:
    """Features of a leaf's units that never change.

    Returns:
        float32 [units, `STATIC_FEATURES`]: log size, log fan-in, log fan-out (each
        about in [-1, 1]), rank one-hot (0, 1, 2 or more), role one-hot, group one-hot,
        depth; by how many powers of ten the geometric mean of rows and columns is above
        160, 0 below (no tensor of the small tasks is that wide).
    """
    size = math.prod(info.shape)
    logs = [math.log10(max(n, 1)) / 4 - 0.5 for n in (size, info.rows, info.columns)]
    rank = np.eye(3)[min(len(info.shape), 2)]
    role = np.eye(len(ROLES))[ROLES.index(info.role)]
    group = np.eye(len(GROUPS))[GROUPS.index(info.group)]
    shared = np.concatenate([logs, rank, role, group])
    wide = max(0.5 * math.log10(max(info.rows * info.columns, 1)) - _WIDE, 0.0)
    rows = [[*shared, 2 * depth - 1, wide] for depth in info.depths[: info.units]]
    return np.asarray(rows, np.float32).reshape(info.units, len(STATIC_FEATURES))
