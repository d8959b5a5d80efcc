"""Meta-steps, which train the combiner of losses every few training steps.

They are compiled separately from the training step, so that their temporary memory
does not add up. Their batches are held out of training and of all evaluation.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from meta_opt.finetuning.objective import Objective
from meta_opt.finetuning.state import TrainState
from meta_opt.meta_loss.hypergradients import HypergradientFn, make_hypergradient
from meta_opt.meta_loss.meta_gradient import (
    MetaDiagnostics,
    finish_meta_gradient,
    primary_gradient,
    same_batch_meta_gradient,
)
from meta_opt.meta_loss.preconditioners import update_preconditioner
from meta_opt.meta_loss.settings import MetaLossConfig
from meta_opt.parallel.mesh import place_batch, replicated
from meta_opt.types import PyTree
from meta_opt.workloads.workload import Batches, Workload


class MetaPrograms(NamedTuple):
    """A meta-step as two separately compiled functions, or as one.

    Attributes:
        primary: ``(state, first batch) -> (gradient of the primary loss, loss)``; None
            if a single batch is used for both.
        finish: ``(state, gradient, loss, second batch) -> (objective's state,
            metrics)``; ``(state, batch)`` if a single batch is used for both.
    """

    primary: Callable[..., tuple[PyTree, jax.Array]] | None
    finish: Callable[..., tuple[PyTree, dict[str, jax.Array]]]


def make_meta_step(
    workload: Workload,
    objective: Objective,
    config: MetaLossConfig,
    tx: optax.GradientTransformation,
) -> MetaPrograms:
    """Builds the meta-step (Ko et al. 2023, arXiv:2303.13009, algorithm 1).

    Args:
        workload: workload with several losses; ``loss_fn`` is the primary loss.
        objective: objective with the combiner to train.
        config: method, optimizer and interval of meta-steps.
        tx: the optimizer of the model; ``sama`` reads its preconditioner.

    Returns:
        Pure functions. The metrics of ``finish`` are ``primary`` (the primary loss on
        the first batch), ``grad_norm`` of the hypergradient, the number of ``masked``
        losses, ``skipped`` (1 if something was not finite and the step was skipped),
        and for each loss ``weight/`` (its weight in the model's gradient) and
        ``alignment/`` (its derivative along the gradient of the primary loss, positive
        if the loss helps).
    """
    combiner, losses = objective.combiner, workload.losses
    assert combiner is not None and losses is not None
    optimizer = config.make_meta_optimizer()
    kind = config.hypergradient.kind
    plain: HypergradientFn | None = None
    if kind != "sama" and not (kind == "jvp" and config.hypergradient.share_forward):
        plain = make_hypergradient(config.hypergradient)

    def keys(state: TrainState) -> jax.Array:
        rng = jax.random.fold_in(state.rng, state.step)
        return jax.random.split(jax.random.fold_in(rng, 1))

    def primary_loss(state: TrainState) -> Callable[[PyTree, PyTree], jax.Array]:
        rng, _ = keys(state)
        return lambda params, batch: workload.loss_fn(params, state.frozen, batch, rng)[
            0
        ]

    def losses_of(state: TrainState) -> Callable[[PyTree, PyTree], jax.Array]:
        rng, _ = keys(state)
        return lambda params, batch: losses.fn(params, state.frozen, batch, rng)[0]

    def primary(state: TrainState, first: PyTree) -> tuple[PyTree, jax.Array]:
        return primary_gradient(primary_loss(state), state.params, first)

    def finish(
        state: TrainState, gradient: PyTree, loss: jax.Array, second: PyTree
    ) -> tuple[PyTree, dict[str, jax.Array]]:
        losses_fn = losses_of(state)
        # A single key: direction and hypergradient must use the same dropout masks.
        combine = functools.partial(combiner.apply, dropout_key=keys(state)[1])
        phi = state.objective["phi"]

        def adapted() -> HypergradientFn:
            def combined(params: PyTree) -> jax.Array:
                return combine(phi, losses_fn(params, second))

            value, grads = jax.value_and_grad(combined)(state.params)
            adapt = update_preconditioner(
                tx, state.opt_state, grads, state.params, value=value
            )
            return make_hypergradient(config.hypergradient, adapt)

        found, seen = finish_meta_gradient(
            *(losses_fn, combine, phi, state.params, second, (gradient, loss)),
            gamma=config.gamma,
            hypergradient=adapted() if kind == "sama" else plain,
            direct_term=config.direct_term,
        )
        return updated(state, found, seen)

    def on_one_batch(
        state: TrainState, batch: PyTree
    ) -> tuple[PyTree, dict[str, jax.Array]]:
        found, seen = same_batch_meta_gradient(
            losses_of(state),
            functools.partial(combiner.apply, dropout_key=keys(state)[1]),
            state.objective["phi"],
            state.params,
            batch,
            primary=losses.names.index(losses.primary),
            gamma=config.gamma,
            direct_term=config.direct_term,
        )
        return updated(state, found, seen)

    def updated(
        state: TrainState, found: PyTree, seen: MetaDiagnostics
    ) -> tuple[PyTree, dict[str, jax.Array]]:
        phi = state.objective["phi"]
        opt_state = state.objective["opt_state"]
        updates, new_opt_state = optimizer.update(found, opt_state, phi)
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

    if config.same_batch:
        return MetaPrograms(None, on_one_batch)
    return MetaPrograms(primary, finish)


class MetaSteps:
    """Runs the meta-steps of a run at their interval, and collects their metrics.

    Args:
        programs: result of `make_meta_step`.
        interval: number of training steps between two meta-steps.
        open_batches: opens the meta-validation data at their beginning.
        rows: number of rows of each batch that this process reads.
        batch_size: B, the batch size over all processes.
        mesh: mesh of the run.

    Attributes:
        pending: metrics that are not in a record yet.
    """

    def __init__(
        self,
        programs: MetaPrograms,
        interval: int,
        open_batches: Callable[[], Batches],
        rows: int,
        batch_size: int,
        mesh: Mesh,
    ) -> None:
        self.interval = interval
        self.pending: list[dict[str, Any]] = []
        self._programs, self._mesh = programs, mesh
        self._open_batches, self._batches = open_batches, open_batches()
        self._rows, self._batch_size = rows, batch_size
        self._primary: Any = None
        self._finish: Any = None

    def compile(self, state: TrainState) -> None:
        """Compiles for the shapes of ``state`` without consuming a batch."""
        batches = self._open_batches()
        whole = replicated(self._mesh)
        finish = jax.jit(self._programs.finish, out_shardings=whole)
        if self._programs.primary is None:
            batch = self._next(batches)
            with jax.set_mesh(self._mesh):
                self._finish = finish.lower(state, batch).compile()
            return
        first, second = (self._next(batches) for _ in range(2))
        layout = jax.tree.map(lambda x: x.sharding, state.params)
        primary = jax.jit(self._programs.primary, out_shardings=(layout, whole))
        with jax.set_mesh(self._mesh):
            self._primary = primary.lower(state, first).compile()
            of_primary = jax.eval_shape(self._programs.primary, state, first)
            gradient, loss = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                of_primary,
                (layout, whole),
            )
            self._finish = finish.lower(state, gradient, loss, second).compile()

    def after(self, step: int, state: TrainState) -> TrainState:
        """Returns the state after step ``step``, taking a meta-step if one is due."""
        if step % self.interval:
            return state
        batch = self._next(self._batches)
        of_primary: tuple[Any, ...] = ()
        if self._primary is not None:
            of_primary = self._primary(state, batch)
            batch = self._next(self._batches)
        objective, metrics = self._finish(state, *of_primary, batch)
        self.pending.append(metrics)
        return dataclasses.replace(state, objective=objective)

    def means(self) -> dict[str, float]:
        """Returns the means of the metrics since the last call, by name."""
        seen, self.pending = self.fetched(), []
        return {
            f"meta/{key}": sum(metrics[key] for metrics in seen) / len(seen)
            for key in (seen[0] if seen else ())
        }

    def fetched(self) -> list[dict[str, float]]:
        """Fetches pending metrics to the host, as floats, and returns them."""
        self.pending = [
            {key: float(value) for key, value in metrics.items()}
            for metrics in jax.device_get(self.pending)
        ]
        return self.pending

    def get_state(self) -> dict[str, Any]:
        """Returns the state as a JSON value."""
        return {"batches": self._batches.get_state(), "pending": self.fetched()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state that ``get_state`` returned."""
        self._batches.set_state(state["batches"])
        self.pending = state["pending"]

    def _next(self, batches: Batches) -> PyTree:
        """Takes a batch and shards it over the devices."""
        try:
            batch = next(batches)
        except StopIteration:
            raise ValueError(
                "the meta-validation data ended before the run; the iterator must "
                "repeat"
            ) from None
        return place_batch(self._mesh, batch, self._batch_size, self._rows)
