"""One setting of each untuned rival for all tasks: ``families``; and ``smoke``."""

import ml_collections

from configs import common


def families() -> ml_collections.ConfigDict:
    """Over the training families, about an hour; needs what `make data` prepares."""
    config = ml_collections.ConfigDict()
    config.calibration = dict(
        families=(
            "digits_mlp",
            "cancer_mlp",
            "glyphs_mlp",
            "glyphs_conv",
            "emoji_vit",
            "emoji_vit_finetune",
            "emoji_conv_finetune",
            "emoji_clip_finetune",
            "emoji_clip_lora",
            "emoji_head",
            "emoji_fusion",
            "klettres_transformer",
            "klettres_finetune",
            "cldr_reader",
            "cldr_writer",
            "cldr_writer_lora",
        ),
        rivals=("adamw", "nadamw", "lion", "muon"),
        learning_rates=dict(
            adamw=(3e-4, 1e-3, 2e-3, 3e-3, 1e-2),
            nadamw=(3e-4, 1e-3, 2e-3, 3e-3, 1e-2),
            lion=(3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
            muon=(1e-3, 2e-3, 5e-3, 1e-2, 3e-2),
        ),
        weight_decays=dict(
            adamw=(0.01, 0.1),
            nadamw=(0.01, 0.1),
            lion=(0.1, 1.0),
            muon=(0.01, 0.1),
        ),
        # Of a task's largest horizon.
        horizon_shares=(1.0, 0.4),
        seeds=(0,),
        error_weight=1.0,
    )
    config.data_dir = ""
    config.results = "results/calibrated_baselines.json"
    return config


def smoke() -> ml_collections.ConfigDict:
    """Two settings of AdamW on scikit-learn's digits; needs no prepared data."""
    config = families()
    config.calibration.families = ("digits_mlp",)
    config.calibration.rivals = ("adamw",)
    config.calibration.learning_rates = ml_collections.ConfigDict(
        {"adamw": (1e-3, 1e-2)}
    )
    config.calibration.weight_decays = ml_collections.ConfigDict({"adamw": (0.01,)})
    config.calibration.horizon_shares = (0.05,)
    config.results = "runs/calibrate/smoke.json"
    return config


def get_config(arg: str = "families") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    variants = (families, smoke)
    return common.choose(arg, {variant.__name__: variant for variant in variants})
