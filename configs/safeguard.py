"""The safeguard under adverse conditions: ``robustness`` (reported), ``smoke``."""

import ml_collections

from configs import common


def robustness() -> ml_collections.ConfigDict:
    """All conditions on small families of meta-training."""
    config = ml_collections.ConfigDict()
    config.robustness = dict(
        tasks=(
            "digits_mlp",
            "cancer_mlp",
            "emoji_head",
            "emoji_vit_finetune",
            "cldr_writer_lora",
        ),
        weights=common.WEIGHTS,
        # All conditions if empty.
        conditions=(),
        # Steps of an ordinary run; tasks not named here use their larger horizon. The
        # transformers get half of it, since runs ten times as long take minutes.
        num_steps=ml_collections.ConfigDict(
            {"emoji_vit_finetune": 90, "cldr_writer_lora": 75}
        ),
        seeds=(1, 2, 3),
    )
    config.data_dir = ""
    config.results = "results/safeguard"
    return config


def smoke() -> ml_collections.ConfigDict:
    """Three conditions on scikit-learn's digits; needs no prepared data."""
    config = robustness()
    config.robustness.tasks = ("digits_mlp",)
    config.robustness.conditions = ("ordinary", "NaN in 5% of steps", "constant loss")
    config.robustness.num_steps = {"digits_mlp": 60}
    config.robustness.seeds = (1, 2)
    config.results = "runs/safeguard/smoke"
    return config


get_config = common.variants(robustness, smoke)
