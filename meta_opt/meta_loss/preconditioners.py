r"""Preconditioners from the inner optimizer, for the hypergradient ``sama``.

A step updates w by :math:`u(g)`. The derivative of the meta-objective after the step
with respect to :math:`\phi` is that of :math:`\langle g(\phi), (\partial u / \partial
g)^\top v \rangle` (Choe et al. 2023, arXiv:2310.05674). For plain gradient descent the
matrix is a multiple of the identity.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from meta_opt.meta_loss.hypergradients import Precondition
from meta_opt.types import PyTree

_SMALL = 1e-16
"""Its square, times one minus Adam's decay rate, is a normal float32."""


def adam_preconditioner(
    state: optax.OptState, *, b2: float = 0.999, eps: float = 1e-8
) -> Precondition:
    r"""Divides by Adam's denominator: :math:`v / (\sqrt{\hat s} + \epsilon)`.

    Cheap, since it needs no gradient of the current batch. The learning rate is not
    included. Entries that never had a gradient, such as embeddings of unseen tokens,
    become 0. Before the first step this is the identity.

    Args:
        state: an optax state that contains the state of one ``scale_by_adam``.
        b2: decay rate of its second moment, for bias correction.
        eps: epsilon of its denominator.

    Raises:
        ValueError: the state contains no Adam state, or several.

    >>> tx = optax.adam(0.1)
    >>> w = jnp.array([1.0, 1.0])
    >>> _, state = tx.update(jnp.array([2.0, 4.0]), tx.init(w), w)
    >>> adam_preconditioner(state)(w).round(3).tolist()
    [0.5, 0.25]
    """

    def is_adam(x: Any) -> bool:
        return isinstance(x, optax.ScaleByAdamState)

    found = [x for x in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(x)]
    if len(found) != 1:
        raise ValueError(
            f"adam_preconditioner needs a state with one optax.ScaleByAdamState, and "
            f"this has {len(found)}; update_preconditioner works for any optimizer"
        )
    adam = found[0]
    started = adam.count > 0
    correction = jnp.where(started, 1 - b2**adam.count, 1.0)

    def precondition(v: PyTree) -> PyTree:
        def divide(x: jax.Array, second_moment: jax.Array) -> jax.Array:
            unbiased = second_moment.astype(jnp.float32) / correction
            divided = x / (jnp.sqrt(unbiased) + eps)
            return jnp.where(started, jnp.where(unbiased > 0, divided, 0), x)

        return jax.tree.map(divide, v, adam.nu)

    return precondition


def update_preconditioner(
    tx: optax.GradientTransformationExtraArgs | optax.GradientTransformation,
    state: optax.OptState,
    grads: PyTree,
    params: PyTree,
    **extra: Any,
) -> Precondition:
    r"""Returns the transposed derivative of any optax transformation's update.

    .. math:: v \mapsto -(\partial u / \partial g)^\top v

    This is exact: if v is the gradient after the step, ``sama`` is the derivative
    through that step, including learning rate and clipping. Gradients below 1e-16 in
    magnitude are replaced by 1e-16, since the root in Adam's denominator has no finite
    derivative at 0.

    Args:
        tx: the optimizer of w.
        state: state of the optimizer before the step.
        grads: gradient of the combined loss at w on the batch of the hypergradient, a
            pytree like ``params``. With another batch, entries that are 0 only in
            ``grads`` would be weighted by one over Adam's epsilon.
        params: the model's parameters w.
        **extra: further arguments of ``tx.update``, such as ``value``.

    >>> tx, w = optax.sgd(0.5), jnp.array([1.0, 2.0])
    >>> update_preconditioner(tx, tx.init(w), w, w)(w).tolist()
    [0.5, 1.0]
    """
    tx = optax.with_extra_args_support(tx)
    grads = jax.tree.map(lambda g: jnp.where(jnp.abs(g) < _SMALL, _SMALL, g), grads)

    def update(grads: PyTree) -> PyTree:
        return tx.update(grads, state, params, **extra)[0]

    def precondition(v: PyTree) -> PyTree:
        updates, backward = jax.vjp(update, grads)
        cotangent = jax.tree.map(lambda x, u: -x.astype(u.dtype), v, updates)
        return backward(cotangent)[0]

    return precondition
