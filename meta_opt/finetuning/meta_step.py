"""Training of what combines the losses: a second program, every few steps.

Apart from the step's, so that the memory of the two does not add up. Its batches are
held out of training and of all evaluation.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from meta_opt.finetuning.objective import Objective
from meta_opt.finetuning.state import TrainState
from meta_opt.meta_loss.hypergradients import HypergradientFn, make_hypergradient
from meta_opt.meta_loss.meta_gradient import meta_gradient
from meta_opt.meta_loss.preconditioners import update_preconditioner
from meta_opt.meta_loss.settings import MetaLossConfig
from meta_opt.parallel.mesh import place_batch, replicated
from meta_opt.types import PyTree
from meta_opt.workloads.workload import Batches, Losses

MetaProgram = Callable[..., tuple[PyTree, dict[str, jax.Array]]]
"""``(state, first batch, second batch) -> (objective's state, metrics)``."""


def make_meta_step(
    losses: Losses,
    objective: Objective,
    config: MetaLossConfig,
    tx: optax.GradientTransformation,
) -> MetaProgram:
    """Builds the meta-step (Ko et al. 2023, arXiv:2303.13009, algorithm 1).

    Args:
        losses: of the workload.
        objective: whose combiner is trained.
        config: how.
        tx: the optimizer of the model, whose adaptation ``sama`` reads.

    Returns:
        A pure function. Its metrics: ``primary`` (the primary loss on the first batch),
        ``grad_norm`` of the hypergradient, ``masked`` losses, ``skipped`` (1 where
        something was not finite and nothing was changed), and for each loss ``weight/``
        (its weight in the model's gradient) and ``alignment/`` (the derivative of the
        loss along the direction that the primary one falls in; positive: it helps).
    """
    combiner = objective.combiner
    assert combiner is not None
    optimizer = config.make_meta_optimizer()
    primary = losses.names.index(losses.primary)
    adapts = config.hypergradient.kind == "sama"
    plain = None if adapts else make_hypergradient(config.hypergradient)

    def meta_step(
        state: TrainState, first: PyTree, second: PyTree
    ) -> tuple[PyTree, dict[str, jax.Array]]:
        rng = jax.random.fold_in(state.rng, state.step)
        rng, dropout_key = jax.random.split(jax.random.fold_in(rng, 1))

        def losses_fn(params: PyTree, batch: PyTree) -> jax.Array:
            return losses.fn(params, state.frozen, batch, rng)[0]

        # One key: direction and hypergradient see the same network.
        combine = functools.partial(combiner.apply, dropout_key=dropout_key)
        phi = state.objective["phi"]

        def adapted() -> HypergradientFn:
            def combined(params: PyTree) -> jax.Array:
                return combine(phi, losses_fn(params, second))

            value, grads = jax.value_and_grad(combined)(state.params)
            adapt = update_preconditioner(
                tx, state.opt_state, grads, state.params, value=value
            )
            return make_hypergradient(config.hypergradient, adapt)

        gradient, seen = meta_gradient(
            losses_fn,
            combine,
            phi,
            state.params,
            (first, second),
            primary=primary,
            gamma=config.gamma,
            hypergradient=plain or adapted(),
            direct_term=config.direct_term,
        )
        opt_state = state.objective["opt_state"]
        updates, new_opt_state = optimizer.update(gradient, opt_state, phi)
        new = {"phi": optax.apply_updates(phi, updates), "opt_state": new_opt_state}
        old = {"phi": phi, "opt_state": opt_state}
        new = jax.tree.map(lambda a, b: jnp.where(seen.finite, a, b), new, old)
        return new, {
            "primary": seen.primary,
            "grad_norm": seen.gradient_norm,
            "masked": jnp.sum(seen.masked).astype(jnp.float32),
            "skipped": 1.0 - seen.finite,
            **{f"weight/{n}": seen.weights[i] for i, n in enumerate(losses.names)},
            **{f"alignment/{n}": seen.tangents[i] for i, n in enumerate(losses.names)},
        }

    return meta_step


class MetaSteps:
    """The meta-steps of a run: when, on which batches, and how they went.

    Args:
        program: see `make_meta_step`.
        interval: steps of training between two.
        open_batches: opens the meta-validation data at their beginning.
        rows: how many of each batch this process makes.
        batch_size: B of a batch, of all processes together.
        mesh: of the run.

    Attributes:
        pending: metrics that are in no record yet.
    """

    def __init__(
        self,
        program: MetaProgram,
        interval: int,
        open_batches: Callable[[], Batches],
        rows: int,
        batch_size: int,
        mesh: Mesh,
    ) -> None:
        self.interval = interval
        self.pending: list[dict[str, Any]] = []
        self._program, self._mesh = program, mesh
        self._open_batches, self._batches = open_batches, open_batches()
        self._rows, self._batch_size = rows, batch_size
        self._compiled: Any = None

    def compile(self, state: TrainState) -> None:
        """Compiles for states such as this one, and takes no batch from the data."""
        batches = self._open_batches()
        pair = [self._placed(next(batches)) for _ in range(2)]
        jitted = jax.jit(self._program, out_shardings=replicated(self._mesh))
        with jax.set_mesh(self._mesh):
            self._compiled = jitted.lower(state, *pair).compile()

    def after(self, step: int, state: TrainState) -> TrainState:
        """The state after step number ``step``, with a meta-step if it is due."""
        if step % self.interval:
            return state
        pair = [self._placed(next(self._batches)) for _ in range(2)]
        objective, metrics = self._compiled(state, *pair)
        self.pending.append(metrics)
        return dataclasses.replace(state, objective=objective)

    def means(self) -> dict[str, float]:
        """Means of the metrics since the last call, by name."""
        seen, self.pending = self.fetched(), []
        return {
            f"meta/{key}": sum(metrics[key] for metrics in seen) / len(seen)
            for key in (seen[0] if seen else ())
        }

    def fetched(self) -> list[dict[str, float]]:
        """Brings pending metrics to the host, as floats, and returns them."""
        self.pending = [
            {key: float(value) for key, value in metrics.items()}
            for metrics in jax.device_get(self.pending)
        ]
        return self.pending

    def get_state(self) -> dict[str, Any]:
        """Returns a JSON value."""
        return {"batches": self._batches.get_state(), "pending": self.fetched()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where ``get_state`` gave ``state``."""
        self._batches.set_state(state["batches"])
        self.pending = state["pending"]

    def _placed(self, batch: PyTree) -> PyTree:
        return place_batch(self._mesh, batch, self._batch_size, self._rows)
