"""The controller's decisions by modality group, for logs and plots."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.features.statistics import UnitTable
from meta_opt.features.tensors import GROUPS
from meta_opt.optimizers.update_rule import DIRECTIONS, Controls

DECISIONS = (
    "step",
    *DIRECTIONS,
    *("one_minus_b1", "one_minus_b2", "weight_decay", "compress"),
)
"""Names of the decisions: see `meta_opt.optimizers.update_rule.Controls`.

``step`` is the multiplier of the scheduled step; directions have their mixture weights.
"""


def group_decisions(controls: Controls, table: UnitTable) -> jax.Array:
    """Means over the units of each group: float32 [`GROUPS`, `DECISIONS`].

    The mean of ``step`` is geometric. A group without units has zeros, which ``step``
    is never otherwise.

    Args:
        controls: controls, [N] each, with the step before the schedule.
        table: constants of the units.
    """
    # For logs only, so that it has no meta-gradient.
    controls = jax.lax.stop_gradient(controls)
    columns = [
        jnp.log(controls.step)[:, None],
        controls.weights,
        *(x[:, None] for x in controls[2:]),
    ]
    counts = np.sum(table.membership, axis=0)
    # A matrix product, since a scatter would be slower.
    sums = jnp.asarray(table.membership).T @ jnp.concatenate(columns, axis=1)
    means = sums / np.maximum(counts, 1)[:, None].astype(np.float32)
    # Avoid NaN for absent groups, at which jax_debug_nans would stop.
    step = jnp.where(counts > 0, jnp.exp(means[:, 0]), 0.0)
    return means.at[:, 0].set(step)


def read_decisions(opt_state: Any) -> dict[str, float]:
    """The last decisions, ``{"vision/step": 0.8, ...}``, without absent groups.

    Args:
        opt_state: state of the learned optimizer or the hand-designed rule, wrapped or
            not. The result is empty for other optimizers.

    Example:
        >>> from meta_opt.optimizers.hand_designed import hand_designed
        >>> state = hand_designed(10).init({"text": {"kernel": jnp.ones((2, 2))}})
        >>> read_decisions(state)["text/orthogonal"]
        1.0
    """
    found = [
        node.decisions
        for node in jax.tree.leaves(opt_state, is_leaf=_decides)
        if _decides(node)
    ]
    if not found:
        return {}
    values = np.asarray(jax.device_get(found[0]), np.float64)
    return {
        f"{group}/{name}": float(value)
        for group, row in zip(GROUPS, values, strict=True)
        if row[0] > 0  # The step is 0 only for absent groups.
        for name, value in zip(DECISIONS, row, strict=True)
    }


def _decides(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "decisions")
