"""The optimizers of the meta-test: tuned baselines and untuned optimizers."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from meta_opt.optimizers.baselines import CORE_BASELINES, EXTRA_BASELINES, baseline
from meta_opt.optimizers.hand_designed import hand_designed
from meta_opt.optimizers.untuned import (
    CALIBRATED,
    LEARNING_RATE_FREE,
    NEEDS_VALUE,
    calibrated,
    learning_rate_free,
)
from meta_opt.optimizers.weights import load_theta
from meta_opt.tasks.inner_run import MakeOptimizer, learned_on
from meta_opt.tasks.task import Task
from meta_opt.types import PyTree, near_match

HAND_DESIGNED = "hand_designed"
RIVALS = (
    *(f"{name}_calibrated" for name in CALIBRATED),
    *(f"{name}_default" for name in LEARNING_RATE_FREE),
)
"""Untuned rivals, with one calibrated setting for all tasks or optax's defaults."""
_UNTUNED = ("learned", HAND_DESIGNED, *RIVALS)


@dataclasses.dataclass(frozen=True)
class MetaTestConfig:
    """Tasks, optimizers, budgets and seeds of a meta-test.

    Attributes:
        tasks: names of task families.
        num_steps: full budget by task; the default is the task's larger horizon.
        core_baselines: tuned baselines, a subset of `CORE_BASELINES` with AdamW.
        extra_baselines: tuned baselines, a subset of `EXTRA_BASELINES`.
        untuned: ``learned``, ``hand_designed`` and names in `RIVALS`.
        weights: weights of the learned optimizer, shipped names or paths; each is a
            contender.
        budgets: fractions of the full budget for untuned optimizers, including 1.
        tuning_seeds: random seeds of every trial.
        seeds: random seeds of the reported runs; disjoint from ``tuning_seeds``.
        seeds_at_once: number of seeds that are vmapped in one program.
        trials_of_core: number of trials for each core baseline.
        trials_of_extra: number of trials for each extra baseline.
    """

    tasks: tuple[str, ...]
    num_steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    core_baselines: tuple[str, ...] = CORE_BASELINES
    extra_baselines: tuple[str, ...] = EXTRA_BASELINES
    untuned: tuple[str, ...] = _UNTUNED
    weights: tuple[str, ...] = ()
    budgets: tuple[float, ...] = (1.0, 0.75, 0.6, 0.5, 0.35, 0.25)
    tuning_seeds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (1, 2, 3)
    seeds_at_once: int = 1
    trials_of_core: int = 20
    trials_of_extra: int = 8

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        if not self.tasks:
            raise ValueError("tasks is empty; name at least one task family")
        known = {
            "core_baselines": CORE_BASELINES,
            "extra_baselines": EXTRA_BASELINES,
            "untuned": _UNTUNED,
        }
        for field, names in known.items():
            for name in getattr(self, field):
                if name not in names:
                    raise ValueError(
                        f"{field} has {name!r}{near_match(name, names)}; available: "
                        f"{', '.join(names)}"
                    )
        if "adamw" not in self.core_baselines:
            raise ValueError(
                "core_baselines lacks 'adamw', which every optimizer is compared with"
            )
        if unknown := set(self.num_steps) - set(self.tasks):
            raise ValueError(f"num_steps names {sorted(unknown)}, not among the tasks")
        if 1.0 not in self.budgets or not all(0 < b <= 1 for b in self.budgets):
            raise ValueError(f"budgets={self.budgets} must be in (0, 1], 1 among them")
        if not self.seeds or not self.tuning_seeds:
            raise ValueError("seeds and tuning_seeds need at least one seed each")
        if shared := set(self.seeds) & set(self.tuning_seeds):
            raise ValueError(f"seeds {sorted(shared)} are in tuning_seeds too")

    def steps(self, task: Task) -> int:
        """Returns the full budget of a task."""
        return self.num_steps.get(task.name, task.horizons[1])


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer of the meta-test.

    Attributes:
        name: name in reports.
        file: name of its result files, without suffix.
        make: function of a task that returns ``(num_steps, settings) -> optimizer``.
        setup: JSON values that its results depend on.
        settings: fixed settings; None if they are tuned.
        needs_value: whether it requires the loss value on every task, as MoMo does.
    """

    name: str
    file: str
    make: Callable[[Task], MakeOptimizer]
    setup: dict[str, Any]
    settings: PyTree | None = None
    needs_value: bool = False

    @property
    def tuned(self) -> bool:
        """Whether its settings are tuned."""
        return self.settings is None


def contenders(config: MetaTestConfig) -> list[Contender]:
    """Lists the contenders: untuned ones, core baselines, extra baselines.

    Raises:
        ValueError: missing or damaged weights.
    """
    found = []
    for name in config.untuned:
        if name == "learned":
            found += [_learned(weights) for weights in config.weights]
        elif name == HAND_DESIGNED:
            found.append(Contender(name, name, _make_hand_designed, {}, settings={}))
        else:
            found.append(_rival(name))
    for name in (*config.core_baselines, *config.extra_baselines):
        trials = (
            config.trials_of_core if name in CORE_BASELINES else config.trials_of_extra
        )
        found.append(Contender(name, name, _make_baseline(name), {"trials": trials}))
    return found


def _rival(name: str) -> Contender:
    rule, _, kind = name.rpartition("_")
    if kind == "calibrated":
        setting = dataclasses.asdict(CALIBRATED[rule])
        return Contender(
            name=name,
            file=name,
            make=lambda task: lambda n, settings: calibrated(rule, n, **settings),
            setup=setting,
            settings=setting,
        )
    return Contender(
        name=name,
        file=name,
        make=lambda task: lambda n, settings: learning_rate_free(rule, n),
        setup={},
        settings={},
        needs_value=rule in NEEDS_VALUE,
    )


def _make_baseline(name: str) -> Callable[[Task], MakeOptimizer]:
    return lambda task: lambda n, settings: baseline(name, n, **settings)


def _make_hand_designed(task: Task) -> MakeOptimizer:
    return lambda n, settings: hand_designed(n, stacked=task.stacked)


def _learned(weights: str) -> Contender:
    theta, config = load_theta(weights)
    digest = hashlib.sha256(repr(config).encode())
    for leaf in jax.tree.leaves(theta):
        digest.update(np.asarray(leaf).tobytes())
    short = digest.hexdigest()[:10]
    is_path = weights.endswith(".safetensors")

    return Contender(
        name=f"{Path(weights).stem}@{short[:6]}" if is_path else weights,
        file=f"learned-{short}",
        make=lambda task: learned_on(task, config),
        setup={"weights": digest.hexdigest()},
        settings=theta,
    )
