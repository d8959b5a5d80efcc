"""The safeguard: skips broken steps, falls back when the loss keeps rising.

It costs a few dozen scalar operations a step. Four layers:

1. A step whose gradient or loss is not finite, or whose gradient norm is a thousand
   times its average, is skipped and counted: no update, statistics as they were. A
   larger norm that persists is accepted after five steps, since the data may have
   changed for good. A gradient no larger than its average has been earlier in the run
   is never an explosion: where the training loss is nearly zero, the one example that
   is still wrong has a gradient a thousand times above all others, and matters most.
   The first three gradients are always accepted.
2. Where the loss is given: when its average stays above its minimum by several times
   its noise for 20 steps, the step is halved and the controller's decisions fade to the
   hand-designed rule; both recover when the loss does. A loss that jumps within one
   step, as when the data change, is no such rise: the full step is needed to learn the
   new data, and monitoring restarts at the new level.
3. Within the first tenth of the run, a loss well above its start (a quarter and four
   times its noise) replaces the controller by the hand-designed rule at once and for
   the rest of the run.
4. Where the gradient has fallen to less than a hundred thousandth of its largest
   average, the step shrinks with it. Directions are normalised, so that a zero or
   constant loss would otherwise be left at full speed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_LOG_EXPLOSION = 6.9
"""Log of the gradient's growth over its average at which a step is skipped (1000)."""
_LOG_VANISHING = 11.5
"""Log of the fall of the gradient's average from its peak that counts as vanishing."""
_ALWAYS_ACCEPTED = 3
"""Number of first gradients that never count as an explosion."""
_AVERAGING_STEPS = 10
"""Number of steps until an average is exponential; before that it is a plain mean."""
_ACCEPT_AFTER = 5
"""Consecutive explosions after which the new size is accepted."""
_LOSS_RATE = 0.1
_NOISE_MARGIN = 4.0
"""Margin of a rise, in mean absolute deviations of the loss."""
_JUMP = 10.0
"""Rise within a step, in average deviations, that is taken for a change of the data."""
_PATIENCE = 20
"""Steps above the minimum after which the safeguard acts."""
_RECOVERY = 0.98
"""Factor on the fallback for each step without a rise."""
_EARLY = 0.1
"""Share of the run in which a loss above its start disables the controller."""
_START_LOSSES = 3
"""Number of first losses whose mean is the start."""
_ABOVE_START = 0.25
"""Rise above the start, relative to it, that counts as divergence."""
_RECENT_RATE = 0.3


class SafeguardState(NamedTuple):
    """State of the safeguard; all scalars.

    Attributes:
        skipped: int32, steps skipped so far.
        consecutive_skips: int32, steps skipped without a break, for whatever reason.
        consecutive_explosions: int32, exploding steps skipped without a break.
        seen: int32, gradients in the average.
        log_rms: float32, moving average of the log gradient RMS.
        peak: float32, its largest value.
        vanishing_scale: float32, factor on the step for a gradient that has vanished,
            in (0, 1].
        loss: float32, moving average of the loss.
        deviation: float32, moving average of its distance from that average.
        losses: int32, losses since monitoring began or restarted.
        start: float32, mean of the first losses.
        recent: float32, fast average of the loss.
        diverged: float32, 1 once the loss was well above its start early in the run.
        best: float32, lowest average.
        rising: int32, consecutive steps above the best by the margin.
        shrink: float32, factor on the step, in (0, 1].
        fallback: float32, 1 for the hand-designed rule, 0 for the controller's.
    """

    skipped: jax.Array
    consecutive_skips: jax.Array
    consecutive_explosions: jax.Array
    seen: jax.Array
    log_rms: jax.Array
    peak: jax.Array
    vanishing_scale: jax.Array
    loss: jax.Array
    deviation: jax.Array
    losses: jax.Array
    start: jax.Array
    recent: jax.Array
    diverged: jax.Array
    best: jax.Array
    rising: jax.Array
    shrink: jax.Array
    fallback: jax.Array


def init_safeguard() -> SafeguardState:
    """The state before the first step."""
    # Arrays of their own: a donated state may not hold one buffer twice.
    integers = {
        *("skipped", "consecutive_skips", "consecutive_explosions"),
        *("seen", "losses", "rising"),
    }
    state = {
        name: jnp.zeros((), jnp.int32 if name in integers else jnp.float32)
        for name in SafeguardState._fields
    }
    ones = {name: jnp.ones((), jnp.float32) for name in ("shrink", "vanishing_scale")}
    return SafeguardState(**{**state, **ones})


def safeguard_step(
    state: SafeguardState,
    grad_rms: jax.Array,
    value: jax.typing.ArrayLike | None,
    count: jax.Array,
    num_steps: jax.Array | int,
) -> tuple[jax.Array, SafeguardState]:
    """Decides whether to take one step, and updates the state.

    Args:
        state: so far.
        grad_rms: float32 [], RMS of the whole gradient.
        value: float [] loss of this step, or None.
        count: int32 [], steps done before this one.
        num_steps: length of the run.

    Returns:
        Whether to take the step (bool []), and the new state.
    """
    finite = jnp.isfinite(grad_rms)
    if value is not None:
        value = jnp.asarray(value, jnp.float32)
        finite &= jnp.isfinite(value)
    log_rms = jnp.log(jnp.where(finite, grad_rms, 1.0) + 1e-15)
    jump = log_rms - state.log_rms
    exploding = finite & (state.seen >= _ALWAYS_ACCEPTED) & (jump > _LOG_EXPLOSION)
    exploding &= log_rms > state.peak
    accepted = exploding & (state.consecutive_explosions >= _ACCEPT_AFTER)
    ok = finite & (~exploding | accepted)

    # At first the plain mean, which one explosion among many does not spoil; zeros, as
    # of an empty batch, are left out. Later they lower the average slowly.
    early = state.seen < _AVERAGING_STEPS
    rate = jnp.maximum(0.1, 1.0 / (1.0 + state.seen))
    moved = state.log_rms + rate * jnp.where(early, jump, jnp.maximum(jump, -2.0))
    moved = jnp.where(accepted, log_rms, moved)
    counts = ok & ((grad_rms > 0) | ~early)
    average = jnp.where(counts, moved, state.log_rms)
    peak = jnp.where(early, average, jnp.maximum(state.peak, average))
    depth = jnp.maximum(log_rms, average) - peak + _LOG_VANISHING
    new = state._replace(
        skipped=state.skipped + (~ok).astype(jnp.int32),
        consecutive_skips=jnp.where(ok, 0, state.consecutive_skips + 1),
        consecutive_explosions=jnp.where(
            exploding & ~accepted, state.consecutive_explosions + 1, 0
        ),
        seen=state.seen + counts.astype(jnp.int32),
        log_rms=average,
        peak=peak,
        # No derivative: that of the log of a vanishing gradient is useless to
        # meta-gradients.
        vanishing_scale=jax.lax.stop_gradient(jnp.exp(jnp.minimum(0.0, depth))),
    )
    if value is None:
        return ok, new
    early = count < jnp.maximum(_EARLY * num_steps, _AVERAGING_STEPS)
    monitored = _monitor_loss(new, value, early)
    return ok, jax.tree.map(lambda a, b: jnp.where(ok, a, b), monitored, new)


def _monitor_loss(
    state: SafeguardState, value: jax.Array, early: jax.Array
) -> SafeguardState:
    """Tracks the loss; acts on a sustained rise, and on an early divergence at once."""
    beginning = early & (state.losses < _START_LOSSES)
    start = jnp.where(
        beginning,
        state.start + (value - state.start) / (1.0 + state.losses),
        state.start,
    )
    recent = jnp.where(
        beginning, start, state.recent + _RECENT_RATE * (value - state.recent)
    )
    above_start = recent - start - _NOISE_MARGIN * state.deviation
    risen = early & ~beginning & (above_start > _ABOVE_START * jnp.abs(start))
    diverged = jnp.maximum(state.diverged, risen.astype(jnp.float32))
    # Steps are bounded, so that a jump within one step indicates other data.
    jumped = (state.losses >= 2 * _AVERAGING_STEPS) & (
        value - state.loss > _JUMP * state.deviation + 1e-2 * jnp.abs(state.loss)
    )
    losses = jnp.where(jumped, 0, state.losses)
    first = losses == 0
    settled = losses >= 2 * _AVERAGING_STEPS
    distance = jnp.abs(value - state.loss)
    rate = jnp.maximum(_LOSS_RATE, 1.0 / (1.0 + losses))
    loss = jnp.where(first, value, state.loss + rate * (value - state.loss))
    deviation = jnp.where(
        first, 0.0, state.deviation + rate * (distance - state.deviation)
    )
    best = jnp.where(settled, jnp.minimum(state.best, loss), loss)
    margin = _NOISE_MARGIN * deviation * _LOSS_RATE**0.5 + 1e-3 * jnp.abs(best)
    above = settled & (loss > best + margin)
    rising = jnp.where(above, state.rising + 1, 0)
    act = rising >= _PATIENCE
    recovered = jnp.minimum(1.0, state.shrink / _RECOVERY**0.5)
    return state._replace(
        loss=loss,
        deviation=deviation,
        losses=losses + 1,
        start=start,
        recent=recent,
        diverged=diverged,
        best=jnp.where(act, loss, best),
        rising=jnp.where(act, 0, rising),
        shrink=jnp.where(
            act, 0.5 * state.shrink, jnp.where(above, state.shrink, recovered)
        ),
        fallback=jnp.maximum(
            diverged,
            jnp.where(
                act, 1.0, jnp.where(above, state.fallback, _RECOVERY * state.fallback)
            ),
        ),
    )
