"""The last healthy train state, for rollback."""

import dataclasses
from typing import Any

import jax

from meta_opt.finetuning.state import TrainState
from meta_opt.types import PyTree


class RollbackSnapshot:
    """Keeps parameters and optimizer states; data and randomness are not rolled back.

    The copy is in host memory if devices have separate memory. It is sharded like the
    state, so that each process keeps its own part.
    """

    def __init__(self) -> None:
        self._kept: dict[str, PyTree] | None = None

    @property
    def kept(self) -> bool:
        """Whether a state was kept."""
        return self._kept is not None

    def keep(self, state: TrainState) -> None:
        """Copies the parts of the state that a rollback restores."""
        self._kept = jax.tree.map(_to_host_memory, _changing(state))

    def restored(self, state: TrainState) -> TrainState:
        """Returns ``state`` with the kept parts restored, if any were kept."""
        if self._kept is None:
            return state
        # Copies, because steps donate their state.
        back = jax.tree.map(
            lambda kept, x: jax.device_put(kept, x.sharding).copy(),
            self._kept,
            _changing(state),
        )
        return dataclasses.replace(state, **back)


def _changing(state: TrainState) -> dict[str, PyTree]:
    return {name: getattr(state, name) for name in ("params", "opt_state", "objective")}


def _to_host_memory(x: jax.Array) -> jax.Array:
    device: Any = next(iter(x.sharding.device_set))
    if device.platform == "cpu":
        return x.copy()
    return jax.device_put(x, x.sharding.with_memory_kind("pinned_host"))
