"""Load: ``full``, as much as a large run has; ``smoke`` shows that it runs."""

import ml_collections

from configs import common


def full() -> ml_collections.ConfigDict:
    """What a long run on much data has."""
    config = ml_collections.ConfigDict()
    config.counts = {
        "steps": 10_000,
        "checkpoints": 1_000,
        "lines": 1_000_000,
        "pictures": 100_000,
    }
    config.results = "results/load"
    return config


def smoke() -> ml_collections.ConfigDict:
    """A thousandth of it."""
    config = full()
    config.counts = {"steps": 20, "checkpoints": 5, "lines": 1000, "pictures": 200}
    config.results = "runs/load_smoke"
    return config


def get_config(arg: str = "full") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    return common.choose(arg, {v.__name__: v for v in (full, smoke)})
