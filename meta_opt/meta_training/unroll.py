"""One inner run: trains a task from start to end with given controller weights."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.optimizers.transformation import learned_transformation
from meta_opt.tasks.inner_step import inner_step
from meta_opt.tasks.perturbations import uniform_rows
from meta_opt.tasks.task import Arrays, Task, count_of, rows_of
from meta_opt.types import PyTree

_MAX_NORM = 10.0
"""Bound on the norm of the derivative of a log loss with respect to the parameters."""
_MAX_SPARSITY = 0.95
"""Largest fraction of gradient rows that `Augmentation.sparse` sets to zero."""


class Outcome(NamedTuple):
    """Loss and error rate on the test examples after a run; float32 []."""

    loss: jax.Array
    error: jax.Array


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of a task, drawn for each run; the default is none.

    Attributes:
        reparametrisation: r; parameters are trained as ``p / c`` with c log-uniform in
            [1 / r, r], so that the controller does not rely on one scale. 1 for none.
        subset: smallest fraction of the training examples that is used; log-uniform
            between this and 1 in half of the runs, else 1. Few examples train the
            controller for overfitting. 1 for none.
        batch: smallest batch size as a fraction of the task's; log-uniform between this
            and 1 in half of the runs, else 1. The shape of batches stays: examples are
            repeated. 1 for none.
        label_noise: largest fraction of training labels that is permuted among
            examples, in a quarter of the runs.
        low_precision: fraction of runs whose gradients are rounded to bfloat16.
        sparse: fraction of runs with sparse gradients: up to 95% (uniform) of the rows
            of each gradient are zero, drawn in each step.
    """

    reparametrisation: float = 1.0
    subset: float = 1.0
    batch: float = 1.0
    label_noise: float = 0.0
    low_precision: float = 0.0
    sparse: float = 0.0

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.reparametrisation < 1:
            raise ValueError(
                f"reparametrisation={self.reparametrisation} must be at least 1"
            )
        for name in ("subset", "batch"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in (0, 1]")
        for name in ("label_noise", "low_precision", "sparse"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1]")


class _Draw(NamedTuple):
    """Random draws of the augmentation of one run."""

    scale: jax.Array
    size: jax.Array
    batch: jax.Array
    train: Arrays
    round_grads: jax.Array
    zero_rows: jax.Array


def _augment(augmentation: Augmentation, task: Task, key: jax.Array) -> _Draw:
    keys = jax.random.split(key, 6)
    scale_key, subset_key, batch_key, noise_key, low_key, sparse_key = keys
    train = task.splits.train
    examples = count_of(train)

    def log_uniform(key: jax.Array, low: float, high: float) -> jax.Array:
        ends = jnp.log(low), jnp.log(high)
        return jnp.exp(jax.random.uniform(key, (), minval=ends[0], maxval=ends[1]))

    spread = augmentation.reparametrisation
    scale = log_uniform(scale_key, 1 / spread, spread)

    def reduced(key: jax.Array, whole: int, least: float, floor: int) -> jax.Array:
        share_key, whether_key = jax.random.split(key)
        share = log_uniform(share_key, least, 1.0)
        share = jnp.where(jax.random.bernoulli(whether_key), share, 1.0)
        return jnp.clip(share * whole, min(floor, whole), whole).astype(jnp.int32)

    size = reduced(subset_key, examples, augmentation.subset, task.batch_size)
    batch = reduced(batch_key, task.batch_size, augmentation.batch, 1)
    if augmentation.label_noise and "label" in train:
        rate_key, pick_key, swap_key = jax.random.split(noise_key, 3)
        rate = augmentation.label_noise * jnp.maximum(
            4.0 * jax.random.uniform(rate_key) - 3.0, 0.0
        )
        swapped = jax.random.uniform(pick_key, (examples,)) < rate
        others = jax.random.permutation(swap_key, train["label"])
        train = {**train, "label": jnp.where(swapped, others, train["label"])}
    low = jax.random.bernoulli(low_key, augmentation.low_precision)
    share_key, whether_key = jax.random.split(sparse_key)
    sparse = jax.random.bernoulli(whether_key, augmentation.sparse)
    zero = jnp.where(sparse, _MAX_SPARSITY * jax.random.uniform(share_key), 0.0)
    return _Draw(scale, size, batch, train, low, zero)


def _clip_derivative(carry: tuple) -> tuple:
    """Returns the carry; clips its derivative in the backward pass.

    The normalised update of a tiny gradient is chaotic: derivatives through many such
    steps overflow. If the norm of the derivative with respect to the parameters exceeds
    `_MAX_NORM`, all derivatives are scaled down by the same factor.
    """
    leaves: list[Any]
    treedef: Any
    leaves, treedef = jax.tree.flatten(carry)
    moving = [i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]
    params = len(jax.tree.leaves(carry[0]))
    clipped = _clip_leaves(params, [leaves[i] for i in moving])
    for i, x in zip(moving, clipped, strict=True):
        leaves[i] = x
    return treedef.unflatten(leaves)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _clip_leaves(params: int, leaves: list[jax.Array]) -> list[jax.Array]:
    del params
    return leaves


def _clip_forward(params: int, leaves: list[jax.Array]) -> tuple:
    del params
    return leaves, None


def _clip_backward(params: int, _: None, cotangents: list[jax.Array]) -> tuple:
    norm = optax.tree.norm(cotangents[:params])
    factor = jnp.where(
        jnp.isfinite(norm), _MAX_NORM / jnp.maximum(norm, _MAX_NORM), 0.0
    )
    return (
        [
            jnp.where(jnp.isfinite(x), x * factor.astype(x.dtype), jnp.zeros_like(x))
            for x in cotangents
        ],
    )


_clip_leaves.defvjp(_clip_forward, _clip_backward)


class Unroll:
    """One inner run with an optimizer.

    All randomness comes from ``key``, so that a run can be cut into windows and resumed
    from parameters and optimizer state alone.

    Args:
        task: the task.
        tx: the optimizer.
        key: random key of initialisation, batches and augmentation.
        augmentation: random changes of the task.
    """

    def __init__(
        self,
        task: Task,
        tx: optax.GradientTransformationExtraArgs,
        key: jax.Array,
        augmentation: Augmentation,
    ) -> None:
        self._init_key, self._batch_key, augment_key = jax.random.split(key, 3)
        self._task = task
        self._augmentation = augmentation
        self._drawn = _augment(augmentation, task, augment_key)
        self._tx = tx

    def start(self) -> tuple[PyTree, optax.OptState]:
        """Returns parameters and optimizer state before the first step."""
        scale = self._drawn.scale
        params = jax.tree.map(lambda p: p / scale, self._task.init(self._init_key))
        return params, self._tx.init(params)

    def step(self, t: jax.Array, carry: tuple) -> tuple[PyTree, optax.OptState]:
        """Returns parameters and optimizer state after step ``t``."""
        task, drawn = self._task, self._drawn
        picks = jax.random.randint(
            jax.random.fold_in(self._batch_key, t), (task.batch_size,), 0, drawn.size
        )
        # A smaller batch is repeated, so that the shape is constant.
        picks = picks[jnp.arange(task.batch_size) % drawn.batch]
        batch = rows_of(drawn.train, picks)
        loss_key = jax.random.fold_in(jax.random.fold_in(self._batch_key, t), 2)
        perturb = functools.partial(self._perturb, t)
        return inner_step(
            task, self._tx, t, carry, batch, loss_key, drawn.scale, perturb
        )

    def _perturb(
        self, t: jax.Array, value: jax.Array, grads: PyTree, params: PyTree
    ) -> tuple[jax.Array, PyTree]:
        drawn = self._drawn
        if self._augmentation.low_precision > 0:
            grads = jax.tree.map(
                lambda g: jnp.where(
                    drawn.round_grads, g.astype(jnp.bfloat16).astype(g.dtype), g
                ),
                grads,
            )
        if self._augmentation.sparse > 0:
            key = jax.random.fold_in(jax.random.fold_in(self._batch_key, t), 1)
            leaves: list[Any]
            treedef: Any
            leaves, treedef = jax.tree.flatten(grads)
            keys = jax.random.split(key, len(leaves))
            grads = treedef.unflatten(
                [
                    jnp.where(uniform_rows(k, g) >= drawn.zero_rows, g, 0.0)
                    for k, g in zip(keys, leaves, strict=True)
                ]
            )
        return value, grads

    def run(
        self, carry: tuple, first: jax.Array | int, last: jax.Array | int, longest: int
    ) -> tuple[PyTree, optax.OptState]:
        """Returns the state after steps ``first`` to ``last`` (exclusive).

        Args:
            carry: parameters and optimizer state before step ``first``.
            first: index of the first step; may be traced.
            last: index after the last step; may be traced.
            longest: 0 for a loop without reverse-mode derivative; otherwise the largest
                number of steps, each of which is rematerialised in the backward pass.
        """
        if not longest:
            return jax.lax.fori_loop(first, last, self.step, carry)

        # The checkpoint encloses the branch; otherwise the branch would save the whole
        # data set for every step.
        def scanned(carry: tuple, i: jax.Array) -> tuple:
            t = first + i
            now = jax.lax.cond(
                t < last, self.step, lambda t, c: c, t, _clip_derivative(carry)
            )
            return now, None

        body = jax.checkpoint(scanned, prevent_cse=False)
        return jax.lax.scan(body, carry, jnp.arange(longest))[0]

    def evaluate(self, carry: tuple) -> Outcome:
        """Returns loss and error rate on the task's test examples."""
        scaled = jax.tree.map(lambda p: p * self._drawn.scale, carry[0])
        return Outcome(*self._task.loss(scaled, self._task.splits.test))


def unroll_with(
    task: Task,
    tx: optax.GradientTransformationExtraArgs,
    key: jax.Array,
    num_steps: jax.Array | int,
    augmentation: Augmentation = Augmentation(),
    differentiable_steps: int = 0,
) -> Outcome:
    """As `unroll`, with any optimizer, which must be built for ``num_steps``."""
    run = Unroll(task, tx, key, augmentation)
    return run.evaluate(run.run(run.start(), 0, num_steps, differentiable_steps))


def unroll(
    task: Task,
    theta: PyTree,
    config: ControllerConfig,
    key: jax.Array,
    num_steps: jax.Array | int,
    augmentation: Augmentation = Augmentation(),
    differentiable_steps: int = 0,
    safeguard: bool = True,
) -> Outcome:
    """Trains ``task`` once and evaluates the result on its test examples.

    Pure: vmap over ``theta`` for a population, over ``key`` for seeds. Initial
    parameters and batches depend on ``key`` only, not on ``theta``.

    Args:
        task: the task.
        theta: controller weights.
        config: architecture of the controller.
        key: random key of initialisation, batches and augmentation.
        num_steps: length of the run; may be traced, so that one program serves all
            lengths.
        augmentation: random changes of the task.
        differentiable_steps: 0 for a loop without reverse-mode derivative; otherwise
            the largest ``num_steps``. Every step is rematerialised in the backward
            pass, so that only parameters and optimizer state of each step are stored.
        safeguard: whether the optimizer's safeguard is enabled.

    Returns:
        Loss and error rate on the test examples; not finite if the run diverged.
    """
    tx = learned_transformation(
        num_steps,
        theta=theta,
        config=config,
        stacked=task.stacked,
        safeguard=safeguard,
    )
    run = Unroll(task, tx, key, augmentation)
    return run.evaluate(run.run(run.start(), 0, num_steps, differentiable_steps))
