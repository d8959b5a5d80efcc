"""One setting of each untuned rival for all tasks: ``families``, ``smoke``."""

import ml_collections

from configs import common


def families() -> ml_collections.ConfigDict:
    """Over the training families; hours on two cores. Needs `make data`."""
    config = ml_collections.ConfigDict()
    config.calibration = dict(
        families=(
            "style_digits_vit",
            "style_glyphs_conv",
            "style_cldr_gpt",
            "style_emoji_conv_finetune",
            "style_descriptions_llama",
            "minilm_layer",
            "whisper_layer",
            "klettres_transformer",
            "style_emoji_pairs_lora",
            "minilm_layer_few",
            "style_klettres_last_block",
            "style_glyphs_vit_lora",
            "emoji_vit_finetune",
            "style_cldr_gpt_lora",
            "style_wine_mlp",
            "style_friedman_mlp",
            "style_glyphs_head",
            "cancer_mlp",
            "minilm_lora",
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
        # Run lengths as fractions of a task's largest horizon.
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


get_config = common.variants(families, smoke)
