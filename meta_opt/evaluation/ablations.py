"""Ablations of a learned optimizer: parts of its controller's weights set to zero.

Nothing is trained again, so this says what trained weights make of a part, not what
could be reached without it. Weights that were trained without something can be listed
beside them, see `AblationConfig.others`.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.features.progress import PROGRESS_FEATURES
from meta_opt.features.statistics import GROUP_FEATURES, TENSOR_FEATURES
from meta_opt.optimizers.controller import (
    OUTPUTS,
    OVERVIEW_FEATURES,
    ControllerConfig,
)
from meta_opt.optimizers.update_rule import DIRECTIONS
from meta_opt.optimizers.weights import load_theta
from meta_opt.tasks.inner_run import PopulationRun, learned_on, pooled
from meta_opt.tasks.task import Task
from meta_opt.types import PyTree

WHOLE = "as shipped"
_FEEDBACK = tuple(f for f in PROGRESS_FEATURES if f.startswith("feedback"))
_EPOCHS = ("passes", "epochs", "epochs_known")
_GROUPS = (
    *GROUP_FEATURES,
    *(f for f in TENSOR_FEATURES if f.startswith("group_")),
)
_UNSEEN = {
    "without feedback": _FEEDBACK,
    "without epochs": _EPOCHS,
    "without group features": _GROUPS,
}
_HAND = "everything (the hand-designed rule)"
ABLATIONS = (
    WHOLE,
    "without LSTMs",
    "without feedback",
    "without epochs",
    "without group features",
    "step size only",
    "without mixture",
    _HAND,
)
"""What `ablated` knows."""


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """What is measured.

    Attributes:
        tasks: names of task families.
        weights: of the learned optimizer: a shipped name or a path.
        others: further weights by the name that the table gives them.
        budgets: shares of a task's larger horizon.
        seeds: of initialisation and batches.
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


def ablated(theta: PyTree, config: ControllerConfig, what: str) -> PyTree:
    """The controller's weights with a part set to zero.

    Args:
        theta: weights.
        config: their shape.
        what: one of `ABLATIONS`.

    Raises:
        ValueError: any other name.
    """
    if what == WHOLE:
        return theta
    if what == _HAND:
        return {**theta, "output": jax.tree.map(jnp.zeros_like, theta["output"])}
    memory = config.tensor_hidden + config.global_hidden
    features = TENSOR_FEATURES + OVERVIEW_FEATURES
    if what == "without LSTMs":
        return _with_output(theta, rows=range(memory))
    if what == "step size only":
        kept = OUTPUTS.index("step")
        return _with_output(theta, columns=set(range(len(OUTPUTS))) - {kept})
    if what == "without mixture":
        return _with_output(theta, columns=range(len(DIRECTIONS)))
    if unseen := _UNSEEN.get(what):
        blind = _with_output(theta, rows=[memory + features.index(f) for f in unseen])
        for lstm, known in (("global", OVERVIEW_FEATURES), ("tensor", TENSOR_FEATURES)):
            rows = [known.index(f) for f in unseen if f in known]
            kernel = _zeroed(theta[lstm]["kernel"], rows, ())
            blind[lstm] = {**theta[lstm], "kernel": kernel}
        return blind
    raise ValueError(f"no ablation {what!r}; there are {', '.join(ABLATIONS)}")


def _zeroed(x: jax.Array, rows: Iterable[int], columns: Iterable[int]) -> jax.Array:
    array = np.array(x)
    array[list(rows)] = 0.0
    array[..., list(columns)] = 0.0
    return jnp.asarray(array)


def _with_output(
    theta: PyTree, rows: Iterable[int] = (), columns: Iterable[int] = ()
) -> dict[str, PyTree]:
    """Output weights with rows (what is read) and columns (outputs) set to zero."""
    columns = list(columns)
    output = {
        "kernel": _zeroed(theta["output"]["kernel"], rows, columns),
        "bias": _zeroed(theta["output"]["bias"], (), columns),
    }
    return {**theta, "output": output}


@dataclasses.dataclass(frozen=True)
class AblationRow:
    """Weights on one task at one budget.

    Attributes:
        name: one of `ABLATIONS`, or of the further weights.
        task: its name.
        budget: share of the steps.
        loss: on validation and test examples together, mean over seeds; infinite if
            one failed.
        accuracy: percent, likewise; a failed seed counts as 0.
        log_ratio: log of that loss over the reference's.
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
        config: the rest.

    Raises:
        ValueError: weights that are not there, damaged, or of another shape.
    """
    theta, shape = load_theta(config.weights)
    rows = {name: ablated(theta, shape, name) for name in ABLATIONS}
    for name, path in config.others.items():
        rows[name], other = load_theta(path)
        if other != shape:
            raise ValueError(f"{path} has another controller than {config.weights}")
    run = PopulationRun(task, learned_on(task, shape))
    population = jax.tree.map(lambda *x: jnp.stack(x), *rows.values())
    keys = jax.vmap(jax.random.key)(jnp.array(config.seeds, jnp.uint32))
    baseline = pooled(task.splits, *reference)
    found = []
    for budget in config.budgets:
        steps = max(1, round(budget * task.horizons[1]))
        outcome = run(population, keys, steps)
        losses, errors = outcome.held_out(task.splits)
        loss = np.mean(losses, axis=1)
        loss = np.where(np.isfinite(loss), loss, np.inf)
        accuracy = 100 * np.mean(1 - np.nan_to_num(errors, nan=1.0), axis=1)
        found += [
            AblationRow(
                name=name,
                task=task.name,
                budget=budget,
                loss=float(loss[i]),
                accuracy=float(accuracy[i]),
                log_ratio=float(np.log(loss[i] / baseline)),
            )
            for i, name in enumerate(rows)
        ]
    return found
