"""Estimates the memory of a training step from its trace, without compiling it.

`meta_opt.finetuning.planning` compiles the step and is more exact.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
from jax.extend.core import Literal

from meta_opt.finetuning.jaxprs import inner_jaxprs
from meta_opt.types import PyTree
from meta_opt.workloads.workload import LossFn

_FUSED = frozenset(
    ("broadcast_in_dim", "iota", "reshape", "squeeze", "expand_dims", "copy")
)
"""Operations whose results compilers do not store."""


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Memory of a training step on one device, in bytes.

    Attributes:
        parameters: bytes of trained parameters.
        frozen: bytes of frozen parameters.
        gradients: bytes of the gradients.
        optimizer: bytes of the optimizer's state.
        activations: estimated bytes of everything else at the peak of loss and
            gradients.
    """

    parameters: int
    frozen: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(dataclasses.astuple(self))


def estimate_memory(
    params: PyTree,
    frozen: PyTree,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    batch: PyTree,
) -> MemoryEstimate:
    """Estimates the memory of a step by tracing its loss and gradients.

    Args:
        params: (abstract) arrays of the trained part.
        frozen: (abstract) arrays of the frozen part.
        loss_fn: training loss, see `LossFn`.
        tx: the optimizer.
        batch: (abstract) arrays [B, ...].

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"w": jnp.zeros((8, 4))}
        >>> def loss_fn(params, frozen, batch, rng):
        ...     return jnp.sum((batch @ params["w"]) ** 2), {}
        >>> found = estimate_memory(
        ...     params, {}, loss_fn, optax.sgd(0.1, 0.9), jnp.zeros((16, 8))
        ... )
        >>> found.parameters, found.gradients, found.optimizer
        (128, 128, 128)
    """
    rng = jax.eval_shape(lambda: jax.random.key(0))

    def gradients(params: PyTree, frozen: PyTree, batch: PyTree, rng: Any) -> PyTree:
        return jax.value_and_grad(loss_fn, has_aux=True)(params, frozen, batch, rng)

    traced = jax.make_jaxpr(gradients)(params, frozen, batch, rng)
    weights = _bytes(params)
    # The gradients are live at the end of the program.
    live = max(peak_live_bytes(traced.jaxpr) - weights, 0)
    return MemoryEstimate(
        parameters=weights,
        frozen=_bytes(frozen),
        gradients=weights,
        optimizer=_bytes(jax.eval_shape(tx.init, params)),
        activations=live + _bytes(batch),
    )


def peak_live_bytes(jaxpr: Any) -> int:
    """Returns the peak bytes of live results, in the order of the trace.

    Arguments are not counted. Compilers fuse and reorder operations, so a program may
    need less memory or, if parts of it overlap, more.

    Args:
        jaxpr: jaxpr of a function, see `jax.make_jaxpr`.
    """
    last: dict[Any, int] = {}
    for place, equation in enumerate(jaxpr.eqns):
        for variable in equation.invars:
            if not isinstance(variable, Literal):
                last[variable] = place
    for variable in jaxpr.outvars:
        if not isinstance(variable, Literal):
            last[variable] = len(jaxpr.eqns)
    sizes: dict[Any, int] = {}
    alive = peak = 0
    for place, equation in enumerate(jaxpr.eqns):
        stored = equation.primitive.name not in _FUSED
        made = {v: _size(v.aval) * stored for v in equation.outvars}
        inside = max(map(peak_live_bytes, inner_jaxprs(equation.params)), default=0)
        peak = max(peak, alive + max(inside, sum(made.values())))
        for variable, size in made.items():
            if variable in last:
                sizes[variable] = size
                alive += size
        for variable in {v for v in equation.invars if not isinstance(v, Literal)}:
            if last[variable] == place:
                alive -= sizes.pop(variable, 0)
    return peak


def _bytes(tree: PyTree) -> int:
    return sum(_size(x) for x in jax.tree.leaves(tree))


def _size(x: Any) -> int:
    if not hasattr(x, "shape") or jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return 0
    return int(np.prod(x.shape, dtype=np.int64)) * x.dtype.itemsize
