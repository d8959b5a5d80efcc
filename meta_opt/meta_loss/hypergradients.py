r"""Hypergradients of a combined loss, by several methods with a common interface.

Let :math:`w` move down the gradient of the combined loss :math:`c(l(w); \phi)`, and let
:math:`v` be the gradient of the meta-objective with respect to :math:`w`. All methods
estimate

.. math::
    g_\phi = -\nabla_\phi \big\langle \nabla_w c(l(w); \phi),\, p \big\rangle,
    \qquad p = M v,

the derivative of the meta-objective after one step, up to the step size. They differ in
:math:`M` and in how the product is computed:

=======================  ==========================  ===================================
name                     M                           derivatives of the model
=======================  ==========================  ===================================
``jvp``                  identity                    one forward-mode pass
``double_backward``      identity                    reverse mode over reverse mode
``finite_differences``   identity                    none: two evaluations
``neumann``              truncated inverse Hessian   K - 1 Hessian products, as ``jvp``
``sama``                 the optimizer's adaptation  one forward-mode pass
=======================  ==========================  ===================================

The combined loss depends on :math:`w` only through the T losses: with
:math:`c_t = \langle p, \nabla l_t \rangle` the product is
:math:`\sum_t c_t\, \partial c / \partial l_t`. One forward-mode pass gives losses and
:math:`c_t`; only the combiner is differentiated with respect to :math:`\phi`. ``jvp``
and ``double_backward`` are equal to rounding.

**Cost.** ``jvp``, ``sama`` and ``double_backward`` take the FLOPs of one training
gradient, ``finite_differences`` two thirds of that.

**Memory.** Forward mode needs a tangent like w and no stored activations. XLA keeps
none for scanned layers (6 MiB for 16 layers whose training gradient takes 52 MiB), but
may for unrolled ones. ``double_backward`` keeps the activations of a training gradient,
``neumann`` twice as much and two float32 vectors like w, independently of K, and
``finite_differences`` a shifted copy of w. All respect `jax.checkpoint` in the losses.

**Losses.** ``losses_fn`` maps w to losses [T]. Its random keys must be part of the
batch, so that every call draws the same numbers. A `jax.custom_vjp` has no forward
mode: use ``double_backward`` or ``finite_differences`` then.

**Losses that are not finite** are left out by the combiner, whatever their
:math:`c_t`. Reverse mode through the losses (``double_backward``, ``neumann``, v
itself, the gradient that trains the model) still multiplies a cotangent of 0 with the
derivative of such a loss, and 0 times NaN is NaN. A loss that a batch lacks should
therefore be ``jnp.where(available, loss, jnp.nan)`` with a finite ``loss``, whose
gradient is exactly 0.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from meta_opt.types import PyTree, check_name

LossesFn: TypeAlias = Callable[[PyTree], jax.Array]
"""w to losses [T], the batch closed over."""

Combine: TypeAlias = Callable[[PyTree, jax.Array], jax.Array]
"""``(phi, losses [T]) -> scalar``, a combiner with mask and dropout key closed over."""

Precondition: TypeAlias = Callable[[PyTree], PyTree]
"""v to M v, pytrees like w; see `meta_opt.meta_loss.preconditioners`."""

_TINY = 1e-30


class Hypergradient(NamedTuple):
    """A hypergradient, with the losses and their tangents.

    Attributes:
        gradient: g, a pytree like phi.
        losses: l(w), float32 [T].
        tangents: c, float32 [T]: derivative of each loss along p. A loss with positive
            c decreases along -p, as the meta-objective does.
    """

    gradient: PyTree
    losses: jax.Array
    tangents: jax.Array


class HypergradientFn(Protocol):
    """A pure function that estimates hypergradients."""

    def __call__(
        self,
        losses_fn: LossesFn,
        combine: Combine,
        phi: PyTree,
        w: PyTree,
        v: PyTree,
    ) -> Hypergradient:
        """Estimates the hypergradient.

        Args:
            losses_fn: function from w to losses [T].
            combine: ``(phi, losses) -> scalar``.
            phi: the combiner's parameters.
            w: the model's trainable parameters, any pytree of floating-point arrays.
            v: gradient of the meta-objective, a pytree like w.
        """
        ...


@dataclasses.dataclass(frozen=True)
class HypergradientConfig:
    """The hypergradient method and its settings.

    Attributes:
        kind: one of `HYPERGRADIENTS`.
        terms: K, number of terms of ``neumann``.
        step_size: eta of ``neumann``; the series converges below two divided by the
            largest eigenvalue of the Hessian.
        radius: length of the step along v to either side, for ``finite_differences``.
        share_forward: whether ``jvp`` shares its pass over the second batch of a
            meta-step with the regulariser: this saves operations, but takes the memory
            of a backward pass.
    """

    kind: str = "jvp"
    terms: int = 3
    step_size: float = 0.01
    radius: float = 1e-2
    share_forward: bool = True

    def __post_init__(self) -> None:
        """Checks the name and the ranges."""
        check_name("kind", self.kind, HYPERGRADIENTS)
        if self.terms < 1:
            raise ValueError(f"terms={self.terms} must be at least 1")
        if not (self.step_size > 0 and self.radius > 0):
            raise ValueError(
                f"step_size={self.step_size} and radius={self.radius} must be positive"
            )


def make_hypergradient(
    config: HypergradientConfig, precondition: Precondition | None = None
) -> HypergradientFn:
    """Returns the method that ``config`` names.

    Args:
        config: name and settings.
        precondition: preconditioner, which ``sama`` requires.

    Raises:
        ValueError: ``sama`` has no ``precondition``, or another method has one.

    >>> losses_fn = lambda w: jnp.array([0.5, 2.0]) * w**2
    >>> combine = lambda phi, losses: jnp.sum(phi * losses)
    >>> hypergradient = make_hypergradient(HypergradientConfig("jvp"))
    >>> w, v = jnp.array(3.0), jnp.array(1.0)
    >>> found = hypergradient(losses_fn, combine, jnp.ones(2), w, v)
    >>> found.gradient.tolist(), found.tangents.tolist()
    ([-3.0, -12.0], [3.0, 12.0])
    """
    if (config.kind == "sama") != (precondition is not None):
        raise ValueError(
            f"kind={config.kind!r} with precondition={precondition}: sama needs one "
            "(see meta_opt.meta_loss.preconditioners), the other kinds take none"
        )
    return HYPERGRADIENTS[config.kind](config, precondition)


def _jvp(
    config: HypergradientConfig, precondition: Precondition | None
) -> HypergradientFn:
    """Exact hypergradient by forward mode; ``sama`` if there is a preconditioner."""

    def hypergradient(
        losses_fn: LossesFn, combine: Combine, phi: PyTree, w: PyTree, v: PyTree
    ) -> Hypergradient:
        p = v if precondition is None else precondition(v)
        losses, tangents = jax.jvp(losses_fn, (w,), (cast_like(p, w),))
        return contract(combine, phi, losses, tangents)

    return hypergradient


def _double_backward(
    config: HypergradientConfig, precondition: Precondition | None
) -> HypergradientFn:
    """Exact hypergradient by reverse over reverse mode, the reference for tests."""

    def hypergradient(
        losses_fn: LossesFn, combine: Combine, phi: PyTree, w: PyTree, v: PyTree
    ) -> Hypergradient:
        def product(phi: PyTree) -> jax.Array:
            return inner_product(jax.grad(lambda w: combine(phi, losses_fn(w)))(w), v)

        losses, backward = jax.vjp(losses_fn, w)
        # <J' u, v> is linear in u, so its derivative with respect to u is J v.
        tangents = jax.grad(lambda u: inner_product(backward(u)[0], v))(
            jnp.zeros_like(losses)
        )
        gradient = jax.tree.map(jnp.negative, jax.grad(product)(phi))
        return Hypergradient(gradient, _wide(losses), _wide(tangents))

    return hypergradient


def _neumann(
    config: HypergradientConfig, precondition: Precondition | None
) -> HypergradientFn:
    r"""Implicit differentiation at a minimum of the combined loss.

    The inverse Hessian is replaced by :math:`\eta \sum_{k<K} (I - \eta H)^k` (Lorraine
    et al. 2020, arXiv:1911.02590); K = 1 is ``jvp`` times eta. Its memory is that of
    one Hessian-vector product, independently of K.
    """

    def hypergradient(
        losses_fn: LossesFn, combine: Combine, phi: PyTree, w: PyTree, v: PyTree
    ) -> Hypergradient:
        gradient_fn = jax.grad(lambda w: combine(phi, losses_fn(w)))

        def add_term(carry: tuple[PyTree, PyTree], _: None) -> tuple[tuple, None]:
            term, total = carry
            _, product = jax.jvp(gradient_fn, (w,), (cast_like(term, w),))
            term = jax.tree.map(
                lambda t, h: t - config.step_size * h.astype(t.dtype), term, product
            )
            return (term, jax.tree.map(jnp.add, total, term)), None

        start = jax.tree.map(_wide, v)
        (_, total), _ = jax.lax.scan(add_term, (start, start), length=config.terms - 1)
        p = jax.tree.map(lambda x: config.step_size * x, total)
        losses, tangents = jax.jvp(losses_fn, (w,), (cast_like(p, w),))
        return contract(combine, phi, losses, tangents)

    return hypergradient


def _finite_differences(
    config: HypergradientConfig, precondition: Precondition | None
) -> HypergradientFn:
    r"""Central differences along v, with :math:`\epsilon` = radius / norm of v.

    As in DARTS (Liu et al. 2019, arXiv:1806.09055), but only the T losses are
    differenced; the combiner is differentiated exactly, at the mean of the two. For an
    MLP with eight losses the error is 3e-5 at radius 1e-2 and 1e-3 at 1e-4; differences
    of the combiner's gradient, which jumps at every ReLU, have errors of 2.8 and 0.01.
    If the radius is too small, rounding errors dominate, first of all in bfloat16.
    """

    def hypergradient(
        losses_fn: LossesFn, combine: Combine, phi: PyTree, w: PyTree, v: PyTree
    ) -> Hypergradient:
        norm = jnp.sqrt(inner_product(v, v))
        epsilon = config.radius / jnp.maximum(norm, _TINY)

        def moved(distance: jax.Array) -> jax.Array:
            shifted = jax.tree.map(
                lambda x, d: (_wide(x) + distance * _wide(d)).astype(x.dtype), w, v
            )
            return _wide(losses_fn(shifted))

        ahead, behind = moved(epsilon), moved(-epsilon)
        tangents = (ahead - behind) / (2 * epsilon)
        return contract(combine, phi, (ahead + behind) / 2, tangents)

    return hypergradient


HYPERGRADIENTS: dict[
    str, Callable[[HypergradientConfig, Precondition | None], HypergradientFn]
] = {
    "jvp": _jvp,
    "double_backward": _double_backward,
    "neumann": _neumann,
    "finite_differences": _finite_differences,
    "sama": _jvp,
}
"""Methods by name. ``sama`` is Choe et al. 2023 (arXiv:2310.05674): the Hessian is the
identity, and v goes through the derivative of the optimizer's update. The paper takes
the product by finite differences; here it is exact."""


def inner_product(a: PyTree, b: PyTree) -> jax.Array:
    """Returns the inner product of two pytrees, summed in at least float32."""
    products = jax.tree.map(lambda x, y: jnp.sum(_wide(x) * _wide(y)), a, b)
    return sum(jax.tree.leaves(products), start=jnp.zeros(()))


def cast_like(tree: PyTree, reference: PyTree) -> PyTree:
    """Casts ``tree`` to the dtypes of ``reference``, as its tangents must have."""
    return jax.tree.map(lambda x, r: x.astype(r.dtype), tree, reference)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def contract(
    combine: Combine, phi: PyTree, losses: jax.Array, tangents: jax.Array
) -> Hypergradient:
    """Returns minus the phi-gradient of the combined loss's derivative along p.

    The derivatives of the T losses along p are ``tangents``.
    """
    losses, tangents = _wide(losses), _wide(tangents)

    def along(phi: PyTree) -> jax.Array:
        return jax.jvp(partial(combine, phi), (losses,), (tangents,))[1]

    gradient = jax.tree.map(jnp.negative, jax.grad(along)(phi))
    return Hypergradient(gradient, losses, tangents)
