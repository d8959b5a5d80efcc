"""The safeguard: skips broken steps, and falls back when the loss keeps rising.

It costs a dozen scalar operations a step. Two layers:

1. A step whose gradient or loss is not finite, or whose gradient is a thousand times
   its usual size, is skipped: no update, no statistics. It is counted. A new size that
   persists is accepted after five steps, since the data may have changed for good.
2. Where the loss is given: when its average stays above its best by several times its
   noise for 20 steps, the step is halved and the controller's decisions fade to the
   hand-designed rule; both recover when the loss does.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_EXPLODING = 6.9
"""Log of the gradient's growth over its average at which a step is skipped (1000)."""
_SETTLE = 10
_ACCEPT_AFTER = 5
_LOSS_RATE = 0.1
_NOISE_MARGIN = 4.0
_PATIENCE = 20
_CALM = 0.98


class GuardState(NamedTuple):
    """Memory of the safeguard; all scalars.

    Attributes:
        skipped: int32, steps skipped so far.
        in_a_row: int32, exploding steps skipped without a break.
        seen: int32, finite gradients seen.
        log_rms: float32, moving average of the log gradient RMS.
        loss: float32, moving average of the loss.
        deviation: float32, moving average of its distance from that average.
        losses: int32, losses seen.
        best: float32, lowest average.
        rising: int32, steps in a row above the best by the margin.
        shrink: float32, factor on the step, in (0, 1].
        fallback: float32, 1 for the hand-designed rule, 0 for the controller's.
    """

    skipped: jax.Array
    in_a_row: jax.Array
    seen: jax.Array
    log_rms: jax.Array
    loss: jax.Array
    deviation: jax.Array
    losses: jax.Array
    best: jax.Array
    rising: jax.Array
    shrink: jax.Array
    fallback: jax.Array


def init_guard() -> GuardState:
    """The state before the first step."""
    # Arrays of their own: a donated state may not hold one buffer twice.
    whole = {"skipped", "in_a_row", "seen", "losses", "rising"}
    state = {
        name: jnp.zeros((), jnp.int32 if name in whole else jnp.float32)
        for name in GuardState._fields
    }
    return GuardState(**{**state, "shrink": jnp.ones((), jnp.float32)})


def guard_step(
    state: GuardState, grad_rms: jax.Array, value: jax.typing.ArrayLike | None
) -> tuple[jax.Array, GuardState]:
    """Judges one step.

    Args:
        state: memory so far.
        grad_rms: float32 [], RMS of the whole gradient.
        value: float [] loss of this step, or None.

    Returns:
        Whether to take the step (bool []), and the new memory.
    """
    finite = jnp.isfinite(grad_rms)
    if value is not None:
        value = jnp.asarray(value, jnp.float32)
        finite &= jnp.isfinite(value)
    log_rms = jnp.log(jnp.where(finite, grad_rms, 1.0) + 1e-15)
    jump = log_rms - state.log_rms
    exploding = finite & (state.seen >= _SETTLE) & (jump > _EXPLODING)
    accepted = exploding & (state.in_a_row >= _ACCEPT_AFTER)
    ok = finite & (~exploding | accepted)

    # Zero gradients pull the average down slowly, else what follows looks exploding.
    moved = state.log_rms + 0.1 * jnp.maximum(jump, -2.0)
    restart = accepted | (state.seen == 0)
    new = state._replace(
        skipped=state.skipped + (~ok).astype(jnp.int32),
        in_a_row=jnp.where(exploding & ~accepted, state.in_a_row + 1, 0),
        seen=state.seen + ok.astype(jnp.int32),
        log_rms=jnp.where(ok, jnp.where(restart, log_rms, moved), state.log_rms),
    )
    if value is None:
        return ok, new
    return ok, jax.tree.map(lambda a, b: jnp.where(ok, a, b), _watch(new, value), new)


def _watch(state: GuardState, value: jax.Array) -> GuardState:
    """Follows the loss; acts on a sustained rise."""
    first = state.losses == 0
    distance = jnp.abs(value - state.loss)
    rate = jnp.maximum(_LOSS_RATE, 1.0 / (1.0 + state.losses))
    loss = jnp.where(first, value, state.loss + rate * (value - state.loss))
    deviation = jnp.where(
        first, 0.0, state.deviation + rate * (distance - state.deviation)
    )
    settled = state.losses >= 2 * _SETTLE
    best = jnp.where(settled, jnp.minimum(state.best, loss), loss)
    margin = _NOISE_MARGIN * deviation * _LOSS_RATE**0.5 + 1e-3 * jnp.abs(best)
    above = settled & (loss > best + margin)
    rising = jnp.where(above, state.rising + 1, 0)
    act = rising >= _PATIENCE
    recovered = jnp.minimum(1.0, state.shrink / _CALM**0.5)
    return state._replace(
        loss=loss,
        deviation=deviation,
        losses=state.losses + 1,
        best=jnp.where(act, loss, best),
        rising=jnp.where(act, 0, rising),
        shrink=jnp.where(
            act, 0.5 * state.shrink, jnp.where(above, state.shrink, recovered)
        ),
        fallback=jnp.where(
            act, 1.0, jnp.where(above, state.fallback, _CALM * state.fallback)
        ),
    )
