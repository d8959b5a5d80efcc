"""Adverse training conditions, such as NaN gradients or a wrong ``num_steps``.

A condition is a tuple of numbers that can be traced and vmapped, so that one compiled
program of an inner run serves all conditions. The default is an unperturbed run.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from meta_opt.tasks.task import Arrays
from meta_opt.types import PyTree

Number = float | jax.Array
_SPIKE = 1e6
_FIRST_CURVATURE = 1e-2
_CURVED = 0.1


class Moment(NamedTuple):
    """Position in a run.

    Attributes:
        step: number of completed steps, int32 [].
        num_steps: true length of the run, int32 [].
        key: random key of this step, the same for all optimizers.
    """

    step: jax.Array
    num_steps: jax.Array | int
    key: jax.Array

    @property
    def fraction(self) -> jax.Array:
        """Completed fraction of the run, float32 []."""
        return jnp.float32(self.step) / jnp.maximum(jnp.float32(self.num_steps), 1.0)


class Condition(NamedTuple):
    """Perturbations of a run; every field is a number or a float32 [] array.

    Attributes:
        length: length of the run as a multiple of an unperturbed run.
        horizon_factor: ``num_steps`` that the optimizer is given, as a multiple of the
            length of the run.
        broken: fraction of steps, drawn at random, whose loss and gradient are NaN.
        spikes: fraction of steps, drawn at random, whose loss and gradient are
            multiplied by 1e6.
        scale: factor on the loss, and so on the gradient.
        sparse: fraction of the rows of each gradient (elements of a vector) that are
            set to zero, drawn at random in each step.
        constant: 1 for a constant loss of 1 with zero gradient.
        curvature: if above 0, a term ``h / 2 |p - p0|^2`` over a random tenth of the
            parameters' rows is added to the loss. ``h`` grows exponentially from 0.01
            to this value; ``p0`` are the initial parameters, so that the initial loss
            is unchanged.
        change: fraction of the run, at its start, that trains on another problem:
            labels are shifted to the next class, and token ids to the next id. The run
            is evaluated on the unchanged data.
        coarse: 1 to round loss and gradient to bfloat16.
    """

    length: Number = 1.0
    horizon_factor: Number = 1.0
    broken: Number = 0.0
    spikes: Number = 0.0
    scale: Number = 1.0
    sparse: Number = 0.0
    constant: Number = 0.0
    curvature: Number = 0.0
    change: Number = 0.0
    coarse: Number = 0.0

    def horizon(self, num_steps: jax.Array | int) -> jax.Array:
        """Returns the ``num_steps`` that the optimizer is given, int32 []."""
        horizon = jnp.round(self.horizon_factor * jnp.float32(num_steps))
        return jnp.maximum(horizon, 1.0).astype(jnp.int32)

    def batch(self, batch: Arrays, classes: Arrays, moment: Moment) -> Arrays:
        """Returns the examples that a step is trained on.

        Args:
            batch: batch of the unperturbed task.
            classes: largest value of each integer array, from `largest`.
            moment: position in the run.
        """
        early = moment.fraction < self.change

        def other(name: str, x: jax.Array) -> jax.Array:
            if name not in classes:
                return x
            if x.ndim == 1:  # classes from 0
                return (x + 1) % (classes[name] + 1)
            # tokens; 0 is padding
            return jnp.where(x > 0, x % classes[name] + 1, 0)

        return {k: jnp.where(early, other(k, x), x) for k, x in batch.items()}

    def signal(
        self,
        start: PyTree,
        moment: Moment,
        value: jax.Array,
        grads: PyTree,
        params: PyTree,
    ) -> tuple[jax.Array, PyTree]:
        """Returns loss and gradient as they are passed to the optimizer.

        Args:
            start: initial parameters.
            moment: position in the run.
            value: loss of the task, float32 [].
            grads: gradient of the loss.
            params: parameters that loss and gradient were computed at.
        """
        rows_key, spike_key, broken_key = jax.random.split(moment.key, 3)
        value, grads = self._curve(value, grads, params, start, moment.fraction)
        value = jnp.where(self.constant > 0, 1.0, value) * self.scale
        spiked = jax.random.uniform(spike_key) < self.spikes
        factor = jnp.where(spiked, _SPIKE, 1.0)
        broken = jax.random.uniform(broken_key) < self.broken

        def disturbed(path: int, g: jax.Array) -> jax.Array:
            kept = uniform_rows(jax.random.fold_in(rows_key, path), g) >= self.sparse
            g = jnp.where(kept & (self.constant <= 0), g * self.scale, 0.0) * factor
            return jnp.where(broken, jnp.nan, _rounded(g, self.coarse))

        leaves: list[Any]
        treedef: Any
        leaves, treedef = jax.tree.flatten(grads)
        grads = treedef.unflatten([disturbed(i, g) for i, g in enumerate(leaves)])
        value = _rounded(value * factor, self.coarse)
        return jnp.where(broken, jnp.nan, value), grads

    def _curve(
        self,
        value: jax.Array,
        grads: PyTree,
        params: PyTree,
        start: PyTree,
        fraction: jax.Array,
    ) -> tuple[jax.Array, PyTree]:
        last = jnp.maximum(self.curvature, _FIRST_CURVATURE) / _FIRST_CURVATURE
        h = _FIRST_CURVATURE * jnp.exp(fraction * jnp.log(last))
        h = jnp.where(self.curvature > 0, h, 0.0)
        leaves: list[Any]
        treedef: Any
        leaves, treedef = jax.tree.flatten(grads)
        extra = jnp.float32(0.0)
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(start), strict=True)
        for i, (p, p0) in enumerate(pairs):
            # A fixed key selects the same rows in all steps.
            curved = uniform_rows(jax.random.fold_in(jax.random.key(0), i), p) < _CURVED
            away = jnp.where(curved & (h > 0), p - p0, 0.0)
            leaves[i] = leaves[i] + h * away
            extra = extra + 0.5 * h * jnp.sum(jnp.square(away))
        return value + extra, treedef.unflatten(leaves)


def largest(arrays: Arrays) -> Arrays:
    """Returns the largest value of each integer array; other arrays are left out."""
    return {
        name: jnp.max(x)
        for name, x in arrays.items()
        if jnp.issubdtype(x.dtype, jnp.integer)
    }


def uniform_rows(key: jax.Array, x: jax.Array) -> jax.Array:
    """Draws a uniform number for each row; shape [rows, 1, ...]."""
    return jax.random.uniform(key, (*x.shape[:1], *(1,) * (x.ndim - 1)))


def _rounded(x: jax.Array, coarse: Number) -> jax.Array:
    # Compilers may remove a cast to bfloat16 and back.
    rounded = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return jnp.where(jnp.asarray(coarse) > 0, rounded, x)


CONDITIONS: dict[str, Condition] = {
    "ordinary": Condition(),
    "NaN in 5% of steps": Condition(broken=0.05),
    "spikes in 3% of steps": Condition(spikes=0.03),
    "loss x 1e6": Condition(scale=1e6),
    "loss x 1e-6": Condition(scale=1e-6),
    "sparse gradients": Condition(sparse=0.95),
    "constant loss": Condition(constant=1.0),
    "exploding curvature": Condition(curvature=1e6),
    "change of the data": Condition(change=0.5),
    "bfloat16 gradients": Condition(coarse=1.0),
    "10 x longer": Condition(length=10.0),
    "num_steps 3 x too long": Condition(horizon_factor=3.0),
    "num_steps 3 x too short": Condition(horizon_factor=1 / 3),
}
"""Conditions by name; the first one is unperturbed, for comparison."""
