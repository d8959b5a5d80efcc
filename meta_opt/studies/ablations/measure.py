"""Ablations of a learned optimizer: parts of its controller's weights set to zero.

The weights are not retrained, so this shows how much the trained weights depend on a
part, not what training without it could reach. Weights that were trained without a part
can be added, see `AblationConfig.others`.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.optimizers.controller import (
    FEATURES,
    OUTPUTS,
    OVERVIEW_FEATURES,
    TENSOR_FEATURES,
    ControllerConfig,
)
from meta_opt.optimizers.update_rule import DIRECTIONS
from meta_opt.optimizers.weights import load_theta
from meta_opt.tasks.inner_run import PopulationRun, learned_on, pooled
from meta_opt.tasks.task import Task
from meta_opt.types import PyTree


def _with_prefix(*prefixes: str) -> tuple[str, ...]:
    return tuple(f for f in OVERVIEW_FEATURES if f.startswith(prefixes))


WHOLE = "as shipped"
FEATURE_GROUPS = {
    "progress": _with_prefix("past_", "log_"),
    "loss": _with_prefix("loss_"),
    "feedback": _with_prefix("feedback_"),
    "gradient ratios": ("gradient/all", "momentum/gradient", "gradient/ema", "ema/max"),
    "alignment": ("alignment", "alignment_ema", "alignment_all", "alignment_ema_all"),
    "parameter size": ("size", "near_zero", "moved"),
    "reach": ("reach", "reach_known"),
    "structure": ("structure", "structured"),
    "shape": ("matrix", "aspect", "thin", "width"),
}
"""All features except the constant, by group."""
_UNSEEN = {f"without {name}": features for name, features in FEATURE_GROUPS.items()}
_ELEMENTWISE = "without orthogonalised direction"
_HAND = "everything (the hand-designed rule)"
ABLATIONS = (
    WHOLE,
    "without recurrence",
    *_UNSEEN,
    "step size only",
    "without mixture",
    _ELEMENTWISE,
    _HAND,
)
"""Names of ablations, see `ablated`."""


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """Settings of the measurement.

    Attributes:
        tasks: names of task families.
        weights: weights of the learned optimizer: a shipped name or a path.
        others: further weights to measure, by name in the table.
        budgets: run lengths as fractions of a task's larger horizon.
        seeds: random seeds of initialisation and batches.
    """

    tasks: tuple[str, ...]
    weights: str
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)
    budgets: tuple[float, ...] = (1.0, 0.5)
    seeds: tuple[int, ...] = (1, 2, 3)

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("tasks", "budgets", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")
        if not all(0 < b <= 1 for b in self.budgets):
            raise ValueError(f"budgets={self.budgets} must be in (0, 1]")


def ablated(
    theta: PyTree, config: ControllerConfig, what: str
) -> tuple[PyTree, ControllerConfig]:
    """Returns the controller with a part of its weights set to zero.

    The orthogonalised direction is ablated in the config instead of the weights:
    matrices then have Adam's direction.

    Args:
        theta: weights of the controller.
        config: configuration of the controller.
        what: name of the ablation, one of `ABLATIONS`.

    Returns:
        Weights and config.

    Raises:
        ValueError: an unknown name.
    """
    if what == WHOLE:
        return theta, config
    if what == _ELEMENTWISE:
        return theta, dataclasses.replace(config, orthogonal=False)
    memory = config.tensor_hidden + config.global_hidden
    if what == _HAND:
        zero = jax.tree.map(jnp.zeros_like, theta["output"])
        changed = {**theta, "output": zero}
    elif what == "without recurrence":
        changed = _with_output(theta, rows=range(memory))
    elif what == "step size only":
        others = set(range(len(OUTPUTS))) - {OUTPUTS.index("step")}
        changed = _with_output(theta, columns=others)
    elif what == "without mixture":
        changed = _with_output(theta, columns=range(len(DIRECTIONS)))
    elif unseen := _UNSEEN.get(what):
        changed = _with_output(theta, rows=[memory + FEATURES.index(f) for f in unseen])
        for lstm, known in (("global", OVERVIEW_FEATURES), ("tensor", TENSOR_FEATURES)):
            rows = [known.index(f) for f in unseen if f in known]
            kernel = _zeroed(theta[lstm]["kernel"], rows, ())
            changed[lstm] = {**theta[lstm], "kernel": kernel}
    else:
        names = ", ".join(ABLATIONS)
        raise ValueError(f"unknown ablation {what!r}; available: {names}")
    return changed, config


def _zeroed(x: jax.Array, rows: Iterable[int], columns: Iterable[int]) -> jax.Array:
    array = np.array(x)
    array[list(rows)] = 0.0
    array[..., list(columns)] = 0.0
    return jnp.asarray(array)


def _with_output(
    theta: PyTree, rows: Iterable[int] = (), columns: Iterable[int] = ()
) -> dict[str, PyTree]:
    """Returns output weights with rows (inputs) and columns (outputs) set to zero."""
    columns = list(columns)
    output = {
        "kernel": _zeroed(theta["output"]["kernel"], rows, columns),
        "bias": _zeroed(theta["output"]["bias"], (), columns),
    }
    return {**theta, "output": output}


@dataclasses.dataclass(frozen=True)
class AblationRow:
    """The result of one set of weights on one task at one budget.

    Attributes:
        name: one of `ABLATIONS`, or a key of `AblationConfig.others`.
        task: name of the task.
        budget: run length as a fraction of the task's larger horizon.
        loss: final loss on the union of validation and test examples, mean over seeds;
            infinite if a seed failed.
        accuracy: accuracy in percent on the same examples, mean over seeds; a failed
            seed counts as 0.
        log_ratio: log of the ratio of ``loss`` to the reference's loss.
    """

    name: str
    task: str
    budget: float
    loss: float
    accuracy: float
    log_ratio: float


def measure(
    task: Task, reference: tuple[float, float], config: AblationConfig
) -> list[AblationRow]:
    """Measures all ablations and further weights on one task.

    Args:
        task: the task.
        reference: final validation and test loss of the tuned baseline.
        config: tasks, seeds, budgets and weights.

    Raises:
        ValueError: weights that are missing or damaged, or have another controller
            configuration.
    """
    theta, shape = load_theta(config.weights)
    rows = {name: ablated(theta, shape, name) for name in ABLATIONS}
    for name, path in config.others.items():
        rows[name] = load_theta(path)
        if rows[name][1] != shape:
            raise ValueError(
                f"others.{name}={path!r} has another controller configuration than "
                f"weights={config.weights!r}"
            )
    # Weights with the same config are vmapped in one program.
    runs = []
    for own in dict.fromkeys(own for _, own in rows.values()):
        names = [name for name, (_, other) in rows.items() if other == own]
        thetas = jax.tree.map(lambda *x: jnp.stack(x), *(rows[n][0] for n in names))
        runs.append((names, thetas, PopulationRun(task, learned_on(task, own))))
    keys = jax.vmap(jax.random.key)(jnp.array(config.seeds, jnp.uint32))
    baseline = pooled(task.splits, *reference)
    found = []
    for budget in config.budgets:
        steps = max(1, round(budget * task.horizons[1]))
        measured = {}
        for names, thetas, run in runs:
            losses, errors = run(thetas, keys, steps).held_out(task.splits)
            for name, loss, error in zip(names, losses, errors, strict=True):
                mean = np.mean(loss)
                measured[name] = (
                    float(mean if np.isfinite(mean) else np.inf),
                    float(100 * np.mean(1 - np.nan_to_num(error, nan=1.0))),
                )
        found += [
            AblationRow(
                name=name,
                task=task.name,
                budget=budget,
                loss=measured[name][0],
                accuracy=measured[name][1],
                log_ratio=float(np.log(measured[name][0] / baseline)),
            )
            for name in rows
        ]
    return found
