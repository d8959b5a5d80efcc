"""All combiners of losses by name, with a common interface."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.losses.balancing import uncertainty_weighting
from meta_opt.meta_loss.combiner import (
    CombinerConfig,
    check_losses,
    combine,
    init_combiner,
)
from meta_opt.meta_loss.masking import present_losses, zero_absent
from meta_opt.types import PyTree, check_name

Training = Literal["meta", "joint", "none"]
"""How a combiner's parameters are trained: by hypergradients, with the model on the
combined loss itself, or not at all."""


class Apply(Protocol):
    """Combines losses to a scalar; see `meta_opt.meta_loss.combiner.combine`."""

    def __call__(
        self,
        phi: PyTree,
        losses: jax.Array,
        *,
        mask: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the combined loss, a scalar, of ``losses`` [T]."""
        ...


class Combiner(NamedTuple):
    """A combiner of losses.

    Every combiner leaves out losses that are not finite or masked; their derivative is
    0.

    Attributes:
        init: function from a key to phi, which is an empty dict if nothing is trained.
        apply: pure function, see `Apply`.
        training: how phi is trained.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Apply
    training: Training


COMBINERS = ("meltr", "linear", "uncertainty", "equal", "fixed")
"""Names for `make_combiner`."""


def make_combiner(
    name: str, config: CombinerConfig, weights: Sequence[float] | None = None
) -> Combiner:
    r"""Returns the combiner of a name.

    - ``meltr``: the transformer (`meta_opt.meta_loss.combiner`).
    - ``linear``: :math:`\sum_t \phi_t l_t` with :math:`\phi` initialised to ``weights``
      and trained by hypergradients, as a baseline for the transformer.
    - ``uncertainty``: :math:`\frac12 \sum_t e^{-s_t} l_t + s_t` with s trained with the
      model (`meta_opt.losses.balancing.uncertainty_weighting`).
    - ``equal``: the mean.
    - ``fixed``: :math:`\sum_t a_t l_t` with constant ``weights`` a.

    Args:
        name: one of `COMBINERS`.
        config: configuration of the network; other combiners only read ``num_losses``.
        weights: weights [T] of ``linear`` and ``fixed``; None for ones.

    Raises:
        ValueError: the name is unknown, the number of ``weights`` is not T, or the
            combiner has no weights.

    >>> combiner = make_combiner("fixed", CombinerConfig(num_losses=2), [1.0, 0.5])
    >>> phi = combiner.init(jax.random.key(0))
    >>> float(combiner.apply(phi, jnp.array([1.0, 4.0])))
    3.0
    >>> float(combiner.apply(phi, jnp.array([1.0, jnp.nan])))
    1.0
    """
    check_name("combiner", name, COMBINERS)
    count = config.num_losses
    if weights is not None and name not in ("linear", "fixed"):
        raise ValueError(f"combiner={name!r} has no weights to set")
    if weights is not None and len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} losses; give one each")
    constants = np.asarray((1.0,) * count if weights is None else weights, np.float32)

    def linear(phi: PyTree, losses: jax.Array, present: jax.Array) -> jax.Array:
        return jnp.sum(phi["weights"] * losses)

    def fixed(phi: PyTree, losses: jax.Array, present: jax.Array) -> jax.Array:
        return jnp.sum(constants * losses)

    def equal(phi: PyTree, losses: jax.Array, present: jax.Array) -> jax.Array:
        return jnp.sum(losses) / jnp.maximum(jnp.sum(present), 1)

    def uncertainty(phi: PyTree, losses: jax.Array, present: jax.Array) -> jax.Array:
        log_variances = jnp.where(present, phi["log_variances"], 0)
        return uncertainty_weighting(losses, log_variances)

    by_name: dict[str, Callable[[], Combiner]] = {
        "meltr": lambda: Combiner(
            partial(init_combiner, config), partial(combine, config), "meta"
        ),
        "linear": lambda: Combiner(
            lambda key: {"weights": jnp.asarray(constants)},
            _of_present(count, linear),
            "meta",
        ),
        "uncertainty": lambda: Combiner(
            lambda key: {"log_variances": jnp.zeros(count)},
            _of_present(count, uncertainty),
            "joint",
        ),
        "equal": lambda: Combiner(lambda key: {}, _of_present(count, equal), "none"),
        "fixed": lambda: Combiner(lambda key: {}, _of_present(count, fixed), "none"),
    }
    return by_name[name]()


def _of_present(
    count: int, rule: Callable[[PyTree, jax.Array, jax.Array], jax.Array]
) -> Apply:
    """Makes a combiner of ``rule(phi, losses, present)``; absent losses are 0."""

    def apply(
        phi: PyTree,
        losses: jax.Array,
        *,
        mask: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        del dropout_key  # These combiners have no dropout.
        check_losses(losses, count)
        present = present_losses(losses, mask)
        return rule(phi, zero_absent(losses, present), present)

    return apply
