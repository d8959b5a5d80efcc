"""The learned optimizer: the update rule under a meta-trained LSTM controller."""

import os
from collections.abc import Sequence

import jax
import optax

from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.masks import Mask
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
    mask: Mask | None = None,
    weight_decay_mask: Mask | None = None,
    schedule: optax.ScalarOrSchedule | None = None,
    safeguard: bool = True,
    pallas: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that takes the number of steps and no learning rate.

    For every tensor (every layer of a scan-stacked one) a meta-trained controller sets,
    at each step, the step size, the mixture of update directions, decay rates, weight
    decay and the compression of outlier gradients. The state is bfloat16 momentum,
    factored second moments and a few dozen numbers per tensor, about 2.1 bytes per
    parameter. `meta_opt.optimizers.update_rule` has the formula.

    References:
        An LSTM as optimizer: Andrychowicz et al. 2016, arXiv:1606.04474; an LSTM for
        each tensor: Metz et al. 2022 (VeLO), arXiv:2211.09760; the orthogonalised
        direction: Jordan et al. 2024 (Muon), at scale Liu et al. 2025,
        arXiv:2502.16982; factored second moments: Shazeer and Stern 2018 (Adafactor),
        arXiv:1804.04235; Adam's direction: Kingma and Ba 2014, arXiv:1412.6980; the
        sign direction: Chen et al. 2023 (Lion), arXiv:2302.06675; decoupled weight
        decay: Loshchilov and Hutter 2017, arXiv:1711.05101; cosine decay: Loshchilov
        and Hutter 2016 (SGDR), arXiv:1608.03983.

    Args:
        num_steps: length of the run in calls of ``update``; later steps are zero. May
            be traced, as by `optax.inject_hyperparams`.
        weights: name of shipped weights, or path of a ``.safetensors`` file.
        theta: the controller's weights as a pytree, instead of ``weights``; may be
            traced and batched by ``vmap``.
        config: the controller's architecture, for ``theta``.
        stacked: regular expression over ``/``-joined parameter paths; matching leaves
            have a leading layer axis and are controlled per layer.
        groups: ordered (regular expression, modality group) pairs that take precedence
            over the default ones, for logging only; groups are vision, text, audio,
            video, fusion, head, other.
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
            the RMS step of 2e-3, in addition to the factors of the controller and the
            safeguard. Steps beyond ``num_steps`` are then no longer zero. The
            controller still measures progress by ``num_steps``; it was meta-trained
            with the built-in shape.
        safeguard: whether to skip broken steps and to fall back to the hand-designed
            rule on a sustained rise of the loss.
        pallas: whether to compute statistics of large matrices with a Pallas kernel,
            which on a GPU saves 4 of 28 bytes of memory traffic per parameter; for
            parameters on one device.

    Returns:
        A transformation whose ``update(grads, state, params, value=..., feedback=...)``
        takes two optional keywords: the loss of this step, and a validation loss if
        available (NaN or None otherwise).

    Raises:
        ValueError: ``num_steps`` below 1, unknown or damaged weights, a pattern that
            matches nothing, a mask that is not a prefix of the parameters; later,
            ``update`` without params, with gradients that do not match, or with a
            ``value``, ``feedback`` or schedule that is not a scalar.
        TypeError: ``num_steps`` that is not an integer, a mask or schedule of the wrong
            type, parameters that are not floating-point arrays, the state of another
            optimizer.

    Warns:
        UserWarning: ``init`` with bfloat16 or float16 parameters, in which small
            updates are lost to rounding.

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
        mask=mask,
        weight_decay_mask=weight_decay_mask,
        schedule=schedule,
        safeguard=safeguard,
        pallas=pallas,
    )
