"""Ablations of the shipped weights: ``shipped``, ``retrained`` and ``smoke``."""

import ml_collections

from configs import common


def shipped() -> ml_collections.ConfigDict:
    """On meta-validation, whose data sets are not used in meta-training."""
    held_out = common.meta_validation()
    config = ml_collections.ConfigDict()
    config.ablations = dict(
        tasks=held_out["tasks"],
        weights=common.WEIGHTS,
        # Paths of weights that were trained without something, by name.
        others=ml_collections.ConfigDict(),
        budgets=(1.0, 0.5),
        # The seeds of the stored baseline results.
        seeds=(1, 2, 3),
    )
    config.baseline = held_out["baseline"]
    config.baseline_results = held_out["results"]
    config.data_dir = ""
    config.results = "results/ablations"
    return config


def retrained() -> ml_collections.ConfigDict:
    """Also the direct weights of searches with and without fine-tuning tasks.

    Needs the outputs of two searches, see configs/direct_search.py.
    """
    config = shipped()
    config.ablations.others = ml_collections.ConfigDict(
        {
            "all families, no LSTMs": "runs/direct_search/theta.safetensors",
            "from scratch only, no LSTMs": "runs/scratch/theta.safetensors",
        }
    )
    return config


def smoke() -> ml_collections.ConfigDict:
    """One task at a fiftieth of its steps, on one seed."""
    config = shipped()
    config.ablations.tasks = ("clipart_conv",)
    config.ablations.budgets = (0.02,)
    config.ablations.seeds = (1,)
    config.results = "runs/ablations/smoke"
    return config


get_config = common.variants(shipped, retrained, smoke)
