"""Adverse conditions: what can go wrong between a task and its optimizer.

A condition is a handful of numbers, so it can be traced and vmapped, and one compiled
program of an inner run serves all of them. The default is an ordinary run.
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
    """Where a run is.

    Attributes:
        step: int32 [], steps done.
        num_steps: int32 [], the run's true length.
        key: random key of this step, of the same run under any optimizer.
    """

    step: jax.Array
    num_steps: jax.Array | int
    key: jax.Array

    @property
    def fraction(self) -> jax.Array:
        """Share of the run that is done, float32 []."""
        return jnp.float32(self.step) / jnp.maximum(jnp.float32(self.num_steps), 1.0)


class Condition(NamedTuple):
    """How a run is disturbed; every field is a number or a float32 [] array.

    Attributes:
        length: steps of the run over those of an ordinary one.
        horizon_factor: ``num_steps`` of the optimizer over the steps of the run.
        broken: share of steps, at random, whose loss and gradient are NaN.
        spikes: share of steps, at random, whose loss and gradient are 1e6 times as
            large.
        scale: factor on the loss, and so on its gradient.
        sparse: share of the rows of each gradient (of its numbers if it is a vector)
            that are zero, at random in each step.
        constant: 1: the loss is 1 whatever the parameters are, its gradient is zero.
        curvature: where above 0, a term ``h / 2 |p - p0|^2`` over a random tenth of the
            parameters' rows is added to the loss. ``h`` grows exponentially from 0.01
            to this number; ``p0`` are the initial parameters, so the loss at the start
            is the task's own.
        change: share of the run that is trained on another problem: labels are moved
            to the next class, and tokens to the next in the alphabet. After it the data
            are the task's own, which the run is evaluated on.
        coarse: 1: loss and gradient are rounded to bfloat16.
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
        """``num_steps`` of the optimizer, int32 []."""
        horizon = jnp.round(self.horizon_factor * jnp.float32(num_steps))
        return jnp.maximum(horizon, 1.0).astype(jnp.int32)

    def batch(self, batch: Arrays, classes: Arrays, moment: Moment) -> Arrays:
        """The examples that a step is trained on.

        Args:
            batch: the task's own.
            classes: largest value of each whole-number array, from `largest`.
            moment: where the run is.
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
        """Loss and gradient as they are given to the optimizer.

        Args:
            start: initial parameters.
            moment: where the run is.
            value: float32 [], the task's loss.
            grads: gradient of the loss.
            params: parameters that both are of.
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
            # The same rows in all steps.
            curved = uniform_rows(jax.random.fold_in(jax.random.key(0), i), p) < _CURVED
            away = jnp.where(curved & (h > 0), p - p0, 0.0)
            leaves[i] = leaves[i] + h * away
            extra = extra + 0.5 * h * jnp.sum(jnp.square(away))
        return value + extra, treedef.unflatten(leaves)


def largest(arrays: Arrays) -> Arrays:
    """The largest value of each whole-number array; others are left out."""
    return {
        name: jnp.max(x)
        for name, x in arrays.items()
        if jnp.issubdtype(x.dtype, jnp.integer)
    }


def uniform_rows(key: jax.Array, x: jax.Array) -> jax.Array:
    """A uniform number for each row, in the shape [rows, 1, ...]."""
    return jax.random.uniform(key, (*x.shape[:1], *(1,) * (x.ndim - 1)))


def _rounded(x: jax.Array, coarse: Number) -> jax.Array:
    # A cast there and back is one that compilers may leave out.
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
"""Conditions by name, the ordinary one first, for comparison."""
