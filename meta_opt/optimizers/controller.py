"""The controller: global and per-tensor LSTMs that output the update rule's controls.

``theta``, its weights, is an explicit pytree of float32 arrays: evolution strategies
vmap over it, and nothing hides in a module object. With zero output weights the
controls are those of the hand-designed rule, bit for bit.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.features.progress import PROGRESS_FEATURES
from meta_opt.features.statistics import (
    SUMMARY_FEATURES,
    TENSOR_FEATURES,
    History,
    Statistics,
    UnitTable,
    summary_features,
    tensor_features,
)
from meta_opt.optimizers.update_rule import DIRECTIONS, RMS_STEP, Controls
from meta_opt.types import PyTree, near_match

OVERVIEW_FEATURES = (*PROGRESS_FEATURES, *SUMMARY_FEATURES)
"""Features of the whole run, in order."""
FEATURES = (*TENSOR_FEATURES, *OVERVIEW_FEATURES)
OUTPUTS = (
    *DIRECTIONS,
    *("step", "one_minus_b1", "one_minus_b2", "weight_decay", "compress"),
)
"""Outputs of the controller for every tensor, in order."""

_BOUNDS = {
    "step": (-4.0, 2.5),
    "one_minus_b1": (-0.7, 0.7),
    "one_minus_b2": (-1.0, 1.0),
    "weight_decay": (-3.0, 1.5),
}
"""Bounds of the log multiplier of each hand-designed control."""
_RANGE_MARGIN = 0.1
"""Added to the width of a feature's range, so that it is never next to zero."""

_MAX_HIDDEN = 4096
"""Maximum width of an LSTM; a larger value indicates a damaged file."""


@dataclasses.dataclass(frozen=True)
class ControllerConfig:
    """Architecture of the controller.

    Attributes:
        global_hidden: width of the LSTM that reads features of the whole run.
        tensor_hidden: width of the LSTM that reads features of each tensor.
        directions: directions that the mixture may use, of `DIRECTIONS`; those of the
            hand-designed rule (``orthogonal`` for matrices, ``adam`` for other tensors)
            are always included. Fewer make the update cheaper.
        orthogonal: whether matrices have the orthogonalised direction; False replaces
            it by ``adam``, an elementwise rule that is faster on small problems.
        iterations: of the orthogonalisation, for small and for large matrices, see
            `meta_opt.optimizers.orthogonal`. Fewer iterations take less time and
            equalise the singular values less.
        feature_range: smallest and largest value of each of `FEATURES` in
            meta-training. Features are clipped to it, and outputs fade to those of the
            hand-designed rule as features leave it. Empty: no range.
        record_range: whether to record the smallest and largest value of each feature
            in the state, to choose ``feature_range``.
    """

    global_hidden: int = 24
    tensor_hidden: int = 16
    directions: tuple[str, ...] = DIRECTIONS
    orthogonal: bool = True
    iterations: tuple[int, int] = (5, 5)
    feature_range: tuple[tuple[float, float], ...] = ()
    record_range: bool = False

    @property
    def mixable(self) -> frozenset[str]:
        """Directions that can have weight for a matrix."""
        if self.orthogonal:
            return frozenset({*self.directions, "orthogonal"})
        return frozenset({*self.directions, "adam"} - {"orthogonal"})

    def __post_init__(self) -> None:
        """Checks every field."""
        for name in ("directions", "iterations", "feature_range"):
            try:
                hash(getattr(self, name))
            except TypeError:
                raise TypeError(
                    f"{name}={getattr(self, name)!r} of the config must be a tuple"
                ) from None
        unknown = set(self.directions) - set(DIRECTIONS)
        if unknown:
            raise ValueError(
                f"unknown directions {sorted(unknown)}; available: {DIRECTIONS}"
            )
        for name in ("global_hidden", "tensor_hidden"):
            if not 1 <= (width := getattr(self, name)) <= _MAX_HIDDEN:
                raise ValueError(f"{name}={width} must be from 1 to {_MAX_HIDDEN}")
        if len(self.iterations) != 2 or min(self.iterations) < 1:
            raise ValueError(
                f"iterations={self.iterations} must be two numbers from 1, of small "
                "and of large matrices"
            )
        if self.feature_range and len(self.feature_range) != len(FEATURES):
            raise ValueError(
                f"feature_range has {len(self.feature_range)} pairs; there are "
                f"{len(FEATURES)} features"
            )


class ControllerState(NamedTuple):
    """State of the two LSTMs; float32.

    ``recorded_range`` [2, F] holds the smallest and largest of `FEATURES` so far; None
    unless the config records them.
    """

    global_hidden: jax.Array
    global_cell: jax.Array
    tensor_hidden: jax.Array
    tensor_cell: jax.Array
    recorded_range: jax.Array | None = None


def _lstm_init(key: jax.Array, inputs: int, hidden: int) -> dict[str, jax.Array]:
    # Constants in NumPy, since each JAX operation would compile a program.
    scale = 1 / np.sqrt(np.float32(inputs + hidden))
    kernel = scale * jax.random.normal(key, (inputs + hidden, 4 * hidden), jnp.float32)
    # Forget gates start open, so that memory lasts beyond a few steps.
    bias = np.zeros(4 * hidden, np.float32)
    bias[hidden : 2 * hidden] = 2.0
    return {"kernel": kernel, "bias": jnp.asarray(bias)}


def init_theta(key: jax.Array, config: ControllerConfig | None = None) -> PyTree:
    """Random LSTMs and zero output weights: exactly the hand-designed rule.

    Args:
        key: JAX random key.
        config: shape of the controller; the default is that of the shipped weights.

    Returns:
        theta: nested dict of float32 arrays.

    Example:
        >>> theta = init_theta(jax.random.key(0))
        >>> sorted(theta)
        ['global', 'output', 'tensor']
    """
    config = config or ControllerConfig()
    first, second = jax.random.split(key)
    context = config.global_hidden
    read = config.tensor_hidden + context + len(FEATURES)
    return {
        "global": _lstm_init(first, len(OVERVIEW_FEATURES), context),
        "tensor": _lstm_init(
            second, len(TENSOR_FEATURES) + context, config.tensor_hidden
        ),
        "output": {
            "kernel": jnp.asarray(np.zeros((read, len(OUTPUTS)), np.float32)),
            "bias": jnp.asarray(np.zeros(len(OUTPUTS), np.float32)),
        },
    }


def output_index(config: ControllerConfig, name: str) -> tuple[int, int]:
    """Index of a direct weight in ``theta["output"]["kernel"]``.

    Args:
        config: the controller's shape.
        name: ``feature>output``, such as ``loss_level>step``; of `TENSOR_FEATURES` or
            `OVERVIEW_FEATURES`, and `OUTPUTS`.

    Returns:
        Row and column.

    Raises:
        ValueError: an unknown feature or output.
    """
    feature, _, output = name.partition(">")
    for what, given, known in (
        ("feature", feature, FEATURES),
        ("output", output, OUTPUTS),
    ):
        if given not in known:
            raise ValueError(
                f"{name!r} names no {what} of the controller"
                f"{near_match(given, known)}; available: {', '.join(known)}"
            )
    hidden = config.tensor_hidden + config.global_hidden
    return hidden + FEATURES.index(feature), OUTPUTS.index(output)


def init_controller(config: ControllerConfig, units: int) -> ControllerState:
    """Zero state for ``units`` tensors."""
    return ControllerState(
        jnp.zeros(config.global_hidden, jnp.float32),
        jnp.zeros(config.global_hidden, jnp.float32),
        jnp.zeros((units, config.tensor_hidden), jnp.float32),
        jnp.zeros((units, config.tensor_hidden), jnp.float32),
        _empty_range() if config.record_range else None,
    )


def _empty_range() -> jax.Array:
    return jnp.stack(
        [jnp.full(len(FEATURES), sign * jnp.inf, jnp.float32) for sign in (1, -1)]
    )


def _extend_range(
    recorded: jax.Array, tensors: jax.Array, overview: jax.Array
) -> jax.Array:
    low = jnp.concatenate([jnp.min(tensors, axis=0), overview])
    high = jnp.concatenate([jnp.max(tensors, axis=0), overview])
    return jnp.stack([jnp.minimum(recorded[0], low), jnp.maximum(recorded[1], high)])


def _lstm(
    weights: PyTree, inputs: jax.Array, hidden: jax.Array, cell: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One LSTM step over the last axis; leading axes are batch."""
    gates = jnp.concatenate([inputs, hidden], axis=-1) @ weights["kernel"]
    bias = weights["bias"].reshape((1,) * (gates.ndim - 1) + (-1,))
    i, f, g, o = jnp.split(gates + bias, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def control(
    theta: PyTree,
    state: ControllerState,
    stats: Statistics,
    table: UnitTable,
    history: History,
    progress: jax.Array,
    loss: tuple[jax.Array, jax.Array],
    base: Controls,
    config: ControllerConfig,
) -> tuple[Controls, ControllerState]:
    """Computes the controls of every tensor.

    Args:
        theta: weights from `init_theta`, meta-training or a shipped file.
        state: state of the LSTMs.
        stats: this step's sums, [N] each.
        table: constants of the units.
        history: running statistics of the units.
        progress: float32 [`PROGRESS_FEATURES`] from `progress_features`.
        loss: float32 [] each, from `meta_opt.features.progress.current_loss`.
        base: controls of the hand-designed rule, which the outputs modify.
        config: the controller's shape and directions.

    Returns:
        Controls, and the new state.
    """
    tensors = tensor_features(stats, table, history)
    summary = summary_features(stats, table, history, *loss, step=RMS_STEP)
    overview = jnp.concatenate([progress, summary])
    recorded = state.recorded_range
    if recorded is not None:
        recorded = _extend_range(recorded, tensors, overview)
    tensors, overview, trust = _within_range(tensors, overview, config)
    global_hidden, global_cell = _lstm(
        theta["global"], overview, state.global_hidden, state.global_cell
    )
    units = tensors.shape[0]

    def each(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x[None], (units, x.shape[0]))

    context = each(global_hidden)
    tensor_hidden, tensor_cell = _lstm(
        theta["tensor"],
        jnp.concatenate([tensors, context], axis=1),
        state.tensor_hidden,
        state.tensor_cell,
    )
    read = jnp.concatenate([tensor_hidden, context, tensors, each(overview)], axis=1)
    output = read @ theta["output"]["kernel"] + theta["output"]["bias"][None]
    controls = _modify(base, trust[:, None] * output, jnp.asarray(table.matrix), config)
    return controls, ControllerState(
        global_hidden, global_cell, tensor_hidden, tensor_cell, recorded
    )


def _within_range(
    tensors: jax.Array, overview: jax.Array, config: ControllerConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features clipped to the range of meta-training, and a trust in (0, 1] [N].

    Trust is ``exp(-distance)``, where the distance is the sum over features of their
    distance to the range, in units of its width. Features that never varied in
    meta-training, such as those of ``feedback`` if no family provided any, are clipped
    but not counted, since the controller cannot have learned to use them.
    """
    if not config.feature_range:
        return tensors, overview, jnp.ones(tensors.shape[0], jnp.float32)
    low, high = jnp.asarray(config.feature_range, jnp.float32).T
    width = high - low + _RANGE_MARGIN

    def clip(x: jax.Array, at: slice) -> tuple[jax.Array, jax.Array]:
        shape = (1,) * (x.ndim - 1) + (-1,)
        least, most = low[at].reshape(shape), high[at].reshape(shape)
        inside = jnp.clip(x, least, most)
        distance = jnp.where(most > least, jnp.abs(x - inside), 0.0)
        return inside, jnp.sum(distance / width[at].reshape(shape), axis=-1)

    tensors, tensor_distance = clip(tensors, slice(0, len(TENSOR_FEATURES)))
    overview, overview_distance = clip(overview, slice(len(TENSOR_FEATURES), None))
    return tensors, overview, jnp.exp(-(tensor_distance + overview_distance))


def _modify(
    base: Controls, output: jax.Array, matrix: jax.Array, config: ControllerConfig
) -> Controls:
    """Applies raw outputs [N, outputs] to the base controls; zero changes nothing."""
    k = len(DIRECTIONS)
    allowed = jnp.array([d in config.directions for d in DIRECTIONS], jnp.float32)
    usable = allowed[None] * jnp.stack(
        [matrix * config.orthogonal, *[jnp.ones_like(matrix)] * (k - 1)], axis=1
    )
    weights = base.weights + usable * jnp.tanh(output[:, :k])
    # A convex mixture up to signs, so that it is no larger than its largest direction.
    weights = weights / jnp.maximum(
        jnp.sum(jnp.abs(weights), axis=1, keepdims=True), 1e-3
    )

    def scaled(x: jax.Array, name: str) -> jax.Array:
        low, high = _BOUNDS[name]
        by = output[:, OUTPUTS.index(name)]
        # Slope one at zero, and saturating at the bounds.
        return x * jnp.exp(
            jnp.where(by > 0, high, low) * jnp.tanh(by / jnp.where(by > 0, high, low))
        )

    return Controls(
        step=scaled(base.step, "step"),
        weights=weights,
        one_minus_b1=scaled(base.one_minus_b1, "one_minus_b1"),
        one_minus_b2=scaled(base.one_minus_b2, "one_minus_b2"),
        weight_decay=scaled(base.weight_decay, "weight_decay"),
        compress=base.compress
        + jnp.clip(output[:, OUTPUTS.index("compress")], 0.0, 1.0),
    )
