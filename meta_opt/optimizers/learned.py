"""The learned optimizer: the update rule under a meta-trained LSTM controller."""

import os
from collections.abc import Sequence

import jax
import optax

from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.transformation import learned_transformation
from meta_opt.optimizers.weights import DEFAULT, load_theta
from meta_opt.types import PyTree


def learned_optimizer(
    num_steps: int | jax.Array,
    *,
    weights: str | os.PathLike = DEFAULT,
    theta: PyTree | None = None,
    config: ControllerConfig | None = None,
    stacked: str | None = None,
    groups: Sequence[tuple[str, str]] | None = None,
    safeguard: bool = True,
    pallas: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that needs the number of steps and no learning rate.

    For every tensor (every layer of a scan-stacked one) an LSTM decides at each step
    the step size, the mixture of update directions, decay rates, weight decay and how
    far unusual gradients are compressed. State: bfloat16 momentum, factored second
    moments and a few dozen numbers a tensor: about 2.1 bytes a parameter.

    Args:
        num_steps: length of the run in calls of ``update``; steps beyond it are zero.
        weights: name of shipped weights, or path of a ``.safetensors`` file.
        theta: the controller's weights as a pytree, instead of ``weights``; may be
            traced and batched by ``vmap``.
        config: the controller's shape that belongs to ``theta``.
        stacked: regular expression over ``/``-joined parameter paths; leaves that it
            finds have a leading layer axis and are controlled per layer.
        groups: ordered (regular expression, modality group) pairs before the default
            ones, for logs of what is decided; groups are vision, text, audio, video,
            fusion, head, other.
        safeguard: skip broken steps, fall back to the hand-designed rule on sustained
            rise of the loss.
        pallas: measure large matrices by a Pallas kernel, which on a GPU saves 4 of 28
            bytes a parameter; for parameters on one device.

    Returns:
        A transformation whose ``update(grads, state, params, value=..., feedback=...)``
        takes two optional keywords: the loss of this step, and a validation loss when
        there is one (NaN or None otherwise).

    Raises:
        ValueError: ``num_steps`` below 1, unknown or damaged weights, a pattern that
            matches nothing; later, ``update`` without params, with gradients that do
            not match, or with a ``value`` or ``feedback`` that is not a scalar.
        TypeError: ``num_steps`` that is not an integer, parameters that are not
            floating-point arrays, a state of another optimizer.

    Warns:
        UserWarning: ``init`` with bfloat16 or float16 parameters, to which small
            updates are lost in rounding.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
        >>> tx = learned_optimizer(num_steps=100)
        >>> state = tx.init(params)
        >>> def loss_fn(p):
        ...     return jnp.sum(p["kernel"] ** 2)
        >>> loss, grads = jax.value_and_grad(loss_fn)(params)
        >>> updates, state = tx.update(grads, state, params, value=loss)
        >>> params = optax.apply_updates(params, updates)
    """
    if theta is None:
        if config is not None:
            raise ValueError("config belongs to theta; weights bring their own")
        theta, config = load_theta(weights)
    return learned_transformation(
        num_steps,
        theta=theta,
        config=config or ControllerConfig(),
        stacked=stacked,
        groups=groups,
        safeguard=safeguard,
        pallas=pallas,
    )
