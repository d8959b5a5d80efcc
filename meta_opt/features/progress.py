"""Global features of the run: progress, level and noise of the loss, feedback."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.features.statistics import TINY, clipped

_CENTRES = np.array([0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1], np.float32)
_SCALES = 4
"""Time scales of the loss averages, log-spaced from 4 steps to half the run."""

_LOW = 0.1
"""Share of the first loss below which a loss is low."""

PROGRESS_FEATURES = (
    *(f"past_{100 * float(c):.0f}%" for c in _CENTRES),
    *("log_step", "log_num_steps"),
    *(f"loss_slope_{i}" for i in range(_SCALES - 1)),
    *("loss_fall", "loss_noise", "loss_level", "loss_low", "loss_known"),
    *("feedback_gap", "feedback_over_best", "feedback_age", "feedback_known"),
)
"""Names of the features of `progress_features`."""


class ProgressState(NamedTuple):
    """Running averages of the loss, and the feedback so far.

    Attributes:
        averages: float32 [scales], exponential moving averages of the loss minus
            ``first``: a constant offset of the loss then costs their differences no
            precision, and these are exactly zero after one step.
        weights: float32 [scales], accumulated weights of the averages, for debiasing.
        deviation: float32 [], average distance of the loss from its fast average.
        first: float32 [], the first known loss.
        gap: float32 [], last feedback minus the loss average of that time.
        best_feedback: float32 [], smallest feedback so far.
        last_feedback: float32 [], the last feedback.
        feedback_step: float32 [], step of the last feedback; -1 if none was given.
    """

    averages: jax.Array
    weights: jax.Array
    deviation: jax.Array
    first: jax.Array
    gap: jax.Array
    best_feedback: jax.Array
    last_feedback: jax.Array
    feedback_step: jax.Array


def init_progress() -> ProgressState:
    """The state before the first loss."""
    # Separate arrays, since a donated state must not contain a buffer twice.
    scalars = {name: jnp.zeros((), jnp.float32) for name in ProgressState._fields}
    return ProgressState(
        **{
            **scalars,
            "averages": jnp.zeros(_SCALES, jnp.float32),
            "weights": jnp.zeros(_SCALES, jnp.float32),
            "feedback_step": -jnp.ones((), jnp.float32),
        }
    )


def _average(state: ProgressState) -> jax.Array:
    """Debiased averages of the loss minus ``first``, float32 [scales]."""
    known = state.weights > 0
    return jnp.where(known, state.averages / jnp.where(known, state.weights, 1.0), 0.0)


def current_loss(state: ProgressState) -> tuple[jax.Array, jax.Array]:
    """The fastest average of the loss, and 1.0 if any loss was given; float32 []."""
    known = state.weights[0] > 0
    return state.first + _average(state)[0], known.astype(jnp.float32)


def update_progress(
    state: ProgressState,
    step: jax.Array,
    num_steps: jax.Array | int,
    value: jax.typing.ArrayLike | None,
    feedback: jax.typing.ArrayLike | None,
) -> ProgressState:
    """Updates the averages with one step's loss and optional feedback.

    Args:
        state: the state so far.
        step: int32 [], steps done before this one.
        num_steps: steps in the whole run.
        value: float [] training loss of this step; None or a non-finite number means
            that it is not known.
        feedback: float [] validation loss; None or a non-finite number means none now.

    Returns:
        The new state.
    """
    if value is not None:
        value = jnp.asarray(value, jnp.float32)
        eighth = jnp.maximum(jnp.asarray(num_steps, jnp.float32) / 8.0, 1.01)
        half_life = 4.0 * jnp.exp(
            jnp.linspace(0.0, 1.0, _SCALES, dtype=jnp.float32) * jnp.log(eighth)
        )
        rate = 1.0 - jnp.exp2(-1.0 / half_life)
        known = jnp.isfinite(value)
        started = state.weights[0] > 0
        first = jnp.where(started, state.first, jnp.where(known, value, 0.0))
        loss = jnp.where(known, value, 0.0) - first
        averages = state.averages + rate * (loss - state.averages)
        weights = state.weights + rate * (1.0 - state.weights)
        distance = jnp.abs(loss - _average(state)[0]) * started
        deviation = state.deviation + rate[0] * (distance - state.deviation)
        new = state._replace(
            averages=averages,
            weights=weights,
            deviation=deviation,
            first=first,
        )
        state = jax.tree.map(lambda a, b: jnp.where(known, a, b), new, state)
    if feedback is not None:
        feedback = jnp.asarray(feedback, jnp.float32)
        known = jnp.isfinite(feedback)
        given = jnp.where(known, feedback, 0.0)
        had_one = state.feedback_step >= 0
        has_loss = state.weights[0] > 0
        new = state._replace(
            gap=jnp.where(has_loss, given - current_loss(state)[0], 0.0),
            best_feedback=jnp.where(
                had_one, jnp.minimum(state.best_feedback, given), given
            ),
            last_feedback=given,
            feedback_step=jnp.asarray(step, jnp.float32),
        )
        state = jax.tree.map(lambda a, b: jnp.where(known, a, b), new, state)
    return state


def progress_features(
    state: ProgressState,
    step: jax.Array,
    num_steps: jax.Array | int,
) -> jax.Array:
    """Computes the features of the whole run.

    Nine soft bins of the fraction done and two bounded logarithms of time; differences
    between loss averages of adjacent time scales, loss level relative to its start,
    noise; the train/validation gap, and the distance of the last feedback from the best
    and its age. Loss features are ratios, so that they do not depend on the scale of
    the loss, and are zero (with a flag) while the loss is unknown.

    Args:
        state: losses and feedback so far.
        step: int32 [], steps done before this one.
        num_steps: steps in the whole run.

    Returns:
        float32 [`PROGRESS_FEATURES`].
    """
    step = jnp.asarray(step, jnp.float32)
    num_steps = jnp.asarray(num_steps, jnp.float32)
    fraction = step / num_steps
    time = jnp.concatenate(
        [
            jnp.tanh(10.0 * (fraction - _CENTRES)),
            # Bounded, so that runs longer than those of meta-training are not far out
            # of range.
            jnp.tanh(jnp.stack([jnp.log10(step + 1.0), jnp.log10(num_steps)]) - 2.0),
        ]
    )
    average = _average(state)
    loss, known = current_loss(state)
    noise = state.deviation + 1e-4 * jnp.abs(loss) + TINY
    slopes = jnp.tanh((average[:-1] - average[1:]) / noise)
    first = jnp.abs(state.first)
    size = jnp.abs(loss) + first + TINY
    level = jnp.stack(
        [
            average[0] / size * 2.0,
            clipped(jnp.log(noise / size), 0.2),
            clipped(jnp.log((jnp.abs(loss) + TINY) / size), 0.2),
            # Constant until the loss is below a tenth of the first loss: then there is
            # little to gain, and the examples are memorised.
            clipped(-jnp.log1p(_LOW * first / (jnp.abs(loss) + TINY)), 0.2),
            1.0,
        ]
    )
    has_feedback = (state.feedback_step >= 0).astype(jnp.float32)
    response = jnp.stack(
        [
            jnp.tanh(state.gap / size * 2.0),
            jnp.tanh((state.last_feedback - state.best_feedback) / size * 4.0),
            jnp.clip((step - state.feedback_step) / num_steps, 0.0, 1.0),
            1.0,
        ]
    )
    return jnp.concatenate(
        [time, slopes * known, level * known, response * has_feedback]
    )
