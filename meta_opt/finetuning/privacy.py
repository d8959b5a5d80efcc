"""Differentially private fine-tuning: clipped per-example gradients with noise.

DP-SGD (Abadi et al. 2016, arXiv:1607.00133), which suits large models that are
fine-tuned by adapters (Yu et al. 2021, arXiv:2110.06500). It bounds what a trained
model reveals about any single training example;
`meta_opt.finetuning.privacy_accounting` computes the bound.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.objective import Gradients, Objective
from meta_opt.meta_loss.settings import MetaLossConfig
from meta_opt.types import PyTree, check_name
from meta_opt.workloads.workload import LossFn, Workload

SAMPLING = ("shuffled", "poisson")
"""Assumptions about batches under which the noise for a target epsilon is computed."""


@dataclasses.dataclass(frozen=True)
class PrivacyConfig:
    """How much a run may reveal about any single training example.

    Attributes:
        clip_norm: each example's gradient is clipped to this global L2 norm over all
            trained parameters.
        noise_multiplier: standard deviation of the noise on the sum of a batch's
            clipped gradients, divided by ``clip_norm``; None to derive it from
            ``epsilon``.
        epsilon: target for the whole run with ``delta``; the least noise that reaches
            it is used. None if ``noise_multiplier`` is given.
        delta: delta of (epsilon, delta)-differential privacy; below 1 divided by the
            number of training examples.
        sampling: sampling assumption in the accounting of a target ``epsilon``:
            ``shuffled``, as runs draw batches, or ``poisson``, as most publications
            count.
    """

    clip_norm: float
    delta: float
    noise_multiplier: float | None = None
    epsilon: float | None = None
    sampling: str = "shuffled"

    def __post_init__(self) -> None:
        """Checks the ranges, and that the noise is specified exactly once."""
        check_name("privacy.sampling", self.sampling, SAMPLING)
        if not 0 < self.clip_norm < float("inf"):
            raise ValueError(
                f"privacy.clip_norm={self.clip_norm} must be positive and finite"
            )
        if not 0 < self.delta < 1:
            raise ValueError(f"privacy.delta={self.delta} must be between 0 and 1")
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise ValueError(
                f"privacy.noise_multiplier={self.noise_multiplier} and privacy.epsilon="
                f"{self.epsilon}: give one of them, and None for the other"
            )
        for name in ("noise_multiplier", "epsilon"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"privacy.{name}={value} must be positive and finite")


def check_private(
    workload: Workload, meta_loss: MetaLossConfig | None, loop: LoopConfig
) -> None:
    """Raises ValueError for a run that cannot be private.

    Args:
        workload: workload, whose loss must be a sum over examples.
        meta_loss: combination of losses; learned ones use data without noise.
        loop: settings of the loop; recovery and feedback use losses without noise.
    """
    if not workload.per_example:
        raise ValueError(
            f"privacy: the loss of {workload.name or 'this workload'} is not declared "
            "a sum over examples (Workload.per_example), as pairwise and contrastive "
            "ones are not: an example's gradient depends on the others, and clipping "
            "it bounds nothing; use a task such as captioning or classification"
        )
    if meta_loss is not None and meta_loss.combiner != "primary":
        raise ValueError(
            f"privacy: meta_loss.combiner={meta_loss.combiner!r} combines losses by "
            "gradients without noise; use 'primary', or no meta_loss"
        )
    if loop.recovery.enabled:
        raise ValueError(
            "privacy: loop.recovery.enabled=True changes the run by training losses "
            "without noise; set it to False"
        )


def private_loss(
    loss_fn: LossFn, clip_norm: float, noise_multiplier: float
) -> Objective:
    r"""Returns the objective whose gradient is that of DP-SGD.

    .. math::
      \frac1B \Big(\sum_b g_b \min(1, C / \|g_b\|) + \sigma C\, \xi\Big),
      \qquad \xi \sim N(0, I)

    with ``g_b`` the gradient of example b, 0 if it is not finite. It has the two parts
    of ``optax.contrib.differentially_private_aggregate`` separately, since that
    function would add noise to every micro-batch.

    Args:
        loss_fn: training loss, see `LossFn`; called with one example at a time.
        clip_norm: C, the clipping norm of per-example gradients.
        noise_multiplier: sigma; 0 for clipping without noise.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def gradient(
        objective: PyTree, params: PyTree, frozen: PyTree, batch: PyTree, rng: jax.Array
    ) -> Gradients:
        def of_example(example: PyTree, key: jax.Array) -> Any:
            alone = jax.tree.map(lambda x: jnp.asarray(x)[None], example)
            found, grads = grad_fn(params, frozen, alone, key)
            # Norms and sums in float32, whatever the parameters' dtype.
            grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
            # A gradient that is not finite would be visible through any noise.
            finite = jnp.isfinite(optax.tree.norm(grads))
            return found, jax.tree.map(lambda g: jnp.where(finite, g, 0), grads)

        size = jax.tree.leaves(batch)[0].shape[0]
        (losses, metrics), grads = jax.vmap(of_example)(
            batch, jax.random.split(rng, size)
        )
        leaves, structure = jax.tree.flatten(grads)
        sums, _ = optax.per_example_global_norm_clip(leaves, clip_norm)
        mean = jax.tree.unflatten(structure, [x / size for x in sums])
        metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
        return Gradients(jnp.mean(losses), metrics, (), mean)

    def privatise(grads: PyTree, key: jax.Array, batch_size: int) -> PyTree:
        scale = noise_multiplier * clip_norm / batch_size
        noise = optax.tree.random_like(key, grads, jax.random.normal)
        return jax.tree.map(lambda g, n: g + scale * n, grads, noise)

    return Objective(
        lambda key: (), gradient, lambda state, signals: state, privatise=privatise
    )
