"""Privacy accounting: epsilon of a run's steps, and the noise for a target epsilon.

Uses the privacy loss distributions of Google's ``dp-accounting``. Each run has two
numbers:

- ``shuffled``: the bound for batches as runs draw them. Each epoch has an example in at
  most one batch, so that E epochs are E Gaussian mechanisms without amplification by
  sampling.
- ``poisson``: the bound if each step sampled each example independently with
  probability B / N. It is smaller, and most publications state it for shuffled batches,
  for which it is not a bound (Chua et al. 2024, arXiv:2403.17673).

Neighbouring datasets differ in one example, which one of them replaces by an example
without a gradient.
"""

import dataclasses
import functools
import math
from typing import Any

from meta_opt.finetuning.privacy import SAMPLING, PrivacyConfig

_LEAST, _MOST = 1e-2, 1e4
"""Range of the search for a noise multiplier."""


@dataclasses.dataclass(frozen=True)
class Exposure:
    """How often a run uses its examples.

    Attributes:
        examples: N, number of training examples.
        batch_size: B, the batch size.
        steps: number of steps.
    """

    examples: int
    batch_size: int
    steps: int

    def __post_init__(self) -> None:
        """Checks that the batch size is at most the number of examples."""
        if not 1 <= self.batch_size <= self.examples:
            raise ValueError(
                f"batch_size={self.batch_size} must be at least 1 and at most the "
                f"{self.examples} training examples"
            )

    @property
    def epochs(self) -> int:
        """Maximum number of uses of an example; epochs drop incomplete batches."""
        return math.ceil(self.steps / (self.examples // self.batch_size))


def load_accounting() -> Any:
    """Imports the module ``dp_accounting``.

    Raises:
        ValueError: it is not installed; the message has the command.
    """
    try:
        import dp_accounting
        import dp_accounting.pld
    except ImportError:
        raise ValueError(
            "privacy needs the package dp-accounting, which counts epsilon: "
            'pip install "meta-opt[privacy]"'
        ) from None
    return dp_accounting


def epsilon_of(
    exposure: Exposure, noise_multiplier: float, delta: float, sampling: str
) -> float:
    """Returns the least epsilon of a run for its delta.

    Args:
        exposure: how often the run uses its examples.
        noise_multiplier: standard deviation of the noise divided by the clipping norm.
        delta: delta of (epsilon, delta)-differential privacy.
        sampling: sampling assumption, one of `SAMPLING`.

    Raises:
        ValueError: ``dp-accounting`` is not installed.
    """
    if not exposure.steps:
        return 0.0
    accounting = load_accounting()
    event = accounting.GaussianDpEvent(noise_multiplier)
    count = exposure.epochs
    if sampling == "poisson":
        rate = exposure.batch_size / exposure.examples
        event = accounting.PoissonSampledDpEvent(rate, event)
        count = exposure.steps
    accountant = accounting.pld.PLDAccountant()
    accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


@functools.cache
def noise_for(config: PrivacyConfig, exposure: Exposure) -> float:
    """Returns the configured noise multiplier, or the least one for epsilon.

    Raises:
        ValueError: delta is too large for the number of examples, no noise in the range
            reaches epsilon, or ``dp-accounting`` is not installed.
    """
    load_accounting()
    if config.delta >= 1 / exposure.examples:
        raise ValueError(
            f"privacy.delta={config.delta} with {exposure.examples} training examples: "
            f"it must be below 1 over their number, {1 / exposure.examples:.3g}, or "
            "giving whole examples away would count as private"
        )
    if config.epsilon is None:
        assert config.noise_multiplier is not None
        return config.noise_multiplier
    target = config.epsilon

    def fits(noise: float) -> bool:
        return epsilon_of(exposure, noise, config.delta, config.sampling) <= target

    low, high = 0.0, 1.0
    while not fits(high):
        low, high = high, 2 * high
        if high > _MOST:
            raise ValueError(
                f"privacy.epsilon={target} with delta={config.delta} would need a "
                f"noise multiplier above {_MOST:g}: allow a larger epsilon, or take "
                "fewer steps"
            )
    # Bisection to three digits; the upper end is returned.
    while high - low > 1e-3 * high and high > _LEAST:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def spent(
    config: PrivacyConfig, exposure: Exposure, noise_multiplier: float
) -> dict[str, Any]:
    """Returns the privacy section of a run's result, JSON values by name."""
    by_sampling = {
        f"epsilon_{sampling}": epsilon_of(
            exposure, noise_multiplier, config.delta, sampling
        )
        for sampling in SAMPLING
    }
    return {
        **by_sampling,
        "delta": config.delta,
        "noise_multiplier": noise_multiplier,
        "clip_norm": config.clip_norm,
        "epochs": exposure.epochs,
    }
