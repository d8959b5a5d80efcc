"""Search of direct weights: ``small``, ``from_scratch``; ``smoke`` is a quick check."""

import ml_collections

from configs import common

# Initial mean and standard deviation of each weight; the means are those of lstm-v4.
_DIRECT = (
    ("constant>step", -0.13, 0.3),
    ("log_num_steps>step", -0.5, 0.3),
    ("loss_level>step", 0.06, 0.3),
    ("loss_low>step", 2.8, 0.5),
    ("reach>step", -0.56, 0.3),
    ("ema/max>step", 0.67, 0.3),
    ("alignment_ema>step", 0.18, 0.3),
    ("momentum/gradient>step", -0.56, 0.3),
    ("size>step", 1.39, 0.3),
    ("near_zero>step", 1.34, 0.3),
    ("structure>step", -0.88, 0.3),
    ("structured>step", -1.36, 0.3),
    ("thin>step", -0.7, 0.3),
    ("width>step", 0.21, 0.3),
    ("thin>adam", 0.98, 0.3),
    ("thin>orthogonal", -0.18, 0.3),
    ("structure>adam", 0.41, 0.3),
    ("constant>one_minus_b1", 1.23, 0.3),
    ("constant>weight_decay", 0.67, 0.3),
    ("matrix>step", 0.18, 0.3),
    ("aspect>step", -0.08, 0.3),
    ("reach_known>step", 0.16, 0.3),
    ("past_60%>step", 0.23, 0.3),
    ("structure>weight_decay", 0.04, 0.3),
    ("constant>one_minus_b2", -0.09, 0.3),
    ("loss_slope_1>step", -0.27, 0.3),
    ("log_num_steps>one_minus_b1", 0.08, 0.3),
)


# Run length by family.
_STEPS = {
    "style_digits_vit": 300,
    "style_glyphs_conv": 200,
    "style_cldr_gpt": 400,
    "style_emoji_conv_finetune": 200,
    "style_descriptions_llama": 300,
    "minilm_layer": 150,
    "whisper_layer": 120,
    "efficientnet_layer": 150,
    "klettres_transformer": 400,
    "style_emoji_pairs_lora": 300,
    "minilm_layer_few": 120,
    "style_klettres_last_block": 300,
    "style_glyphs_vit_lora": 300,
    "emoji_vit_finetune": 250,
    "style_cldr_gpt_lora": 300,
    "style_wine_mlp": 1000,
    "style_friedman_mlp": 800,
    "style_glyphs_head": 800,
    "cancer_mlp": 800,
    "style_glyphs_resnet_last_block": 150,
    "minilm_lora": 150,
    "style_photos_field": 800,
    "klettres_finetune": 300,
    "digits_mlp": 800,
    "style_cldr_bag": 500,
    "style_klettres_lora": 250,
    "style_diabetes_residual": 500,
    "style_emoji_vit_finetune": 250,
}


def small() -> ml_collections.ConfigDict:
    """Twenty-eight families in many styles, all of them in every generation.

    Sized for an accelerator: eleven seconds per generation on an H200 with 14 workers.
    On two CPU cores set ``population`` to 11 and ``workers`` to 2, for some 15 minutes
    per generation. With ``generations`` 0 the initial means, the weights of
    ``lstm-v4``, are exported unchanged.
    """
    return ml_collections.ConfigDict(
        {
            "search": {
                # Assigned to the workers in turn, heavy ones beside light ones.
                "families": tuple(_STEPS),
                "num_steps": _STEPS,
                "direct": _DIRECT,
                "generations": 29,
                "population": 47,
                "seeds": 1,
                "reference_seeds": 1,
                "budgets": (1.0, 0.5),
                "rates": (3e-4, 1e-3, 3e-3, 1e-2),
                "decays": (1e-2,),
                "error_weight": 2.0,
                "seed": 0,
                "validate_every": 2,
                # Weight of the mean over the worst fifth of the families.
                "worst_weight": 0.5,
                # Penalty on the squared distance from the initial means.
                "pull": 0.03,
                # Families sampled per generation; 0 for all.
                "families_per_generation": 0,
                # Worker processes; 0 evaluates in this process.
                "workers": 14,
                # Vectorise the candidates in one program; false is faster on a CPU.
                "side_by_side": True,
                # Weights that the searched ones are added to; "": hand-designed rule.
                "start": "",
                "controller": {
                    "global_hidden": 24,
                    "tensor_hidden": 16,
                    "directions": ("orthogonal", "adam"),
                    "orthogonal": True,
                    "iterations": (5, 5),
                },
            },
            "validation": common.meta_validation(),
            # Number of virtual CPU devices; 0 uses the devices as they are.
            "cpu_devices": 0,
            "data_dir": "",
            "export": "",
        }
    )


def from_scratch() -> ml_collections.ConfigDict:
    """An ablation: ``small`` without fine-tuning, LoRA and linear heads."""
    config = small()
    config.search.families = (
        *("glyphs_mlp", "emoji_vit"),
        *("klettres_transformer", "emoji_fusion"),
        *("cancer_mlp", "digits_mlp"),
        *("cldr_reader", "emoji_clip"),
    )
    for name in set(config.search.num_steps) - set(config.search.families):
        del config.search.num_steps[name]
    return config


def smoke() -> ml_collections.ConfigDict:
    """Two small generations on scikit-learn's digits; needs no prepared data."""
    config = small()
    config.search.families = ("digits_mlp",)
    config.search.num_steps = ml_collections.ConfigDict({"digits_mlp": 20})
    config.search.direct = (("constant>step", 0.0, 0.5),)
    config.search.generations = 2
    config.search.population = 4
    config.search.rates = (3e-3,)
    config.search.decays = (1e-2,)
    config.search.workers = 0
    config.validation.tasks = ()
    return config


get_config = common.variants(small, from_scratch, smoke)
