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
        families: names of task families, visited in turn; a name that is listed twice
            is visited twice as often.
        outer_steps: number of outer steps.
        estimator: meta-gradient estimator, one of `ESTIMATORS`. ``bptt``
            (back-propagation) and ``es`` (evolution strategies) use whole runs;
            ``truncated_bptt``, ``truncated_es``, ``pes`` and ``nres`` use one window of
            each run at a time, with runs at different positions in their episodes.
        parallel: what is divided over devices. ``families``: each device takes another
            family in a step; for few devices. ``particles``: a step takes one family,
            whose particles are divided over all devices of all processes; results do
            not depend on the number of devices.
        particles: for back-propagation, inner runs per family, each with its own seed;
            for ``es``, number of seeds, which the pairs use in turn.
        pairs: for evolution strategies, antithetic pairs per family.
        sigma: for evolution strategies, standard deviation of the perturbations of
            theta.
        windows: number of windows per run, for the estimators that use windows.
        learning_rate: initial learning rate of Adam on theta; cosine decay to a tenth.
        seed: random seed of all draws.
        augmentation: random changes of the tasks, see `Augmentation`.
        error_weight: weight of the error rate relative to the log loss in the
            objective.
        weight_decay: decay of theta's output weights towards their initial values: the
            hand-designed rule, or the weights that meta-training starts from.
        checkpoint_every: outer steps between checkpoints.
        validate_every: outer steps between meta-validations; 0 for none.
        stop_after: stop (resumable) after this many outer steps; 0 for all of them.
        budget_seconds: stop (resumable) after this wall-clock time; 0 for no limit.
        controller: architecture of the controller.
        direct: names of the direct weights to train, see `Parametrisation`; empty to
            train all weights.
        keep_direct: freeze the direct weights and train all others.
        shortest: lower bound on the length of runs, in inner steps.
        longest: schedule of the upper bound on the length of runs, and so of windows:
            (first outer step, bound) pairs in ascending order, such as
            ``((0, 100), (500, 400))`` for short runs first. Programs are recompiled
            when the bound changes. Without a pair for a step, runs are as long as the
            families say.
        rates: for ``es``, learning rates of the AdamW reference; the best one counts.
        least_budget: for ``es``, smallest fraction of AdamW's steps that the controller
            is run for.
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
            raise ValueError(
                f"rates={self.rates} must be one or more learning rates above 0"
            )
        if not 0 < self.least_budget <= 1:
            raise ValueError(f"least_budget={self.least_budget} must be in (0, 1]")
        starts = [start for start, _ in self.longest]
        if starts != sorted(set(starts)) or any(n < 1 for _, n in self.longest):
            raise ValueError(
                f"longest={self.longest} must be pairs (outer step, bound) with "
                "ascending outer steps and bounds of at least 1"
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
        """Returns the bound on run length at an outer step; None for no bound."""
        bounds = [bound for start, bound in self.longest if start <= step]
        return bounds[-1] if bounds else None
