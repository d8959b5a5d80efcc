"""Load tests: ``full``, at the scale of a large run, and ``smoke``."""

import ml_collections

from configs import common


def full() -> ml_collections.ConfigDict:
    """The scale of a long run on a large data set."""
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
    """A thousandth of that."""
    config = full()
    config.counts = {"steps": 20, "checkpoints": 5, "lines": 1000, "pictures": 200}
    config.results = "runs/load_smoke"
    return config


get_config = common.variants(full, smoke)
