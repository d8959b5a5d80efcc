"""Settings of meta-training."""

import dataclasses

from meta_opt.meta_training.unroll import Augmentation
from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.types import near_match

PARALLEL = ("families", "particles")
ESTIMATORS = ("bptt", "es", "truncated_bptt", "truncated_es", "pes", "nres")


@dataclasses.dataclass(frozen=True)
class MetaTrainConfig:
    """Settings of meta-training.

    Attributes:
        families: names of task families, taken in turn; a name may stand twice.
        outer_steps: length of meta-training.
        estimator: one of `ESTIMATORS`. Over whole runs: ``bptt`` (back-propagation) or
            ``es`` (evolution strategies). Over one window of each run at a time, with
            runs out of step: ``truncated_bptt``, ``truncated_es``, ``pes``, ``nres``.
        parallel: how devices share work. ``families``: a step takes as many families as
            there are devices, one on each; for few devices. ``particles``: a step
            takes one family, whose particles are divided over all devices of all
            processes; results do not depend on their number.
        particles: inner runs a family, each with its own seed, of back-propagation;
            seeds that pairs take turns with, of ``es``.
        pairs: number of antithetic pairs of evolution strategies per family.
        sigma: for evolution strategies, standard deviation of the perturbations of
            theta.
        windows: windows that runs are cut into, where they are.
        learning_rate: learning rate of Adam on theta; decays by cosine to a tenth.
        seed: random seed of all randomness.
        augmentation: see `Augmentation`.
        error_weight: weight of the error rate beside the log loss in the objective.
        weight_decay: pull of theta's output weights towards where they began: the
            hand-designed rule, or the weights that meta-training starts from.
        checkpoint_every: outer steps between checkpoints.
        validate_every: outer steps between meta-validations; 0 for none.
        stop_after: stop (resumable) after this many outer steps; 0 for all of them.
        budget_seconds: stop (resumable) after this wall-clock time; 0 for no limit.
        controller: the controller's shape.
        direct: names of the direct weights that are trained, see `Parametrisation`;
            empty: all weights.
        keep_direct: train all weights but the direct ones.
        shortest: least length of runs, where a family's own is less.
        longest: bound on the length of runs, and so of windows: (first outer step,
            bound) pairs in ascending order, ``((0, 100), (500, 400))`` for short runs
            first. Programs are recompiled where it changes. Empty, and before the
            first of them, for the families' own.
        rates: for ``es``, learning rates of the AdamW that it is scored against.
        least_budget: for ``es``, smallest budget as a share of AdamW's steps.
    """

    families: tuple[str, ...]
    outer_steps: int = 1000
    estimator: str = "bptt"
    parallel: str = "families"
    particles: int = 4
    pairs: int = 12
    sigma: float = 0.05
    windows: int = 4
    learning_rate: float = 3e-3
    seed: int = 0
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    error_weight: float = 1.0
    weight_decay: float = 0.0
    checkpoint_every: int = 50
    validate_every: int = 0
    stop_after: int = 0
    budget_seconds: float = 0.0
    controller: ControllerConfig = dataclasses.field(default_factory=ControllerConfig)
    direct: tuple[str, ...] = ()
    keep_direct: bool = False
    shortest: int = 1
    longest: tuple[tuple[int, int], ...] = ()
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    least_budget: float = 1.0

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not self.families:
            raise ValueError("families is empty; name at least one task family")
        for name in (
            "outer_steps",
            "particles",
            "pairs",
            "checkpoint_every",
            "windows",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.rates or not all(rate > 0 for rate in self.rates):
            raise ValueError(f"rates={self.rates} must be above 0, one at least")
        if not 0 < self.least_budget <= 1:
            raise ValueError(f"least_budget={self.least_budget} must be in (0, 1]")
        starts = [start for start, _ in self.longest]
        if starts != sorted(set(starts)) or any(n < 1 for _, n in self.longest):
            raise ValueError(
                f"longest={self.longest} must be pairs of an outer step, ascending, "
                "and a bound of at least 1"
            )
        if not self.sigma > 0:
            raise ValueError(f"sigma={self.sigma} must be above 0")
        for name, allowed in (("estimator", ESTIMATORS), ("parallel", PARALLEL)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"unknown {name} {value!r}{near_match(value, allowed)}; available: "
                    f"{', '.join(allowed)}"
                )

    def longest_at(self, step: int) -> int | None:
        """The bound on the length of runs at an outer step; None for no bound."""
        bounds = [bound for start, bound in self.longest if start <= step]
        return bounds[-1] if bounds else None
