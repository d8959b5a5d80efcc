r"""The gradient of one meta-step: direction, hypergradient, diagnostics.

With two held-out batches :math:`B_1` and :math:`B_2` (Ko et al. 2023,
arXiv:2303.13009),

.. math::
    v = \nabla_w \Big[ l_{\text{primary}}(w; B_1)
        + \gamma \Big| \sum_t l_t(w; B_2) - c(l(w; B_2); \phi) \Big| \Big], \qquad
    g_\phi = -\nabla_\phi \langle \nabla_w c(l(w; B_2); \phi), v \rangle.

`primary_gradient` and `finish_meta_gradient` may be compiled as two programs: the
second needs the gradient and nothing of the first's activations. `meta_gradient` is
both, and `same_batch_meta_gradient` the cheaper one of :math:`B_1 = B_2`.

Beside the hypergradient's own cost, v takes a training gradient, and with the
regulariser a second one, whose activations XLA may keep at the same time.
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
    r"""What a meta-step saw.

    Attributes:
        primary: loss on the first batch, [].
        losses: l on the second, [T].
        combined: c(l; phi), [].
        weights: :math:`\partial c/\partial l_t`, [T]: the weight of each loss in the
            model's gradient, and 0 for one that is left out. May be negative.
        tangents: :math:`c_t = \langle p, \nabla l_t \rangle`, [T], p being v or what
            the method makes of it. Positive where descending the loss helps.
        masked: bool [T], losses left out since they were not finite.
        direction_norm: of v, [].
        gradient_norm: of g, []; NaN where g was.
        finite: bool, whether v and g were; where not, the gradient is returned as 0.
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
    """Gradient for phi (pytree like it) and diagnostics of a meta-step."""

    gradient: PyTree
    diagnostics: MetaDiagnostics


def primary_gradient(
    primary_fn: PrimaryFn, w: PyTree, batch: PyTree
) -> tuple[PyTree, jax.Array]:
    """The gradient of the primary loss, a pytree like w, and the loss [].

    Args:
        primary_fn: ``(w, batch) -> scalar``, the primary loss alone: out of T losses it
            would be differentiated with the others.
        w: the model's trainable parameters, any pytree of floating-point arrays.
        batch: B1.
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
    """The direction v, a pytree like w, and the primary loss [].

    Args:
        losses_fn: ``(w, batch) -> losses [T]``.
        combine: ``(phi, losses) -> scalar``.
        phi: the combiner's parameters.
        w: the model's trainable parameters.
        batches: B1 and B2; at gamma 0 only the first is read.
        primary: place of the primary loss in [T], or a function for it alone, which
            saves the others' work.
        gamma: weight of the regulariser, static.
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
    r"""The gradient of a meta-step.

    Args:
        losses_fn: ``(w, batch) -> losses [T]``; see
            `meta_opt.meta_loss.hypergradients` for what it may contain.
        combine: ``(phi, losses) -> scalar``, such as
            ``functools.partial(combiner.apply, dropout_key=key)``: one key, so that
            direction and hypergradient see the same network.
        phi: the combiner's parameters.
        w: the model's trainable parameters, any pytree of floating-point arrays.
        batches: B1 and B2, held out from the data that w is trained on.
        primary: place of the primary loss in [T], or a function for it alone.
        gamma: weight of the regulariser, static.
        hypergradient: the method; None for the exact one that shares the pass over B2
            with the regulariser.
        direct_term: add :math:`\nabla_\phi\, \gamma |\sum_t l_t - c(l; \phi)|`, which
            the published algorithm leaves out.

    Returns:
        Gradient, 0 where anything was not finite, and diagnostics.

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
    """`meta_gradient`, the primary loss's gradient being known.

    For a program of its own, so that the memory of the two does not add up.

    Args:
        losses_fn: see `meta_gradient`.
        combine: see `meta_gradient`.
        phi: the combiner's parameters.
        w: the model's trainable parameters.
        batch: B2.
        of_primary: what `primary_gradient` gave on B1.
        gamma: weight of the regulariser, static.
        hypergradient: the method; None for the exact one that shares the pass over B2
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
    """`meta_gradient` where B1 and B2 are one batch: one linearisation does it all.

    The losses go forward once; the transposed product gives the direction, the primary
    loss's gradient and the regulariser's together, and the product with it the
    tangents. The same numbers as ``jvp`` on ``(batch, batch)``, without the primary
    loss's own forward and backward pass: five passes where there are eight, if the
    primary loss costs as much as all (a backward pass and a tangent are two each). What
    is saved costs independence: the direction's noise is that of the
    tangents, which makes them larger than they are on average.

    Args:
        losses_fn: see `meta_gradient`.
        combine: see `meta_gradient`.
        phi: the combiner's parameters.
        w: the model's trainable parameters.
        batch: B1 and B2.
        primary: place of the primary loss in [T].
        gamma: weight of the regulariser, static.
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
    """A hypergradient with its direct term, 0 where not finite, and diagnostics."""
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
    """The direction and ``jvp`` out of one linearisation of the losses on B2.

    The regulariser's gradient is its transpose, and the tangents are its product with
    v: one forward pass instead of three, for the memory of a backward pass.
    """
    losses, push = jax.linearize(lambda w: losses_fn(w, batch), w)

    def regulariser(losses: jax.Array) -> jax.Array:
        return sum_regulariser(losses, combine(phi, losses), gamma)

    (more,) = jax.linear_transpose(push, w)(jax.grad(regulariser)(losses))
    v = jax.tree.map(jnp.add, v, more)
    return v, contract(combine, phi, losses, push(cast_like(v, w)))
