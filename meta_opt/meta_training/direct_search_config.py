"""Settings of the CMA-ES search of direct weights."""

import dataclasses

from meta_opt.meta_training.family_scores_config import FamilyScoresConfig
from meta_opt.types import check_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class DirectSearchConfig(FamilyScoresConfig):
    """Settings of the CMA-ES search, besides those of the scores.

    ``seed`` is the random seed of the search too.

    Attributes:
        direct: (name, centre, scale) of each search variable: its initial value and
            initial standard deviation. The name is that of a direct weight, see
            `Parametrisation`, or of several joined by ``+`` that share the value.
        generations: number of generations; 0 returns the initial centre.
        population: candidates per generation; the centre is evaluated in addition.
        validate_every: generations between meta-validations of the centre.
        pull: weight of a penalty on the mean squared distance from the initial centre,
            in initial standard deviations. The controller's outputs are bounded, so
            without a penalty the search may drift into a saturated, flat region.
        start: base weights that the searched values are added to, a shipped name or a
            path; "" for the hand-designed rule.
    """

    direct: tuple[tuple[str, float, float], ...]
    generations: int = 16
    population: int = 15
    validate_every: int = 2
    pull: float = 0.0
    start: str = ""

    def __post_init__(self) -> None:
        """Checks ranges.

        Raises:
            ValueError: as `FamilyScoresConfig`; no search variable, or a number out of
                range.
        """
        super().__post_init__()
        if not self.direct:
            raise ValueError("direct is empty; name at least one")
        check_least("", self, generations=0, population=4, validate_every=1, pull=0)
        if bad := [name for name, _, scale in self.direct if not scale > 0]:
            raise ValueError(f"the scale of {', '.join(bad)} must be above 0")
