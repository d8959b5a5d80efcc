"""Baselines for balancing several losses, or modalities of unequal strength.

Pure functions: the training loop computes the losses' gradients and has an optimizer
for the weights. Equal weights are often competitive (arXiv:2505.10347).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from meta_opt.types import PyTree

_TINY = 1e-12
_ROUNDING = 1e-5
"""Tolerance within which ratios count as 1, for rounding of float32 sums over a batch.
"""


def uncertainty_weighting(losses: jax.Array, log_variances: jax.Array) -> jax.Array:
    r"""Weights losses by learned homoscedastic uncertainty (Kendall et al. 2018).

    .. math:: \tfrac12 \sum_t e^{-s_t} l_t + s_t

    Args:
        losses: l, [T].
        log_variances: s, [T], trained with the model, initialised to zeros.

    Returns:
        A scalar; half the sum of the losses at s = 0.

    >>> float(uncertainty_weighting(jnp.array([1.0, 3.0]), jnp.zeros(2)))
    2.0
    """
    return 0.5 * jnp.sum(jnp.exp(-log_variances) * losses + log_variances)


def gradnorm_loss(
    weights: jax.Array,
    norms: jax.Array,
    losses: jax.Array,
    first_losses: jax.Array,
    alpha: float = 1.5,
    present: jax.Array | None = None,
) -> jax.Array:
    r"""Objective of GradNorm's loss weights (Chen et al. 2018, arXiv:1711.02257).

    .. math::
        \sum_t \big| w_t G_t - \bar G\, r_t^\alpha \big|, \qquad
        r_t = \frac{l_t / l_t^0}{\operatorname{mean}_u\, l_u / l_u^0},

    where :math:`\bar G` is the mean of w G; gradients do not flow through it and r.
    After each update of the weights, `gradnorm_weights` renormalises their sum to T.

    Args:
        weights: w, [T].
        norms: G, [T], norms of the unweighted losses' gradients with respect to the
            shared parameters.
        losses: l, [T].
        first_losses: losses at the start of training, [T].
        alpha: strength of the preference for losses that decrease slowly.
        present: bool [T], false for losses to leave out of the sum and of both means,
            whatever their values; None to use all.

    >>> one, two = jnp.ones(2), jnp.array([1.0, 2.0])
    >>> float(gradnorm_loss(one, two, one, one))
    1.0
    """
    there = jnp.ones(weights.shape, bool) if present is None else present
    count = jnp.maximum(jnp.sum(there), 1)
    # Selected before any computation, so that gradients are finite.
    norms = jax.lax.stop_gradient(jnp.where(there, norms, 0))
    rate = jnp.where(there, losses, 0) / jnp.where(
        there, jnp.maximum(first_losses, _TINY), 1
    )
    rate = rate / jnp.maximum(jnp.sum(rate) / count, _TINY)
    mean = jnp.sum(weights * norms) / count
    target = jax.lax.stop_gradient(mean * rate**alpha)
    return jnp.sum(jnp.where(there, jnp.abs(weights * norms - target), 0))


def gradnorm_weights(weights: jax.Array) -> jax.Array:
    """Renormalises weights [T] to positive ones with sum T.

    >>> gradnorm_weights(jnp.array([1.0, 3.0])).tolist()
    [0.5, 1.5]
    """
    positive = jnp.maximum(weights, _TINY)
    return len(weights) * positive / jnp.sum(positive)


def pcgrad(
    grads: PyTree, key: jax.Array, present: jax.Array | None = None
) -> tuple[PyTree, jax.Array]:
    """Mean of gradients after projecting conflicting components away.

    From each gradient, the component along every other gradient with a negative inner
    product is removed, in random order (PCGrad, Yu et al. 2020, arXiv:2001.06782). The
    result is a weighted sum of the gradients whose weights depend on their inner
    products only, so the projections are computed on T weights, not on gradients.

    Args:
        grads: gradients of T losses, a pytree of arrays [T, ...].
        key: random key of the order.
        present: bool [T], false for losses that are left out of the mean, whose
            gradients must be 0; None to use all.

    Returns:
        The combined gradient, a pytree of arrays [...], and its float32 weights [T].

    >>> grads = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
    >>> combined, weights = pcgrad(grads, jax.random.key(0))
    >>> combined.tolist(), weights.tolist()
    ([0.25, 0.75], [1.0, 0.75])
    """
    flat = [g.reshape(len(g), -1).astype(jnp.float32) for g in jax.tree.leaves(grads)]
    products = sum((g @ g.T for g in flat), start=jnp.zeros(()))
    weights = pcgrad_weights(products, key, present)
    combined = jax.tree.map(
        lambda g: jnp.tensordot(weights.astype(g.dtype), g, 1), grads
    )
    return combined, weights


def pcgrad_weights(
    products: jax.Array, key: jax.Array, present: jax.Array | None = None
) -> jax.Array:
    """Weights [T] of the gradients in `pcgrad`.

    Args:
        products: inner products of the gradients, float [T, T].
        key: random key of the order.
        present: see `pcgrad`.
    """
    count = len(products)

    def project(i: jax.Array, key: jax.Array) -> jax.Array:
        def away(own: jax.Array, j: jax.Array) -> tuple[jax.Array, None]:
            product = own @ products[j]
            part = jnp.where(
                (product < 0) & (j != i),
                product / jnp.maximum(products[j, j], _TINY),
                0.0,
            )
            return own.at[j].add(-part), None

        order = jax.random.permutation(key, count)
        return jax.lax.scan(away, jax.nn.one_hot(i, count), order)[0]

    each = jax.vmap(project)(jnp.arange(count), jax.random.split(key, count))
    there = jnp.ones(count, bool) if present is None else present
    return there.astype(each.dtype) @ each / jnp.maximum(jnp.sum(there), 1)


def modality_strengths(
    logits: Sequence[jax.Array],
    labels: jax.Array,
    present: Sequence[jax.Array] | None = None,
) -> jax.Array:
    """Probability of the right class from each modality alone, summed over a batch.

    The result is float [M], one sum per modality.

    Args:
        logits: logits from each modality alone, [B, K].
        labels: int [B].
        present: for each modality bool [B], false for examples without it, which are
            ignored; None: all have it.

    >>> certain = jnp.array([[9.0, -9.0], [-9.0, 9.0]])
    >>> strengths = modality_strengths([certain, jnp.zeros((2, 2))], jnp.array([0, 1]))
    >>> strengths.round(3).tolist()
    [2.0, 1.0]
    """
    picked = [
        jnp.take_along_axis(jax.nn.softmax(x), labels[:, None], axis=1)[:, 0]
        for x in logits
    ]
    if present is not None:
        pairs = zip(picked, present, strict=True)
        picked = [jnp.where(there, x, 0) for x, there in pairs]
    return jnp.stack([jnp.sum(x) for x in picked])


def ogm_factors(
    strengths: jax.Array, alpha: float = 0.5, present: jax.Array | None = None
) -> jax.Array:
    r"""Factors of the modalities' gradients (OGM, Peng et al. 2022, arXiv:2203.15332).

    With :math:`\rho` the ratio of a modality's strength to the mean of the others', the
    factor is :math:`1 - \tanh(\alpha \rho)` if :math:`\rho > 1`, else 1. For two
    modalities this is the paper's definition. Ratios within rounding of 1 count as 1,
    since the factor is discontinuous there.

    Args:
        strengths: output of `modality_strengths`, [M], M at least 2.
        alpha: strength of the modulation, 0.1 to 0.8 in the paper.
        present: bool [M], false for modalities that are not in the batch: they are not
            compared with others and have factor 1. None: all are present.

    Returns:
        float32 [M]; 1 for a strength that is not finite.

    Raises:
        ValueError: a single modality.

    >>> ogm_factors(jnp.array([1.0, 2.0]), alpha=0.5).round(3).tolist()
    [1.0, 0.23800000548362732]
    """
    if len(strengths) < 2:
        raise ValueError("one modality has none to be stronger than")
    there = jnp.ones(len(strengths), bool) if present is None else present
    # [M, M]: row m marks the modalities that m is compared with.
    others = there[None, :] & ~jnp.eye(len(strengths), dtype=bool)
    total = jnp.sum(jnp.where(others, strengths[None, :], 0), axis=1)
    mean = total / jnp.maximum(jnp.sum(others, axis=1), 1)
    ratio = strengths / jnp.maximum(mean, _TINY)
    compared = there & jnp.any(others, axis=1)
    stronger = compared & (ratio > 1 + _ROUNDING)
    return jnp.where(stronger, 1 - jnp.tanh(alpha * ratio), 1.0)


def ogm_ge(
    grads: PyTree, factor: jax.Array, key: jax.Array, noise: bool = True
) -> PyTree:
    """Scales a modality's gradients by its factor and adds noise (OGM-GE).

    The noise restores the gradient noise that the scaling removes (generalisation
    enhancement). It is normal with the standard deviation of each leaf's gradient, and
    zero if the factor is 1.

    Args:
        grads: gradients of the modality's encoder.
        factor: scalar factor of `ogm_factors`.
        key: random key of the noise.
        noise: whether to add noise; False for OGM, which only scales.
    """
    leaves: list[jax.Array]
    treedef: Any
    leaves, treedef = jax.tree.flatten(grads)
    keys = jax.random.split(key, max(len(leaves), 1))

    def modulated(g: jax.Array, key: jax.Array) -> jax.Array:
        scaled = factor * g
        if noise:
            size = jnp.where(factor < 1, jnp.std(g, dtype=jnp.float32), 0)
            scaled += size * jax.random.normal(key, g.shape)
        return scaled.astype(g.dtype)

    return treedef.unflatten(
        [modulated(g, k) for g, k in zip(leaves, keys[: len(leaves)], strict=True)]
    )
