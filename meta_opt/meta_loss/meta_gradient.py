r"""The gradient of one meta-step: direction, hypergradient, diagnostics.

With two held-out batches :math:`B_1` and :math:`B_2` (Ko et al. 2023,
arXiv:2303.13009),

.. math::
    v = \nabla_w \Big[ l_{\text{primary}}(w; B_1)
        + \gamma \Big| \sum_t l_t(w; B_2) - c(l(w; B_2); \phi) \Big| \Big], \qquad
    g_\phi = -\nabla_\phi \langle \nabla_w c(l(w; B_2); \phi), v \rangle.

`primary_gradient` and `finish_meta_gradient` can be compiled as two programs: the
second needs the gradient, but no activations of the first. `meta_gradient` does both,
and `same_batch_meta_gradient` is cheaper if :math:`B_1 = B_2`.

Besides the hypergradient, v costs a training gradient, and a second one with the
regulariser, whose activations XLA may keep at the same time.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from meta_opt.meta_loss.hypergradients import (
    Combine,
    Hypergradient,
    HypergradientConfig,
    HypergradientFn,
    cast_like,
    contract,
    inner_product,
    make_hypergradient,
)
from meta_opt.meta_loss.masking import present_losses
from meta_opt.meta_loss.regulariser import sum_regulariser
from meta_opt.types import PyTree

BatchLossesFn: TypeAlias = Callable[[PyTree, PyTree], jax.Array]
"""``(w, batch) -> losses [T]``; a key for dropout is part of the batch."""

PrimaryFn: TypeAlias = Callable[[PyTree, PyTree], jax.Array]
"""``(w, batch) -> scalar``."""


class MetaDiagnostics(NamedTuple):
    r"""Diagnostics of a meta-step.

    Attributes:
        primary: primary loss on the first batch, [].
        losses: l on the second batch, [T].
        combined: c(l; phi), [].
        weights: :math:`\partial c/\partial l_t`, [T]: the weight of each loss in the
            model's gradient, 0 for losses that are left out. May be negative.
        tangents: :math:`c_t = \langle p, \nabla l_t \rangle`, [T], where p is v or the
            method's transform of it. Positive if descending the loss helps.
        masked: bool [T], losses left out because they were not finite.
        direction_norm: norm of v, [].
        gradient_norm: norm of g, []; NaN if g was not finite.
        finite: bool, whether v and g were finite; otherwise the gradient is set to 0.
    """

    primary: jax.Array
    losses: jax.Array
    combined: jax.Array
    weights: jax.Array
    tangents: jax.Array
    masked: jax.Array
    direction_norm: jax.Array
    gradient_norm: jax.Array
    finite: jax.Array


class MetaGradient(NamedTuple):
    """Gradient of a meta-step, a pytree like phi, and its diagnostics."""

    gradient: PyTree
    diagnostics: MetaDiagnostics


def primary_gradient(
    primary_fn: PrimaryFn, w: PyTree, batch: PyTree
) -> tuple[PyTree, jax.Array]:
    """Returns the gradient of the primary loss, a pytree like w, and the loss [].

    Args:
        primary_fn: ``(w, batch) -> scalar``, the primary loss alone, so that the other
            losses are not differentiated.
        w: the model's trainable parameters, any pytree of floating-point arrays.
        batch: batch B1.
    """

    def wide(w: PyTree) -> jax.Array:
        loss = primary_fn(w, batch)
        return loss.astype(jnp.promote_types(loss.dtype, jnp.float32))

    loss, gradient = jax.value_and_grad(wide)(w)
    return gradient, loss


def _primary_fn(losses_fn: BatchLossesFn, primary: int | PrimaryFn) -> PrimaryFn:
    if callable(primary):
        return primary
    return lambda w, batch: losses_fn(w, batch)[primary]


def meta_direction(
    losses_fn: BatchLossesFn,
    combine: Combine,
    phi: PyTree,
    w: PyTree,
    batches: tuple[PyTree, PyTree],
    *,
    primary: int | PrimaryFn,
    gamma: float,
) -> tuple[PyTree, jax.Array]:
    """Returns the direction v, a pytree like w, and the primary loss [].

    Args:
        losses_fn: ``(w, batch) -> losses [T]``.
        combine: ``(phi, losses) -> scalar``.
        phi: the combiner's parameters.
        w: the model's trainable parameters.
        batches: batches B1 and B2; only B1 is read if gamma is 0.
        primary: index of the primary loss in [T], or a function that computes it alone,
            which is cheaper.
        gamma: weight of the regulariser, a static float.
    """
    first, second = batches
    v, loss = primary_gradient(_primary_fn(losses_fn, primary), w, first)
    return _with_regulariser(v, losses_fn, combine, phi, w, second, gamma), loss


def _with_regulariser(
    v: PyTree,
    losses_fn: BatchLossesFn,
    combine: Combine,
    phi: PyTree,
    w: PyTree,
    batch: PyTree,
    gamma: float,
) -> PyTree:
    def regulariser(w: PyTree) -> jax.Array:
        losses = losses_fn(w, batch)
        return sum_regulariser(losses, combine(phi, losses), gamma)

    return jax.tree.map(jnp.add, v, jax.grad(regulariser)(w)) if gamma else v


def meta_gradient(
    losses_fn: BatchLossesFn,
    combine: Combine,
    phi: PyTree,
    w: PyTree,
    batches: tuple[PyTree, PyTree],
    *,
    primary: int | PrimaryFn = 0,
    gamma: float = 0.1,
    hypergradient: HypergradientFn | None = None,
    direct_term: bool = False,
) -> MetaGradient:
    r"""Computes the gradient of a meta-step.

    Args:
        losses_fn: ``(w, batch) -> losses [T]``; see
            `meta_opt.meta_loss.hypergradients` for what it may contain.
        combine: ``(phi, losses) -> scalar``, such as
            ``functools.partial(combiner.apply, dropout_key=key)``, with a fixed key so
            that direction and hypergradient use the same dropout masks.
        phi: the combiner's parameters.
        w: the model's trainable parameters, any pytree of floating-point arrays.
        batches: batches B1 and B2, held out from the data that w is trained on.
        primary: index of the primary loss in [T], or a function that computes it alone.
        gamma: weight of the regulariser, a static float.
        hypergradient: method; None for the exact one that shares the pass over B2
            with the regulariser.
        direct_term: whether to add :math:`\nabla_\phi\, \gamma |\sum_t l_t - c(l;
            \phi)|`, which the published algorithm leaves out.

    Returns:
        Gradient, set to 0 if anything was not finite, and diagnostics.

    >>> def losses_fn(w, batch):
    ...     return jnp.stack([(w - batch) ** 2, (w - 5.0) ** 2])
    >>> result = meta_gradient(
    ...     losses_fn, lambda phi, losses: jnp.sum(phi * losses), jnp.ones(2),
    ...     jnp.array(1.0), (jnp.array(0.0), jnp.array(0.5)), gamma=0.0)
    >>> result.gradient.tolist()  # More of the first loss, less of the second.
    [-2.0, 16.0]
    """
    found = primary_gradient(_primary_fn(losses_fn, primary), w, batches[0])
    return finish_meta_gradient(
        *(losses_fn, combine, phi, w, batches[1], found),
        gamma=gamma,
        hypergradient=hypergradient,
        direct_term=direct_term,
    )


def finish_meta_gradient(
    losses_fn: BatchLossesFn,
    combine: Combine,
    phi: PyTree,
    w: PyTree,
    batch: PyTree,
    of_primary: tuple[PyTree, jax.Array],
    *,
    gamma: float = 0.1,
    hypergradient: HypergradientFn | None = None,
    direct_term: bool = False,
) -> MetaGradient:
    """Computes `meta_gradient` from a known gradient of the primary loss.

    Compiled as a separate program, so that the memory of the two does not add up.

    Args:
        losses_fn: see `meta_gradient`.
        combine: see `meta_gradient`.
        phi: the combiner's parameters.
        w: the model's trainable parameters.
        batch: batch B2.
        of_primary: result of `primary_gradient` on B1.
        gamma: weight of the regulariser, a static float.
        hypergradient: method; None for the exact one that shares the pass over B2
            with the regulariser.
        direct_term: see `meta_gradient`.
    """
    v, primary_loss = of_primary
    if hypergradient is None and gamma:
        v, found = _shared(losses_fn, combine, phi, w, batch, v, gamma)
    else:
        method = hypergradient or make_hypergradient(HypergradientConfig())
        v = _with_regulariser(v, losses_fn, combine, phi, w, batch, gamma)
        found = method(lambda w: losses_fn(w, batch), combine, phi, w, v)
    return _diagnosed(combine, phi, v, primary_loss, found, gamma, direct_term)


def same_batch_meta_gradient(
    losses_fn: BatchLossesFn,
    combine: Combine,
    phi: PyTree,
    w: PyTree,
    batch: PyTree,
    *,
    primary: int,
    gamma: float = 0.1,
    direct_term: bool = False,
) -> MetaGradient:
    """Computes `meta_gradient` for equal batches B1 and B2, with one linearisation.

    The losses are evaluated once; the vector-Jacobian product gives the direction,
    which includes the gradient of the regulariser, and the Jacobian-vector product with
    it the tangents. The results equal those of ``jvp`` on ``(batch, batch)`` without
    the primary loss's own forward and backward pass: the cost is five forward passes
    instead of eight, if the primary loss costs as much as all (a backward pass and a
    tangent cost two each). The price is a bias: direction and tangents share their
    noise, which makes the tangents larger than on independent batches.

    Args:
        losses_fn: see `meta_gradient`.
        combine: see `meta_gradient`.
        phi: the combiner's parameters.
        w: the model's trainable parameters.
        batch: batch that is both B1 and B2.
        primary: index of the primary loss in [T].
        gamma: weight of the regulariser, a static float.
        direct_term: see `meta_gradient`.

    >>> result = same_batch_meta_gradient(
    ...     lambda w, batch: jnp.stack([(w - batch) ** 2, (w - 5.0) ** 2]),
    ...     lambda phi, losses: jnp.sum(phi * losses), jnp.ones(2),
    ...     jnp.array(1.0), jnp.array(0.5), primary=0, gamma=0.0)
    >>> result.gradient.tolist()
    [-1.0, 8.0]
    """
    losses, push = jax.linearize(lambda w: losses_fn(w, batch), w)

    def objective(losses: jax.Array) -> jax.Array:
        combined = combine(phi, losses)
        return losses[primary] + sum_regulariser(losses, combined, gamma)

    (v,) = jax.linear_transpose(push, w)(jax.grad(objective)(losses))
    found = contract(combine, phi, losses, push(cast_like(v, w)))
    of_primary = found.losses[primary]
    return _diagnosed(combine, phi, v, of_primary, found, gamma, direct_term)


def _diagnosed(
    combine: Combine,
    phi: PyTree,
    v: PyTree,
    primary_loss: jax.Array,
    found: Hypergradient,
    gamma: float,
    direct_term: bool,
) -> MetaGradient:
    """Adds the direct term and diagnostics; zeroes a gradient that is not finite."""
    gradient = found.gradient
    if direct_term:
        direct = jax.grad(
            lambda phi: sum_regulariser(found.losses, combine(phi, found.losses), gamma)
        )(phi)
        gradient = jax.tree.map(jnp.add, gradient, direct)
    combined, weights = jax.value_and_grad(combine, argnums=1)(phi, found.losses)
    direction_norm = jnp.sqrt(inner_product(v, v))
    gradient_norm = jnp.sqrt(inner_product(gradient, gradient))
    finite = jnp.isfinite(direction_norm) & jnp.isfinite(gradient_norm)
    finite &= jnp.isfinite(primary_loss)
    diagnostics = MetaDiagnostics(
        primary=primary_loss,
        losses=found.losses,
        combined=combined,
        weights=weights,
        tangents=found.tangents,
        masked=~present_losses(found.losses),
        direction_norm=direction_norm,
        gradient_norm=gradient_norm,
        finite=finite,
    )
    gradient = jax.tree.map(lambda g: jnp.where(finite, g, 0), gradient)
    return MetaGradient(gradient, diagnostics)


def _shared(
    losses_fn: BatchLossesFn,
    combine: Combine,
    phi: PyTree,
    w: PyTree,
    batch: PyTree,
    v: PyTree,
    gamma: float,
) -> tuple[PyTree, Hypergradient]:
    """Returns the direction and ``jvp`` from one linearisation of the losses on B2.

    The regulariser's gradient is a product with the transpose, and the tangents are a
    product with v: one forward pass instead of three, with the memory of a backward
    pass.
    """
    losses, push = jax.linearize(lambda w: losses_fn(w, batch), w)

    def regulariser(losses: jax.Array) -> jax.Array:
        return sum_regulariser(losses, combine(phi, losses), gamma)

    (more,) = jax.linear_transpose(push, w)(jax.grad(regulariser)(losses))
    v = jax.tree.map(jnp.add, v, more)
    return v, contract(combine, phi, losses, push(cast_like(v, w)))
