r"""The gradient of one meta-step: direction, hypergradient, diagnostics.

With two held-out batches :math:`B_1` and :math:`B_2` (Ko et al. 2023,
arXiv:2303.13009),

.. math::
    v = \nabla_w \Big[ l_{\text{primary}}(w; B_1)
        + \gamma \Big| \sum_t l_t(w; B_2) - c(l(w; B_2); \phi) \Big| \Big], \qquad
    g_\phi = -\nabla_\phi \langle \nabla_w c(l(w; B_2); \phi), v \rangle.

`meta_direction` and the hypergradient may be compiled as two programs: the second needs
v and nothing of the first's activations. `meta_gradient` is both in one.

Beside the hypergradient's own cost, v takes a training gradient, and with the
regulariser a second one, whose activations XLA may keep at the same time.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from meta_opt.meta_loss.hypergradients import (
    Combine,
    HypergradientConfig,
    HypergradientFn,
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
    """The direction v and the primary loss.

    Args:
        losses_fn: ``(w, batch) -> losses [T]``.
        combine: ``(phi, losses) -> scalar``.
        phi: the combiner's parameters.
        w: the model's trainable parameters, any pytree of floating-point arrays.
        batches: B1 and B2; at gamma 0 only the first is read.
        primary: place of the primary loss, or a function that computes it alone and
            saves the others' work.
        gamma: weight of the regulariser, static.

    Returns:
        v, a pytree like w, and the primary loss [].
    """
    first, second = batches

    def primary_loss(w: PyTree) -> jax.Array:
        loss = primary(w, first) if callable(primary) else losses_fn(w, first)[primary]
        return loss.astype(jnp.promote_types(loss.dtype, jnp.float32))

    def regulariser(w: PyTree) -> jax.Array:
        losses = losses_fn(w, second)
        return sum_regulariser(losses, combine(phi, losses), gamma)

    loss, v = jax.value_and_grad(primary_loss)(w)
    if gamma:
        v = jax.tree.map(jnp.add, v, jax.grad(regulariser)(w))
    return v, loss


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
        hypergradient: the method; None for the exact ``jvp``.
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
    if hypergradient is None:
        hypergradient = make_hypergradient(HypergradientConfig())
    v, primary_loss = meta_direction(
        losses_fn, combine, phi, w, batches, primary=primary, gamma=gamma
    )
    found = hypergradient(lambda w: losses_fn(w, batches[1]), combine, phi, w, v)
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
