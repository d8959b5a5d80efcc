"""A policy that decides whether to run the next phase, and at which image width."""

import dataclasses
import itertools
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class PhasePolicy:
    """Rules that decide on the next phase from the preceding ones.

    The width is increased when training on smaller images no longer improves the model
    (progressive resizing). A phase is run if its expected gain is worth at least the
    cost of its examples and computation.

    Attributes:
        widths: widths of training images in pixels, ascending; the first phase has the
            first one. If empty, all phases have the study's width. Validation and test
            images always have the study's width.
        widen_below: gain in validation accuracy, in percentage points, below which the
            next phase has the next width.
        point_value: value of a percentage point of accuracy, in the currency of the
            prices; 0 runs all phases.
        example_price: price of a labelled training example, in the same currency.
        decay: ratio of a phase's expected gain to the mean gain of the two preceding
            phases.

    Example:
        >>> policy = PhasePolicy(widths=(100, 200), widen_below=3.0)
        >>> done = [PhaseOutcome(0.40), PhaseOutcome(0.60, width=100)]
        >>> policy.decide(done, width=100, examples=210).width
        100
        >>> done.append(PhaseOutcome(0.61, width=100))
        >>> policy.decide(done, width=100, examples=210).width
        200
    """

    widths: tuple[int, ...] = ()
    widen_below: float = 2.0
    point_value: float = 0.0
    example_price: float = 0.0
    decay: float = 0.5

    def __post_init__(self) -> None:
        """Checks order and ranges."""
        if (
            list(self.widths) != sorted(set(self.widths))
            or min(self.widths, default=1) < 1
        ):
            raise ValueError(
                f"widths={self.widths} must be pixels in ascending order, each once"
            )
        for name in ("widen_below", "point_value", "example_price"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay={self.decay} must be above 0 and at most 1")
        if self.example_price and not self.point_value:
            raise ValueError(
                f"example_price={self.example_price} is compared with point_value, "
                "which is 0; give it"
            )

    def decide(
        self, outcomes: Sequence["PhaseOutcome"], width: int, examples: int
    ) -> "PhaseDecision":
        """Decides whether to run the next phase, and at which width.

        Args:
            outcomes: outcomes of zero-shot and all phases so far; not empty.
            width: width of the study, used if the policy has no widths.
            examples: number of training examples that the next phase adds.

        Raises:
            ValueError: ``point_value`` is set and the cost of a phase is unknown.
        """
        gains = [
            100 * (b.accuracy - a.accuracy) for a, b in itertools.pairwise(outcomes)
        ]
        if not gains:
            first = self.widths[0] if self.widths else width
            return PhaseDecision(True, first, "the first phase")
        last = outcomes[-1]
        before = width if last.width is None else last.width
        worth, why = self._worth(gains, last, examples)
        if not worth:
            return PhaseDecision(False, before, why)
        gained = f"{gains[-1]:.1f} points gained at {before} px"
        wider = [w for w in self.widths if w > before]
        if wider and gains[-1] < self.widen_below:
            before = wider[0]
            gained += f", under {self.widen_below:g}"
        return PhaseDecision(True, before, "; ".join(filter(None, (gained, why))))

    def _worth(
        self, gains: Sequence[float], last: "PhaseOutcome", examples: int
    ) -> tuple[bool, str]:
        if not self.point_value:
            return True, ""
        if last.money is None:
            raise ValueError(
                f"point_value={self.point_value}: the cost of the last phase is not "
                "known; give the prices of the resources that it used"
            )
        recent = gains[-2:]
        expected = max(0.0, self.decay * sum(recent) / len(recent))
        value = self.point_value * expected
        cost = last.money + self.example_price * examples
        why = (
            f"{expected:.1f} points expected are worth {value:.3g}, and cost {cost:.3g}"
        )
        return value >= cost, why


@dataclasses.dataclass(frozen=True)
class PhaseOutcome:
    """The outcome of zero-shot or of a finished phase.

    Attributes:
        accuracy: validation accuracy in [0, 1].
        width: width of the training images in pixels; None for zero-shot.
        money: cost of the computation; None if unknown.
    """

    accuracy: float
    width: int | None = None
    money: float | None = None


@dataclasses.dataclass(frozen=True)
class PhaseDecision:
    """The decision about the next phase.

    Attributes:
        run: whether to run the phase.
        width: width of its training images in pixels.
        reason: reason for the decision, with the numbers.
    """

    run: bool
    width: int
    reason: str
