"""Early stopping by a validation metric."""

import dataclasses
import math
from collections.abc import Sequence

from meta_opt.types import check_name


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Stops a run when a validation metric no longer improves.

    Attributes:
        metric: name of the validation metric.
        mode: ``min`` or ``max``, whichever is better.
        patience: consecutive evaluations without improvement after which a run stops.

    Example:
        >>> stopping = EarlyStopping("loss", "min", patience=2)
        >>> losses = [0.9, 0.5, 0.6, 0.5]
        >>> [stopping.stops(losses[: i + 1]) for i in range(4)], stopping.best(losses)
        ([False, False, False, True], 1)
    """

    metric: str = "loss"
    mode: str = "min"
    patience: int = 5

    def __post_init__(self) -> None:
        """Checks mode and range."""
        check_name("early_stopping.mode", self.mode, ("min", "max"))
        if self.patience < 1:
            raise ValueError(
                f"early_stopping.patience={self.patience} must be at least 1"
            )

    def best(self, values: Sequence[float]) -> int:
        """Returns the first index of the best value; NaN and infinities rank last.

        Args:
            values: values of the metric in order, at least one.
        """
        sign = 1.0 if self.mode == "min" else -1.0
        costs = [sign * x if math.isfinite(x) else math.inf for x in values]
        return costs.index(min(costs))

    def stops(self, values: Sequence[float]) -> bool:
        """Whether a run stops after these values."""
        return len(values) - 1 - self.best(values) >= self.patience
