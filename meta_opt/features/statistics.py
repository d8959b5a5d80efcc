"""Statistics of gradient, momentum and parameter: the controller's moving inputs.

All of them are reductions to one number a unit ([N] vectors), so a sharded step needs
them summed over devices once. They are free of the loss's scale: gradients enter only
through ratios.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.features.tensors import (
    ADAPTERS,
    GROUPS,
    MODALITIES,
    ROLES,
    STATIC_FEATURES,
    TensorInfo,
    static_features,
)

TINY = 1e-30
"""Added before a logarithm or a division; below any useful mean square in float32."""
_FLAT = 1e-18
_LARGE = 1e5
"""Parameters; no small task has as many."""
_NEW = 0.088
"""RMS of a new matrix 128 wide; those of Whisper tiny have a third of it."""


class Statistics(NamedTuple):
    """Sums over the elements of each unit; every field is float32 [N]."""

    grad_square: jax.Array
    momentum_square: jax.Array
    param_square: jax.Array
    grad_momentum: jax.Array


class UnitTable(NamedTuple):
    """Constants of the N units, in the order in which the optimizer keeps them.

    Attributes:
        size: float32 [N], elements of each unit.
        static: float32 [N, static], see `STATIC_FEATURES`.
        membership: float32 [N, G], one-hot modality group of each unit.
        matrix: float32 [N], 1 where the orthogonalised direction applies.
        model: float32 [`MODEL_FEATURES`], what is trained as a whole.
    """

    size: np.ndarray
    static: np.ndarray
    membership: np.ndarray
    matrix: np.ndarray
    model: np.ndarray


def unit_table(infos: list[TensorInfo]) -> UnitTable:
    """Builds the constants for units of ``infos``, leaf after leaf."""
    size = [np.full(i.units, np.prod(i.shape, dtype=np.float64)) for i in infos]
    static = [static_features(i) for i in infos]
    member = [
        np.tile(np.eye(len(GROUPS))[GROUPS.index(i.group)], (i.units, 1)) for i in infos
    ]
    matrix = [np.full(i.units, float(i.is_matrix)) for i in infos]

    def join(parts: list[np.ndarray], *tail: int) -> np.ndarray:
        empty = np.zeros((0, *tail))
        return np.concatenate([empty, *parts]).astype(np.float32)

    return UnitTable(
        join(size),
        join(static, len(STATIC_FEATURES)),
        join(member, len(GROUPS)),
        join(matrix),
        _model_features(infos),
    )


def _model_features(infos: list[TensorInfo]) -> np.ndarray:
    """One, log size, log number of matrices, shares of roles, two towers, large.

    Large: 0 up to 100,000 parameters, 1 from a million; 0 of two towers, whose step
    is small as it is. Large with adapters: the same where there are any, else 0; what
    they are put on is larger still.

    They tell a linear probe from a head in a deep model, adapters from full training,
    and a contrastive model (several modalities that nothing joins), which no tensor
    shows by itself.
    """
    matrices = sum(info.units for info in infos if info.is_matrix)
    by_role = np.zeros(len(ROLES))
    for info in infos:
        by_role[ROLES.index(info.role)] += info.units * math.prod(info.shape)
    total = max(by_role.sum(), 1.0)
    first = [1.0, math.log10(total) / 4 - 1.0, math.log10(matrices + 1)]
    # Of matrices: a logit scale is no head.
    groups = {info.group for info in infos if info.is_matrix and info.units}
    joined = groups & {"fusion", "head"}
    towers = float(len(groups & set(MODALITIES)) > 1 and not joined)
    large = (1.0 - towers) * min(max(math.log10(total / _LARGE), 0.0), 1.0)
    adapted = large * float(any(by_role[ROLES.index(r)] for r in ADAPTERS))
    last = [towers, large, adapted]
    return np.concatenate([first, by_role / total, last]).astype(np.float32)


def smooth(mean_square: jax.Array) -> jax.Array:
    """The same number, with no derivative where it is next to nothing.

    Roots and logarithms of a mean square of 1e-30 have derivatives that overflow, and
    meta-gradients go through all of them. The value, and compiled code without
    derivatives, are unchanged.
    """
    return jnp.where(
        mean_square > _FLAT, mean_square, jax.lax.stop_gradient(mean_square)
    )


def _log(x: jax.Array) -> jax.Array:
    return jnp.log(smooth(x) + TINY)


def _cosine(stats: Statistics) -> jax.Array:
    # Two roots, since the product of two small squares would underflow.
    grad = jax.lax.rsqrt(smooth(stats.grad_square) + TINY)
    momentum = jax.lax.rsqrt(smooth(stats.momentum_square) + TINY)
    return jnp.clip(stats.grad_momentum * grad * momentum, -1.0, 1.0)


def clipped(x: jax.Array, scale: float = 0.5, limit: float = 5.0) -> jax.Array:
    """Logs clipped to +-limit and halved, so that an LSTM takes them as they are."""
    return scale * jnp.clip(x, -limit, limit)


def grad_rms(stats: Statistics, table: UnitTable) -> jax.Array:
    """RMS of all gradient elements; float32 scalar."""
    total = max(float(np.sum(table.size, dtype=np.float64)), 1.0)
    return jnp.sqrt(smooth(jnp.sum(stats.grad_square) / total))


_DYNAMIC = (
    "gradient/all",
    "momentum/gradient",
    "parameter",
    "gradient/usual",
    "usual/peak",
    "alignment",
    "alignment_squared",
    "group_share",
)
TENSOR_FEATURES = (*_DYNAMIC, *STATIC_FEATURES, "large_parameter", "large_role_lora")
GROUP_FEATURES = (*(f"share_{g}" for g in GROUPS), *(f"alignment_{g}" for g in GROUPS))
MODEL_FEATURES = (
    "constant",
    "model_size",
    "model_matrices",
    *(f"model_{r}" for r in ROLES),
    *("two_towers", "large", "large_adapters"),
)


def tensor_features(
    stats: Statistics,
    table: UnitTable,
    past_log_square: jax.Array,
    peak_log_square: jax.Array,
) -> jax.Array:
    """Features of every unit.

    ``large_parameter`` is the log RMS of a matrix of a large model against that of a
    new one 128 wide, in [-1.5, 0.5]; 0 of adapters, which start at zero, and for which
    there is ``large_role_lora``.

    Args:
        stats: sums of this step.
        table: constants of the units.
        past_log_square: float32 [N], moving average of the log mean square of the
            unit's gradient; equal to the present one on the first step.
        peak_log_square: float32 [N], the largest that average has been.

    Returns:
        float32 [N, `TENSOR_FEATURES`].
    """
    size = table.size
    g = _log(stats.grad_square / size)
    m = _log(stats.momentum_square / size)
    p = _log(stats.param_square / size)
    overall = _log(jnp.square(grad_rms(stats, table)))
    cosine = _cosine(stats)
    share = jnp.asarray(table.membership) @ _group_share(stats, table)
    dynamic = [
        clipped(0.5 * (g - overall)),
        clipped(0.5 * (m - g)),
        clipped(0.5 * p + 3.0),
        clipped(0.5 * (g - past_log_square)),
        clipped(0.5 * (past_log_square - peak_log_square)),
        cosine,
        jnp.square(cosine),
        clipped(_log(share), 0.2),
    ]
    roles = [STATIC_FEATURES.index(f"role_{r}") for r in ADAPTERS]
    adapter = jnp.asarray(table.static[:, roles].sum(axis=1))
    large = jnp.asarray(table.model[MODEL_FEATURES.index("large")] * table.matrix)
    scale = jnp.clip(0.5 * p - math.log(_NEW), -1.5, 0.5)
    last = jnp.stack([large * (1.0 - adapter) * scale, large * adapter], axis=1)
    return jnp.concatenate([jnp.stack(dynamic, axis=1), table.static, last], axis=1)


def _group_share(stats: Statistics, table: UnitTable) -> jax.Array:
    """Share of each modality group in the squared gradient norm; float32 [G]."""
    by_group = stats.grad_square @ table.membership
    return by_group / (jnp.sum(by_group) + TINY)


def group_features(stats: Statistics, table: UnitTable) -> jax.Array:
    """Cross-modal sensitivity: each group's gradient share and mean alignment.

    Returns:
        float32 [`GROUP_FEATURES`]; zeros for groups that the model does not have.
    """
    present = np.any(table.membership > 0, axis=0).astype(np.float32)
    count = np.maximum(np.sum(table.membership, axis=0), 1.0).astype(np.float32)
    share = clipped(_log(_group_share(stats, table)), 0.2)
    cosine = _cosine(stats)
    alignment = (cosine @ table.membership) / count
    return jnp.concatenate([share, alignment]) * np.concatenate([present, present])
