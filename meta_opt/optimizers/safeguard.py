"""The safeguard: skips broken steps, falls back when the loss keeps rising.

It costs a few dozen scalar operations a step. Four layers:

1. A step whose gradient or loss is not finite, or whose gradient is a thousand times
   its usual size, is skipped: no update, no statistics. It is counted. A new size that
   persists is accepted after five steps, since the data may have changed for good. A
   gradient no larger than was usual earlier in the run is never an explosion: where
   the training loss is nearly zero, the one example that still is wrong is a thousand
   times above the rest, and the only one that matters. The first three gradients are
   taken as they are.
2. Where the loss is given: when its average stays above its best by several times its
   noise for 20 steps, the step is halved and the controller's decisions fade to the
   hand-designed rule; both recover when the loss does. A loss that jumps within one
   step, as when the data change, is no such rise: what is to be learned anew needs the
   whole step, and the watch begins anew at the new level.
3. Within the first tenth of the run, a loss well above its start (a quarter and four
   times its noise) ends the controller's part in the run: at once, and for good.
4. Where the gradient has fallen to less than a hundred thousandth of its peak, the step
   shrinks with it. Directions are normalised, so without this a loss that has become
   zero or constant would be run away from at full speed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_EXPLODING = 6.9
"""Log of the gradient's growth over its average at which a step is skipped (1000)."""
_VANISHED = 11.5
"""Log of the fall of the gradient's average from its peak that counts as vanishing."""
_FIRST = 3
"""Gradients before any is called an explosion."""
_SETTLE = 10
_ACCEPT_AFTER = 5
_LOSS_RATE = 0.1
_NOISE_MARGIN = 4.0
_JUMP = 10.0
"""Rise within a step, in average deviations, that is taken for a change of the data."""
_PATIENCE = 20
_CALM = 0.98
_EARLY = 0.1
"""Share of the run in which a loss above its start ends the controller's part."""
_START = 3
"""Losses whose mean is the start."""
_ABOVE_START = 0.25
_RECENT_RATE = 0.3


class GuardState(NamedTuple):
    """Memory of the safeguard; all scalars.

    Attributes:
        skipped: int32, steps skipped so far.
        consecutive_skips: int32, steps skipped without a break, for whatever reason.
        consecutive_explosions: int32, exploding steps skipped without a break.
        seen: int32, finite gradients seen.
        log_rms: float32, moving average of the log gradient RMS.
        peak: float32, its largest value.
        vanishing_scale: float32, factor on the step for a gradient that has vanished,
            in (0, 1].
        loss: float32, moving average of the loss.
        deviation: float32, moving average of its distance from that average.
        losses: int32, losses seen since the watch began or began anew.
        start: float32, mean of the first losses.
        recent: float32, fast average of the loss.
        diverged: float32, 1 once the loss was well above its start early in the run.
        best: float32, lowest average.
        rising: int32, steps in a row above the best by the margin.
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


def init_guard() -> GuardState:
    """The state before the first step."""
    # Arrays of their own: a donated state may not hold one buffer twice.
    integers = {
        *("skipped", "consecutive_skips", "consecutive_explosions"),
        *("seen", "losses", "rising"),
    }
    state = {
        name: jnp.zeros((), jnp.int32 if name in integers else jnp.float32)
        for name in GuardState._fields
    }
    ones = {name: jnp.ones((), jnp.float32) for name in ("shrink", "vanishing_scale")}
    return GuardState(**{**state, **ones})


def guard_step(
    state: GuardState,
    grad_rms: jax.Array,
    value: jax.typing.ArrayLike | None,
    count: jax.Array,
    num_steps: jax.Array | int,
) -> tuple[jax.Array, GuardState]:
    """Judges one step.

    Args:
        state: memory so far.
        grad_rms: float32 [], RMS of the whole gradient.
        value: float [] loss of this step, or None.
        count: int32 [], steps done before this one.
        num_steps: length of the run.

    Returns:
        Whether to take the step (bool []), and the new memory.
    """
    finite = jnp.isfinite(grad_rms)
    if value is not None:
        value = jnp.asarray(value, jnp.float32)
        finite &= jnp.isfinite(value)
    log_rms = jnp.log(jnp.where(finite, grad_rms, 1.0) + 1e-15)
    jump = log_rms - state.log_rms
    exploding = finite & (state.seen >= _FIRST) & (jump > _EXPLODING)
    exploding &= log_rms > state.peak
    accepted = exploding & (state.consecutive_explosions >= _ACCEPT_AFTER)
    ok = finite & (~exploding | accepted)

    # At first the plain mean of all, which one explosion among them does not spoil;
    # zeros, as of an empty batch, do not count. Later they pull it down slowly.
    early = state.seen < _SETTLE
    rate = jnp.maximum(0.1, 1.0 / (1.0 + state.seen))
    moved = state.log_rms + rate * jnp.where(early, jump, jnp.maximum(jump, -2.0))
    moved = jnp.where(accepted, log_rms, moved)
    counts = ok & ((grad_rms > 0) | ~early)
    average = jnp.where(counts, moved, state.log_rms)
    peak = jnp.where(early, average, jnp.maximum(state.peak, average))
    depth = jnp.maximum(log_rms, average) - peak + _VANISHED
    new = state._replace(
        skipped=state.skipped + (~ok).astype(jnp.int32),
        consecutive_skips=jnp.where(ok, 0, state.consecutive_skips + 1),
        consecutive_explosions=jnp.where(
            exploding & ~accepted, state.consecutive_explosions + 1, 0
        ),
        seen=state.seen + counts.astype(jnp.int32),
        log_rms=average,
        peak=peak,
        # No slope: that of the log of next to nothing is no use to meta-gradients.
        vanishing_scale=jax.lax.stop_gradient(jnp.exp(jnp.minimum(0.0, depth))),
    )
    if value is None:
        return ok, new
    early = count < jnp.maximum(_EARLY * num_steps, _SETTLE)
    watched = _watch(new, value, early)
    return ok, jax.tree.map(lambda a, b: jnp.where(ok, a, b), watched, new)


def _watch(state: GuardState, value: jax.Array, early: jax.Array) -> GuardState:
    """Follows the loss; acts on a sustained rise, and on an early one at once."""
    beginning = early & (state.losses < _START)
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
    # Steps are bounded: a loss that jumps in one of them is the data's doing.
    jumped = (state.losses >= 2 * _SETTLE) & (
        value - state.loss > _JUMP * state.deviation + 1e-2 * jnp.abs(state.loss)
    )
    losses = jnp.where(jumped, 0, state.losses)
    first = losses == 0
    settled = losses >= 2 * _SETTLE
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
    recovered = jnp.minimum(1.0, state.shrink / _CALM**0.5)
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
                act, 1.0, jnp.where(above, state.fallback, _CALM * state.fallback)
            ),
        ),
    )
