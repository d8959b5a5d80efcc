"""The hand-designed rule: no learning rate, nothing learned, nothing tuned."""

from collections.abc import Sequence

import jax
import optax

from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.transformation import learned_transformation


def hand_designed(
    num_steps: int | jax.Array,
    *,
    stacked: str | None = None,
    groups: Sequence[tuple[str, str]] | None = None,
    safeguard: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalised momentum for matrices and Adam for the rest, at one fixed setting.

    Nesterov momentum (0.95) orthogonalised by Newton-Schulz for matrices, Adam's
    direction (0.95, 0.99) for embeddings and tensors of rank 0 and 1, each scaled to
    RMS one; RMS step 2e-3 with 5% warm-up and cosine decay over ``num_steps``;
    decoupled weight decay 0.05 on matrices. It is what the learned optimizer is with
    zero output weights, and what its safeguard falls back to.

    Args:
        num_steps: length of the run.
        stacked: regular expression over parameter paths with a leading layer axis.
        groups: ignored but for checking; accepted so that both rules share a face.
        safeguard: skip broken steps and shrink the step on sustained rise of the loss.

    Returns:
        The transformation; ``value`` is optional in its ``update``.

    Raises:
        ValueError: ``num_steps`` below 1, a pattern without match; later, ``update``
            without params, with gradients that do not match or a ``value`` that is not
            a scalar.
        TypeError: ``num_steps`` that is not an integer, parameters that are not
            floating-point arrays, a state of another optimizer.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = hand_designed(num_steps=10)
        >>> params = {"w": jnp.ones((4, 4))}
        >>> updates, state = tx.update(params, tx.init(params), params)
    """
    return learned_transformation(
        num_steps,
        theta=None,
        config=ControllerConfig(),
        stacked=stacked,
        groups=groups,
        safeguard=safeguard,
    )
