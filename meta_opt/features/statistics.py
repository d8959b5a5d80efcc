"""Statistics of gradients, momenta and parameters: the controller's dynamic inputs.

All are reductions to one number per unit ([N] vectors), so that a sharded step needs a
single all-reduce. Features are ratios: they depend neither on the scale of the loss nor
on names, the order of parameters or the number of tensors, and are the same for a
kernel and its transpose. The one absolute size among them is the width, which the
spectral condition (Yang et al. 2023, arXiv:2310.17813) scales steps by.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.features.tensors import GROUPS, TensorInfo

TINY = 1e-30
"""Added before a logarithm or a division; below any useful mean square in float32."""
_FLAT = 1e-18
_WIDTH = 64.0
"""Longer side of a matrix at which the ``width`` feature is zero."""
_FRESH, _PRETRAINED = 2.0, 10.0
"""Dispersions of row and column norms at which ``structure`` starts to rise and reaches
one."""


class Statistics(NamedTuple):
    """Sums over the elements of each unit; every field is float32 [N]."""

    grad_square: jax.Array
    momentum_square: jax.Array
    param_square: jax.Array
    grad_momentum: jax.Array


class History(NamedTuple):
    """Running statistics of each unit; every field is float32 [N].

    Attributes:
        log_grad_sq_ema: average of the log mean square gradient.
        log_grad_sq_max: maximum of this average so far.
        alignment_ema: average cosine of gradient and momentum.
        path: sum of the RMS of all updates so far.
        decayed: sum of step times weight decay so far.
        structure: `structure` of the initial parameters.
    """

    log_grad_sq_ema: jax.Array
    log_grad_sq_max: jax.Array
    alignment_ema: jax.Array
    path: jax.Array
    decayed: jax.Array
    structure: jax.Array


class UnitTable(NamedTuple):
    """Constants of the N units, in the optimizer's order.

    Attributes:
        size: float32 [N], number of elements of each unit.
        matrix: float32 [N], 1 where the orthogonalised direction applies.
        longer: float32 [N], the longer side of a matrix; 1 for other units.
        shorter: float32 [N], the shorter side of a matrix; 1 for other units.
        membership: float32 [N, G], one-hot modality group of each unit, for logs.
    """

    size: np.ndarray
    matrix: np.ndarray
    longer: np.ndarray
    shorter: np.ndarray
    membership: np.ndarray


def unit_table(infos: list[TensorInfo]) -> UnitTable:
    """Builds the constants for units of ``infos``, leaf after leaf."""

    def each(numbers: list[float]) -> np.ndarray:
        counts = [i.units for i in infos]
        return np.repeat(np.asarray(numbers, np.float64), counts).astype(np.float32)

    sides = [sorted((i.rows, i.columns)) if i.has_sides else (1.0, 1.0) for i in infos]
    member = [np.eye(len(GROUPS))[GROUPS.index(i.group)] for i in infos]
    rows = np.repeat(
        np.asarray(member).reshape(-1, len(GROUPS)), [i.units for i in infos], axis=0
    )
    return UnitTable(
        size=each([math.prod(i.shape) for i in infos]),
        matrix=each([float(i.is_matrix) for i in infos]),
        longer=each([longer for _, longer in sides]),
        shorter=each([shorter for shorter, _ in sides]),
        membership=rows.astype(np.float32),
    )


def structure(
    row: jax.Array, column: jax.Array, rows: np.ndarray, columns: np.ndarray
) -> jax.Array:
    r"""How far matrices are from independent entries of one variance, in [0, 1].

    The mean squares :math:`r_i` of the rows of a matrix with :math:`c` columns of
    independent entries vary by :math:`\mathrm{Var}(r) / \bar r^2 = (\kappa - 1) / c`,
    with kurtosis :math:`\kappa = 3` for normal entries. Kernels of extensively trained
    models exceed that five to a thousand times, common initialisations never: the
    result is 0 up to twice as much, 1 from ten times on, and logarithmic in between.

    Args:
        row: float32 [U, R], mean squares of the rows, and anything after these.
        column: float32 [U, C], mean squares of the columns.
        rows: float32 [U] or [1], number of rows of each matrix.
        columns: float32 [U] or [1], number of columns of each matrix.

    Returns:
        float32 [U], of rows or columns, whichever vary more; 0 for a zero matrix.
    """

    def dispersion(means: jax.Array, count: np.ndarray, averaged: np.ndarray):
        present = np.arange(means.shape[1]) < count[:, None]
        mean = jnp.mean(means, axis=1, where=present)
        variance = jnp.var(means, axis=1, where=present)
        return 0.5 * averaged * variance / (jnp.square(mean) + TINY)

    found = jnp.maximum(
        dispersion(row, rows, columns), dispersion(column, columns, rows)
    )
    # NaN if squares overflow.
    found = jnp.where(jnp.isfinite(found), found, 0.0)
    span = math.log(_PRETRAINED / _FRESH)
    return jnp.clip(jnp.log(found / _FRESH + TINY) / span, 0.0, 1.0)


def smooth(mean_square: jax.Array) -> jax.Array:
    """Identity whose gradient is zero for vanishing values.

    Derivatives of roots and logarithms of a mean square of 1e-30 overflow, and
    meta-gradients pass through all of them. The value, and compiled code without
    derivatives, are unchanged.
    """
    return jnp.where(
        mean_square > _FLAT, mean_square, jax.lax.stop_gradient(mean_square)
    )


def _log(x: jax.Array) -> jax.Array:
    return jnp.log(smooth(x) + TINY)


def cosine(stats: Statistics) -> jax.Array:
    """Cosine of gradient and momentum of each unit; float32 [N], in [-1, 1]."""
    # Two square roots, since the product of two small squares would underflow.
    grad = jax.lax.rsqrt(smooth(stats.grad_square) + TINY)
    momentum = jax.lax.rsqrt(smooth(stats.momentum_square) + TINY)
    return jnp.clip(stats.grad_momentum * grad * momentum, -1.0, 1.0)


def clipped(x: jax.Array, scale: float = 0.5, limit: float = 5.0) -> jax.Array:
    """Logarithms clipped to +-limit and scaled to the input range of an LSTM."""
    return scale * jnp.clip(x, -limit, limit)


def grad_rms(stats: Statistics, table: UnitTable) -> jax.Array:
    """RMS of all gradient elements; float32 scalar."""
    total = max(float(np.sum(table.size, dtype=np.float64)), 1.0)
    return jnp.sqrt(smooth(jnp.sum(stats.grad_square) / total))


TENSOR_FEATURES = (
    *("gradient/all", "momentum/gradient", "gradient/ema", "ema/max"),
    *("alignment", "alignment_ema", "size", "near_zero", "moved"),
    *("structure", "matrix", "aspect", "thin", "width"),
)
"""Names of the features that `tensor_features` returns."""
SUMMARY_FEATURES = (
    *("constant", "structured", "alignment_all", "alignment_ema_all"),
    *("reach", "reach_known"),
)
"""Names of the features that `summary_features` returns."""


def tensor_features(stats: Statistics, table: UnitTable, history: History) -> jax.Array:
    """Features of every unit.

    Logarithms of ratios: gradient to all gradients, momentum to gradient, gradient to
    its average, average to its maximum; parameter RMS times the root of the longer side
    (about 0 for a new square matrix), distance travelled to parameter RMS, longer to
    shorter side, width 64 to longer side. Cosines of gradient and momentum, now and on
    average. Flags: parameters near zero, `structure`, matrix or not, thin (a side 8 to
    32 times the other, as of LoRA factors and classifiers).

    Args:
        stats: sums of this step.
        table: constants of the units.
        history: running statistics; ``log_grad_sq_ema`` is the present value on the
            first step.

    Returns:
        float32 [N, `TENSOR_FEATURES`].
    """
    size = table.size
    g = _log(stats.grad_square / size)
    m = _log(stats.momentum_square / size)
    mean_square = stats.param_square / size
    overall = _log(jnp.square(grad_rms(stats, table)))
    relative = mean_square * table.longer
    aspect = np.log(table.longer / table.shorter)
    columns = [
        clipped(0.5 * (g - overall)),
        clipped(0.5 * (m - g)),
        clipped(0.5 * (g - history.log_grad_sq_ema)),
        clipped(0.5 * (history.log_grad_sq_ema - history.log_grad_sq_max)),
        cosine(stats),
        history.alignment_ema,
        clipped(0.5 * _log(relative), limit=3.0),
        1.0 / (1.0 + relative / 2.5e-3),
        0.25 * jnp.clip(jnp.log(history.path + 1e-6) - 0.5 * _log(mean_square), -6, 2),
        history.structure,
        jnp.asarray(table.matrix),
        jnp.asarray(np.minimum(aspect / 4.0, 1.5)),
        jnp.asarray(np.clip((np.log2(table.longer / table.shorter) - 3) / 2, 0, 1)),
        jnp.asarray(
            table.matrix
            * np.clip(0.5 * np.log(_WIDTH / np.maximum(table.longer, 1)), -1.8, 1.0)
        ),
    ]
    return jnp.stack([x.astype(jnp.float32) for x in columns], axis=1)


def summary_features(
    stats: Statistics,
    table: UnitTable,
    history: History,
    loss: jax.Array,
    loss_known: jax.Array,
    step: float,
) -> jax.Array:
    r"""Features of the model as a whole.

    A constant; the mean `structure` of all matrices, weighted by elements; the cosine
    of all gradients and all momenta, current and (weighted by gradients) average; and
    ``reach``, the logarithm of

    .. math:: \frac{\eta \sum_u \lVert g_u \rVert \sqrt{n_u}}{|\ell|},

    the relative decrease of the loss :math:`\ell` by a step of RMS :math:`\eta` if the
    loss were linear and every unit with :math:`n_u` elements moved along its average
    gradient :math:`g_u`. It depends neither on the scale of the loss nor on that of the
    parameters, and indicates how far such a step goes: between e^-5 (new networks with
    a small initialisation) and e^2 (pretrained encoders).

    Args:
        stats: sums of this step.
        table: constants of the units.
        history: running statistics of the units.
        loss: float32 [], average loss so far.
        loss_known: float32 [], 0 if the loss was never given.
        step: :math:`\eta`.

    Returns:
        float32 [`SUMMARY_FEATURES`].
    """
    weight = table.size * table.matrix
    structured = jnp.sum(history.structure * weight) / max(float(weight.sum()), 1.0)
    total = Statistics(*(jnp.sum(x, keepdims=True) for x in stats))
    share = stats.grad_square / (jnp.sum(stats.grad_square) + TINY)
    grad_rms_ema = jnp.exp(0.5 * history.log_grad_sq_ema)
    drop = step * jnp.sum(grad_rms_ema * table.size)
    known = loss_known * (drop > 0)
    reach = jnp.log(drop + TINY) - jnp.log(jnp.abs(loss) + TINY)
    return jnp.stack(
        [
            jnp.float32(1.0),
            structured,
            cosine(total)[0],
            jnp.sum(share * history.alignment_ema),
            jnp.where(known > 0, clipped(reach), 0.0),
            known.astype(jnp.float32),
        ]
    )
