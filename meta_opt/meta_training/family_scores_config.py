"""Settings of the scores of candidate weights on task families."""

import dataclasses
from collections.abc import Mapping

from meta_opt.optimizers.controller import ControllerConfig
from meta_opt.types import check_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilyScoresConfig:
    """How candidates are run on task families and compared with AdamW.

    Attributes:
        families: names of task families.
        num_steps: number of AdamW steps by family; default: the family's largest
            horizon.
        seeds: inner runs per candidate and family; every generation uses other seeds.
        reference_seeds: inner runs of every AdamW setting.
        budgets: run lengths of candidates, as fractions of AdamW's steps.
        rates: learning rates of the AdamW reference.
        decays: weight decays of the AdamW reference; the best pair of learning rate and
            weight decay counts.
        error_weight: weight of the error rate relative to the log loss, at the full
            budget.
        worst_weight: weight of the mean over the worst fifth of the families (the
            conditional value at risk) relative to the mean over all of them.
        families_per_generation: number of families, drawn at random, that a generation
            is evaluated on; 0 for all.
        seed: random seed of the drawn families.
        controller: architecture of the controller.
        workers: number of worker processes that share the families; 0 for none. Each
            family stays with one worker, so that it is built and compiled once.
        side_by_side: whether all candidates of a generation run in one vmapped program,
            which suits small models; running them in turn is faster for large models.
    """

    families: tuple[str, ...]
    num_steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seeds: int = 2
    reference_seeds: int = 3
    budgets: tuple[float, ...] = (1.0, 0.4)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    decays: tuple[float, ...] = (1e-2, 0.5)
    error_weight: float = 2.0
    worst_weight: float = 0.5
    families_per_generation: int = 0
    seed: int = 0
    controller: ControllerConfig = dataclasses.field(default_factory=ControllerConfig)
    workers: int = 0
    side_by_side: bool = True

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            ValueError: an empty list, a number out of range, or steps for a family that
                is not in ``families``.
        """
        for name in ("families", "budgets", "rates", "decays"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; name at least one")
        check_least("", self, seeds=1, reference_seeds=1, worst_weight=0)
        check_least("", self, families_per_generation=0, workers=0)
        if not all(0 < b <= 1 for b in self.budgets):
            raise ValueError(f"budgets={self.budgets} must be in (0, 1]")
        if unknown := set(self.num_steps) - set(self.families):
            raise ValueError(
                f"num_steps has {sorted(unknown)}, which are not in families"
            )
