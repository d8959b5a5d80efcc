"""The optimizer as an `optax.GradientTransformationExtraArgs`.

The learned optimizer and the hand-designed rule are the same transformation with and
without a controller. What a step does is in `meta_opt.optimizers.step`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from meta_opt.features.tensors import check_patterns
from meta_opt.optimizers.arguments import (
    check_gradients,
    check_match,
    check_num_steps,
    check_params,
    check_scalar,
    check_schedule,
    check_state,
    check_varying,
    warn_of_half_precision,
)
from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.masks import Mask, expand_mask, merge_zeros, select
from meta_opt.optimizers.state import (
    OptimizerState,
    Settings,
    init_state,
    is_placeholder,
    placeholder_state,
)
from meta_opt.optimizers.step import StepInputs, optimizer_step
from meta_opt.types import PyTree


def learned_transformation(
    num_steps: int | jax.Array,
    *,
    theta: PyTree | None,
    config: ControllerConfig,
    stacked: str | None = None,
    groups: Sequence[tuple[str, str]] | None = None,
    mask: Mask | None = None,
    weight_decay_mask: Mask | None = None,
    schedule: optax.ScalarOrSchedule | None = None,
    safeguard: bool = True,
    pallas: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The update rule under a controller, or at its fixed defaults.

    Args:
        num_steps: length of the run; the schedule ends there.
        theta: the controller's weights; None runs the hand-designed rule.
        config: the controller's shape and directions.
        stacked: regular expression over ``/``-joined paths of leaves with a leading
            layer axis (see `meta_opt.features.tensors.describe`).
        groups: (regular expression, modality group) pairs, for logs.
        mask: which parameters are trained, see `learned_optimizer`.
        weight_decay_mask: which parameters decay, see `learned_optimizer`.
        schedule: multiplier of the RMS step instead of warm-up and cosine decay, see
            `learned_optimizer`.
        safeguard: skip broken steps and fall back on rising loss.
        pallas: measure large matrices by `meta_opt.optimizers.fused_sums`.

    Returns:
        A transformation whose ``update`` takes the optional keywords ``value`` (loss of
        this step) and ``feedback`` (validation loss, given now and then; NaN: not now).

    Raises:
        ValueError: ``num_steps`` below 1, a pattern without match, a mask that does not
            fit, ``update`` without params or with gradients of another structure,
            ``value``, ``feedback`` or a schedule that is not a scalar, ``value`` or
            ``feedback`` that varies under `jax.shard_map` where gradients and
            parameters do not, ``pallas`` on a mesh of several devices.
        TypeError: ``num_steps`` that is not an integer, a mask or schedule of another
            type, parameters that are not floating-point arrays, a state of another
            optimizer.

    Warns:
        UserWarning: ``init`` with half-precision parameters.
    """
    check_num_steps(num_steps)
    check_schedule(schedule)
    learned = theta is not None
    pairs = tuple((pattern, group) for pattern, group in groups or ())
    settings = Settings(config, learned, stacked, pairs, safeguard, pallas)
    warned = False

    def expand(params: PyTree) -> tuple[tuple[bool, ...], tuple[bool, ...] | None]:
        """Which leaves are trained, and which of these decay; None: matrices."""
        trained = expand_mask("mask", True if mask is None else mask, params)
        if weight_decay_mask is None:
            return trained, None
        decayed = expand_mask("weight_decay_mask", weight_decay_mask, params)
        return trained, tuple(
            decays for decays, train in zip(decayed, trained, strict=True) if train
        )

    def init(params: PyTree) -> OptimizerState:
        nonlocal warned
        if is_placeholder(params):
            return placeholder_state(init_state(params, settings, None, num_steps))
        check_params(params)
        check_patterns(params, stacked, pairs)
        trained, decayed = expand(params)
        params = select(params, trained)
        warned = warned or warn_of_half_precision(params)
        return init_state(params, settings, decayed, num_steps)

    def update(
        updates: PyTree,
        state: OptimizerState,
        params: PyTree | None = None,
        *,
        value: jax.typing.ArrayLike | None = None,
        feedback: jax.typing.ArrayLike | None = None,
        **extra_args: object,
    ) -> tuple[PyTree, OptimizerState]:
        del extra_args
        if params is None:
            raise ValueError(
                "update needs the parameters: call tx.update(grads, state, params)"
            )
        check_state(state, OptimizerState, learned)
        check_params(params)
        for name, given in (("value", value), ("feedback", feedback)):
            check_scalar(name, given)
            check_varying(name, given, (updates, state, params))
        check_match(updates, params, "gradients", "parameters")
        check_patterns(params, stacked, pairs)
        trained, decayed = expand(params)
        grads, weights = select(updates, trained), select(params, trained)
        check_gradients(grads)
        check_match(weights, state.momentum, "parameters", "the optimizer's state")
        multiplier = schedule(state.count) if callable(schedule) else schedule
        if multiplier is not None:
            check_scalar("schedule", multiplier)
            multiplier = jnp.asarray(multiplier, jnp.float32)
        inputs = StepInputs(num_steps, multiplier, value, feedback)
        moved, state = optimizer_step(
            grads, state, weights, inputs, theta, settings=settings, decayed=decayed
        )
        return merge_zeros(moved, params, trained), state

    return optax.GradientTransformationExtraArgs(init, update)
