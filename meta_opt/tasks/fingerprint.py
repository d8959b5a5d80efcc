"""Fingerprints of tasks, to be stored with results and compared later."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from meta_opt.tasks.task import Task

_TOLERANCE = 1e-2
"""Relative tolerance: features and pretrained weights depend slightly on the machine.
"""


def task_fingerprint(task: Task) -> dict[str, Any]:
    """Returns a fingerprint of a task's data, parameters, loss and settings.

    Args:
        task: any task.

    Returns:
        JSON values: ``exact``, a hash of shapes, dtypes, integer data and settings, and
        ``numbers``, summaries of the float data and the validation loss at one
        initialisation, whose last digits depend on the machine.
    """
    params = jax.jit(task.init)(jax.random.key(0))
    exact: dict[str, Any] = {
        "params": str(jax.tree.map(lambda p: (p.shape, str(p.dtype)), params)),
        "batch_size": task.batch_size,
        "stacked": task.stacked,
        "provides_loss": task.provides_loss,
        "feedback_every": task.feedback_every,
        # A removed setting, kept so that stored fingerprints stay comparable.
        "gives_epochs": True,
    }
    loss = jax.jit(task.loss)(params, task.splits.validation)[0]
    numbers = {"loss": float(loss)}
    for split, arrays in task.splits._asdict().items():
        for name, array in sorted(arrays.items()):
            key, x = f"{split}/{name}", np.asarray(array)
            exact[key] = f"{x.shape} {x.dtype}"
            if np.issubdtype(x.dtype, np.floating):
                # A number of the magnitude of an element that depends on the order.
                flat = x.astype(np.float64).ravel()
                mixed = flat @ np.cos(np.arange(flat.size)) / math.sqrt(flat.size)
                numbers[key] = float(mixed)
            else:
                exact[key] += hashlib.sha256(x.tobytes()).hexdigest()
    text = json.dumps(exact, sort_keys=True)
    return {"exact": hashlib.sha256(text.encode()).hexdigest(), "numbers": numbers}


def same_task(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Returns whether two fingerprints belong to the same task, up to rounding."""
    one, other = a["numbers"], b["numbers"]
    return (
        a["exact"] == b["exact"]
        and one.keys() == other.keys()
        and all(
            math.isclose(one[k], other[k], rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
            for k in one
        )
    )
