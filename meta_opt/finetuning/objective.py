"""The objective of a training step: one loss, or a combination of several.

All combinations share one interface and one training step: the primary loss alone,
fixed weights, learned weights (MELTR, uncertainty, GradNorm), and combined gradients
(PCGrad).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from meta_opt.losses.balancing import gradnorm_loss, gradnorm_weights, pcgrad
from meta_opt.meta_loss.balancers import COMBINERS, Combiner
from meta_opt.meta_loss.masking import present_losses, zero_absent
from meta_opt.meta_loss.settings import MetaLossConfig
from meta_opt.types import PyTree
from meta_opt.workloads.workload import LossesFn, LossFn, Workload


class Gradients(NamedTuple):
    """Loss, metrics and gradient of a batch.

    Attributes:
        loss: the differentiated loss, [].
        metrics: scalars for the log.
        signals: pytree that `Objective.update` and `Objective.modulate` read; averaged
            over micro-batches.
        grads: gradients, a pytree like the parameters.
    """

    loss: jax.Array
    metrics: dict[str, jax.Array]
    signals: PyTree
    grads: PyTree


class GradientFn(Protocol):
    """The gradient of a batch."""

    def __call__(
        self,
        objective: PyTree,
        params: PyTree,
        frozen: PyTree,
        batch: PyTree,
        rng: jax.Array,
    ) -> Gradients:
        """Returns loss, metrics and gradients; ``objective`` is the objective's state.

        ``rng`` differs for every step and micro-batch.
        """


class Objective(NamedTuple):
    """A loss, or a combination of several.

    Attributes:
        init: function from a key to the objective's state, a pytree of arrays.
        gradient: computes loss and gradient, see `GradientFn`.
        update: ``(state, signals) -> state``, called after each step.
        combiner: combiner of a learned combination, with parameters ``state["phi"]``.
        privatise: ``(gradient, key, B) -> gradient``, called once per step on the mean
            over micro-batches; the optimizer then gets no loss, because it has no
            noise.
        modulate: ``(gradient, signals, key) -> (gradient, metrics)``, called once per
            step on the means over micro-batches.
    """

    init: Callable[[jax.Array], PyTree]
    gradient: GradientFn
    update: Callable[[PyTree, PyTree], PyTree]
    combiner: Combiner | None = None
    privatise: Callable[[PyTree, jax.Array, int], PyTree] | None = None
    modulate: (
        Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, dict[str, jax.Array]]]
        | None
    ) = None


def single_loss(loss_fn: LossFn) -> Objective:
    """Returns the objective of a workload with one loss."""
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def gradient(
        objective: PyTree, params: PyTree, frozen: PyTree, batch: PyTree, rng: jax.Array
    ) -> Gradients:
        (loss, metrics), grads = grad_fn(params, frozen, batch, rng)
        return Gradients(loss, metrics, (), grads)

    return Objective(lambda key: (), gradient, lambda state, signals: state)


def make_objective(workload: Workload, config: MetaLossConfig | None) -> Objective:
    """Returns the objective of a run.

    Args:
        workload: workload with the ``losses`` to combine.
        config: how losses are combined; None for the workload's own loss.

    Raises:
        ValueError: the workload lacks the several losses or the meta-validation data
            that the combination requires, or weights do not match the losses.
    """
    if config is None:
        return single_loss(workload.loss_fn)
    losses = workload.losses
    if losses is None:
        raise ValueError(
            f"meta_loss.combiner={config.combiner!r}: this workload has a single loss, "
            "so there is nothing to combine; leave meta_loss out"
        )
    if len(set(losses.names)) < len(losses.names):
        raise ValueError(
            f"two losses have one name, among {', '.join(losses.names)}; each needs "
            "its own, for its weight and the logs"
        )
    if losses.primary not in losses.names:
        raise ValueError(
            f"the primary loss {losses.primary!r} is not among the losses: "
            f"{', '.join(losses.names)}"
        )
    if config.weights is not None and config.combiner not in COMBINERS:
        raise ValueError(
            f"meta_loss.combiner={config.combiner!r} has no weights to set: leave "
            "meta_loss.weights out"
        )
    if config.combiner == "primary":
        return _primary(workload.loss_fn, losses.primary)
    if config.combiner == "gradnorm":
        return _gradnorm(losses.fn, losses.names, config)
    if config.combiner == "pcgrad":
        return _pcgrad(losses.fn, losses.names)
    combiner = config.make_combiner(len(losses.names))
    if combiner.training == "meta" and workload.meta_batches is None:
        raise ValueError(
            f"meta_loss.combiner={config.combiner!r} learns from meta-validation data, "
            "which this workload does not hold out"
        )
    return _combined(losses.fn, losses.names, combiner, config)


def loss_metrics(names: Sequence[str], losses: jax.Array) -> dict[str, jax.Array]:
    """Returns each loss by name, and the number of losses that are not finite."""
    masked = jnp.sum(~present_losses(losses)).astype(jnp.float32)
    each = {f"loss/{name}": losses[i] for i, name in enumerate(names)}
    return {**each, "masked_losses": masked}


def _primary(loss_fn: LossFn, name: str) -> Objective:
    """Returns the workload's own loss, without computing the other losses."""

    def named(
        params: PyTree, frozen: PyTree, batch: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss, metrics = loss_fn(params, frozen, batch, rng)
        return loss, {**metrics, f"loss/{name}": loss}

    return single_loss(named)


def _combined(
    fn: LossesFn, names: Sequence[str], combiner: Combiner, config: MetaLossConfig
) -> Objective:
    joint = combiner.training == "joint"
    optimizer = config.make_meta_optimizer()

    def init(key: jax.Array) -> PyTree:
        phi = combiner.init(key)
        state = {"phi": phi}
        if combiner.training != "none":
            state["opt_state"] = optimizer.init(phi)
        return state

    def gradient(
        objective: PyTree, params: PyTree, frozen: PyTree, batch: PyTree, rng: jax.Array
    ) -> Gradients:
        dropout_key, rng = jax.random.split(rng)

        def combine(
            params: PyTree, phi: PyTree
        ) -> tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]:
            losses, metrics = fn(params, frozen, batch, rng)
            return combiner.apply(phi, losses, dropout_key=dropout_key), (
                losses,
                metrics,
            )

        grad_fn = jax.value_and_grad(
            combine, argnums=(0, 1) if joint else 0, has_aux=True
        )
        (loss, (losses, metrics)), grads = grad_fn(params, objective["phi"])
        grads, signals = grads if joint else (grads, ())
        grads = _without_masked(grads, losses)
        return Gradients(
            loss, {**metrics, **loss_metrics(names, losses)}, signals, grads
        )

    def update(state: PyTree, signals: PyTree) -> PyTree:
        if not joint:
            return state
        updates, opt_state = optimizer.update(signals, state["opt_state"], state["phi"])
        phi = optax.apply_updates(state["phi"], updates)
        return {"phi": phi, "opt_state": opt_state}

    return Objective(init, gradient, update, combiner)


def _gradnorm(fn: LossesFn, names: Sequence[str], config: MetaLossConfig) -> Objective:
    """GradNorm over all trained parameters; the meta-optimizer updates weights.

    The paper's norms are those of the gradients of a step, so they are taken of the
    means over micro-batches; the mean of the micro-batches' norms would be larger by
    their noise.
    """
    optimizer = config.make_meta_optimizer()

    def init(key: jax.Array) -> PyTree:
        weights = jnp.ones(len(names))
        # NaN, because the losses of the first step are not known yet.
        first = jnp.full(len(names), jnp.nan)
        return {"phi": weights, "opt_state": optimizer.init(weights), "first": first}

    def gradient(
        objective: PyTree, params: PyTree, frozen: PyTree, batch: PyTree, rng: jax.Array
    ) -> Gradients:
        losses, metrics, each = _each_gradient(fn, params, frozen, batch, rng)
        weights = objective["phi"]
        grads = jax.tree.map(
            lambda g: jnp.tensordot(weights.astype(g.dtype), g, 1), each
        )
        safe = zero_absent(losses, present_losses(losses))
        return Gradients(
            jnp.sum(weights * safe),
            {**metrics, **loss_metrics(names, losses)},
            {"losses": losses, "gradients": each},
            grads,
        )

    def update(state: PyTree, signals: PyTree) -> PyTree:
        losses, norms = signals["losses"], _norms(signals["gradients"])
        first = jnp.where(jnp.isfinite(state["first"]), state["first"], losses)
        # A finite loss may have a gradient that is not, which must not reach phi.
        usable = present_losses(losses) & jnp.isfinite(norms)
        grads = jax.grad(gradnorm_loss)(
            state["phi"], norms, losses, first, present=usable
        )
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["phi"])
        phi = gradnorm_weights(optax.apply_updates(state["phi"], updates))
        return {"phi": phi, "opt_state": opt_state, "first": first}

    return Objective(init, gradient, update)


def _norms(gradients: PyTree) -> jax.Array:
    """Returns the L2 norms of T gradients with leaves [T, ...], float32 [T]."""
    squares = (
        jnp.sum(jnp.square(g.astype(jnp.float32)), range(1, g.ndim))
        for g in jax.tree.leaves(gradients)
    )
    return jnp.sqrt(sum(squares))


def _pcgrad(fn: LossesFn, names: Sequence[str]) -> Objective:
    """PCGrad of the losses' gradients, which are means over micro-batches.

    A loss counts as present if any micro-batch has it.
    """

    def gradient(
        objective: PyTree, params: PyTree, frozen: PyTree, batch: PyTree, rng: jax.Array
    ) -> Gradients:
        losses, metrics, each = _each_gradient(fn, params, frozen, batch, rng)
        present = present_losses(losses)
        shown = {**metrics, **loss_metrics(names, losses)}
        count = jnp.maximum(jnp.sum(present), 1)
        loss = jnp.sum(zero_absent(losses, present)) / count
        signals = {"gradients": each, "present": present.astype(jnp.float32)}
        # `modulate` replaces this gradient.
        return Gradients(loss, shown, signals, jax.tree.map(lambda g: g[0], each))

    def modulate(
        grads: PyTree, signals: PyTree, key: jax.Array
    ) -> tuple[PyTree, dict[str, jax.Array]]:
        return pcgrad(signals["gradients"], key, signals["present"] > 0)[0], {}

    return Objective(
        lambda key: (), gradient, lambda state, signals: state, modulate=modulate
    )


def _each_gradient(
    fn: LossesFn, params: PyTree, frozen: PyTree, batch: PyTree, rng: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array], PyTree]:
    """Returns losses [T], metrics, and the gradients of each loss, [T, ...].

    One forward and T sequential backward passes, in the memory of a single one.
    """

    def losses_fn(params: PyTree) -> tuple[jax.Array, dict[str, jax.Array]]:
        return fn(params, frozen, batch, rng)

    losses, pull_back, metrics = jax.vjp(losses_fn, params, has_aux=True)
    ones = jnp.eye(len(losses), dtype=losses.dtype)
    (each,) = jax.lax.map(pull_back, ones)
    present = present_losses(losses)

    def mask(g: jax.Array) -> jax.Array:
        return jnp.where(present.reshape(-1, *(1,) * (g.ndim - 1)), g, 0)

    return losses, metrics, jax.tree.map(mask, _without_masked(each, losses))


def _without_masked(grads: PyTree, losses: jax.Array) -> PyTree:
    """Zeroes gradients that a masked loss has made not finite.

    Needed because the combiner gives such a loss weight 0, and 0 times NaN is NaN.
    """
    left_out = ~jnp.all(present_losses(losses))
    return jax.tree.map(
        lambda g: jnp.where(left_out & ~jnp.isfinite(g), jnp.zeros_like(g), g), grads
    )
