"""Settings of the search of direct weights."""

import dataclasses
from collections.abc import Mapping

from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.types import check_least


@dataclasses.dataclass(frozen=True)
class DirectSearchConfig:
    """Settings of the search.

    Attributes:
        families: names of task families.
        num_steps: AdamW's steps by family; a family's larger horizon where left out.
        direct: (name, centre, scale) of each number that is searched: where it begins
            and its first standard deviation. A name is that of a direct weight, see
            `Parametrisation`, or several joined by ``+`` that share the number.
        generations: length of the search; 0 takes the centre as it is.
        population: candidates of a generation; the centre is evaluated beside them.
        seeds: inner runs of each candidate and family, other ones each generation.
        reference_seeds: inner runs of every setting of AdamW.
        budgets: shares of AdamW's steps that candidates are run for.
        rates: learning rates of AdamW, the reference.
        decays: weight decays of AdamW; every pair is run once, and the best is used.
        error_weight: weight of the error rate beside the log loss, at the full budget.
        seed: random seed of the search.
        validate_every: generations between meta-validations of the centre.
        controller: the controller's shape.
        worst_weight: weight of the mean over the worst fifth of the families (the
            conditional value at risk) beside the mean over all of them.
        pull: weight of the squared distance from where the search began, in its first
            standard deviations, beside a candidate's score. Outputs are bounded, so
            that without it the search may wander off where nothing changes any more.
        families_per_generation: number of random families that a generation runs
            on; 0 for all.
        workers: processes that share the families; 0 for this process alone. Families
            stay with their process, which builds and compiles them.
        side_by_side: whether the candidates of a generation run in one program, which
            suits small models; one after the other is faster for large ones.
        start: weights that what is searched is added to, a shipped name or a path; ""
            for the hand-designed rule.
    """

    families: tuple[str, ...]
    direct: tuple[tuple[str, float, float], ...]
    num_steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    generations: int = 16
    population: int = 15
    seeds: int = 2
    reference_seeds: int = 3
    budgets: tuple[float, ...] = (1.0, 0.4)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    decays: tuple[float, ...] = (1e-2, 0.5)
    error_weight: float = 2.0
    seed: int = 0
    validate_every: int = 2
    controller: ControllerConfig = dataclasses.field(default_factory=ControllerConfig)
    worst_weight: float = 0.5
    pull: float = 0.0
    families_per_generation: int = 0
    workers: int = 0
    side_by_side: bool = True
    start: str = ""

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            ValueError: an empty list, a number out of range, a family that is not
                there.
        """
        for name in ("families", "direct", "budgets", "rates", "decays"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")
        check_least("", self, generations=0, population=4, seeds=1, reference_seeds=1)
        check_least("", self, validate_every=1, families_per_generation=0, workers=0)
        check_least("", self, worst_weight=0, pull=0)
        if not all(0 < b <= 1 for b in self.budgets):
            raise ValueError(f"budgets={self.budgets} must be in (0, 1]")
        if bad := [name for name, _, scale in self.direct if not scale > 0]:
            raise ValueError(f"the scale of {', '.join(bad)} must be above 0")
        if unknown := set(self.num_steps) - set(self.families):
            raise ValueError(f"num_steps names {sorted(unknown)}, not among families")
