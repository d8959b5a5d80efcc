"""Diagnostics of a run from the optimizer's state, as plain numbers."""

from typing import Any

import jax
import numpy as np

from meta_opt.optimizers.decisions import read_decisions
from meta_opt.optimizers.state import OptimizerState
from meta_opt.types import PyTree


def diagnostics(opt_state: PyTree) -> dict[str, int | float]:
    """Steps, skips and step sizes of the learned optimizer or the hand-designed rule.

    Args:
        opt_state: the optimizer's state, or any pytree that holds it: that of
            `optax.chain`, `masked`, `multi_transform`, `MultiSteps`,
            `inject_hyperparams`, `apply_if_finite`, or a whole train state.

    Returns:
        A flat dict, of ints:

        - ``steps``: calls of ``update`` so far; ``steps_taken``: those not skipped;
        - ``num_steps``: length of the run; ``steps_beyond``: calls beyond it;
        - ``skipped``: steps that the safeguard skipped; ``consecutive_skips``: those
          since the last step that was taken;

        and of floats:

        - ``fallback``: degree, 0 to 1, to which the safeguard has replaced the
          controller by the hand-designed rule;
        - ``step_size``: factor of schedule and safeguard in every tensor's last step,
          0 where it was skipped;
        - ``step/GROUP``: RMS of the last step before weight decay, geometric mean over
          the tensors of each modality group, in units of the parameters.

    Raises:
        ValueError: ``opt_state`` has no state of these optimizers, or several, or that
            of a batch of runs (as under `jax.vmap`).
        TypeError: ``opt_state`` is traced.

    Example:
        >>> import jax.numpy as jnp
        >>> from meta_opt.optimizers.hand_designed import hand_designed
        >>> params = {"kernel": jnp.ones((4, 4))}
        >>> tx = hand_designed(num_steps=10)
        >>> _, state = tx.update(params, tx.init(params), params)
        >>> found = diagnostics(state)
        >>> found["steps"], found["skipped"], round(found["step/other"], 6)
        (1, 0, 0.002)
    """
    state = _find_state(opt_state)
    count, num_steps = int(state.count), int(state.num_steps)
    skipped = int(state.guard.skipped)
    step_size = float(state.step_size)
    multipliers = {
        name.removesuffix("/step"): value
        for name, value in read_decisions(state).items()
        if name.endswith("/step")
    }
    return {
        "steps": count,
        "steps_taken": count - skipped,
        "num_steps": num_steps,
        "steps_beyond": max(0, count - num_steps),
        "skipped": skipped,
        "consecutive_skips": int(state.guard.consecutive_skips),
        "fallback": float(state.guard.fallback),
        "step_size": step_size,
        **{f"step/{group}": step_size * x for group, x in multipliers.items()},
    }


def _find_state(opt_state: PyTree) -> OptimizerState:
    """The only state of ours in ``opt_state``, with numpy arrays for leaves."""

    def is_ours(node: Any) -> bool:
        return isinstance(node, OptimizerState)

    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_ours) if is_ours(x)]
    if len(found) != 1:
        raise ValueError(
            f"opt_state, a {type(opt_state).__name__}, holds {len(found)} states of "
            "meta_opt's optimizers; pass the state, or a part of it, that holds one"
        )
    # What is reported is small; momenta stay where they are.
    small = found[0]._replace(momentum=None, second=None, history=None)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(small)):
        raise TypeError(
            "opt_state is traced: call diagnostics outside of jax.jit, on the state "
            "that the compiled step returns"
        )
    small = jax.tree.map(np.asarray, jax.device_get(small))
    if small.count.ndim:
        raise ValueError(
            f"opt_state is of several runs, its count has shape {small.count.shape}; "
            "pass that of one, such as jax.tree.map(lambda x: x[0], opt_state)"
        )
    return small
