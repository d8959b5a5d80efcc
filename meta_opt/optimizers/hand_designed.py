"""The hand-designed rule: no learning rate and nothing learned or tuned."""

from collections.abc import Sequence

import jax
import optax

from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.masks import Mask
from meta_opt.optimizers.transformation import learned_transformation


def hand_designed(
    num_steps: int | jax.Array,
    *,
    stacked: str | None = None,
    groups: Sequence[tuple[str, str]] | None = None,
    mask: Mask | None = None,
    weight_decay_mask: Mask | None = None,
    schedule: optax.ScalarOrSchedule | None = None,
    safeguard: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalised momentum for matrices and Adam otherwise, at one fixed setting.

    Nesterov momentum (0.95) orthogonalised by Newton-Schulz for matrices, Adam's
    direction (0.95, 0.99) for embeddings and tensors of rank 0 and 1, each scaled to
    RMS one; RMS step 2e-3 with 5% warm-up and cosine decay over ``num_steps``;
    decoupled weight decay 0.05 on matrices. It is equal to the learned optimizer with
    zero output weights, and is the fallback of its safeguard.

    References:
        Orthogonalised momentum: Jordan et al. 2024 (Muon), at scale Liu et al. 2025,
        arXiv:2502.16982; Adam: Kingma and Ba 2014, arXiv:1412.6980; decoupled weight
        decay: Loshchilov and Hutter 2017, arXiv:1711.05101; cosine decay: Loshchilov
        and Hutter 2016 (SGDR), arXiv:1608.03983.

    Args:
        num_steps: length of the run in calls of ``update``; later steps are zero. May
            be traced, as by `optax.inject_hyperparams`.
        stacked: regular expression over paths of parameters with a leading layer axis.
        groups: ordered (regular expression, modality group) pairs that take precedence
            over the default ones, for logging only.
        mask: which parameters are trained: a pytree of bools, a prefix of one, or a
            function from the parameters to one. Where it is False, updates are zero and
            no state is kept, as with `optax.selective_transform` (`optax.masked` would
            return the gradients); such parameters may have any dtype. None: all.
        weight_decay_mask: which parameters decay, in the same forms. It replaces the
            built-in choice, so that True for a bias makes the bias decay. None:
            matrices, that is, tensors with two sides above one that are not vocabulary
            tables.
        schedule: a function from the step, int32 [] from 0, to a multiplier, or a
            constant multiplier. It replaces only the built-in shape, 5% linear warm-up
            to 1 and cosine decay to 0 at ``num_steps``: the multiplier is applied to
            the RMS step of 2e-3, in addition to the safeguard's factor. Steps beyond
            ``num_steps`` are then no longer zero.
        safeguard: whether to skip broken steps and to shrink the step on a sustained
            rise of the loss.

    Returns:
        The transformation; ``value`` is optional in its ``update``.

    Raises:
        ValueError: ``num_steps`` below 1, a pattern without match, a mask that is not a
            prefix of the parameters; later, ``update`` without params, with gradients
            that do not match, or with a ``value`` or schedule that is not a scalar.
        TypeError: ``num_steps`` that is not an integer, a mask or schedule of the wrong
            type, parameters that are not floating-point arrays, the state of another
            optimizer.

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
        mask=mask,
        weight_decay_mask=weight_decay_mask,
        schedule=schedule,
        safeguard=safeguard,
    )
