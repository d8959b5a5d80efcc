"""Search of direct weights: ``small`` for two cores; ``smoke`` shows that it runs."""

import ml_collections

from configs import common

# Where each begins, and its first standard deviation: the numbers of lstm-v3.
_DIRECT = (
    ("constant>step", 0.0, 0.3),
    ("log_num_steps>step", -0.15, 0.3),
    ("loss_level>step", 0.13, 0.3),
    ("loss_low>step", 2.77, 0.5),
    ("reach>step", -0.61, 0.3),
    ("ema/max>step", 0.05, 0.3),
    ("alignment_ema>step", 0.04, 0.3),
    ("momentum/gradient>step", -0.5, 0.3),
    ("size>step", 2.0, 0.3),
    ("near_zero>step", 1.35, 0.3),
    ("structure>step", -1.27, 0.3),
    ("structured>step", -1.82, 0.3),
    ("thin>step", -0.47, 0.3),
    ("width>step", 0.63, 0.3),
    ("thin>adam", 1.07, 0.3),
    ("thin>orthogonal", -0.1, 0.3),
    ("structure>adam", 0.33, 0.3),
    ("constant>one_minus_b1", 0.94, 0.3),
    ("constant>weight_decay", 0.63, 0.3),
)


def small() -> ml_collections.ConfigDict:
    """Fifteen families in many styles, every one in every generation.

    Two to four minutes a generation on two cores. With ``generations`` 0 the numbers
    are written as they stand: those of ``lstm-v3``.
    """
    return ml_collections.ConfigDict(
        {
            "search": {
                # In turn on the workers: heavy ones beside light ones.
                "families": (
                    *("minilm_layer_few", "efficientnet_layer"),
                    *("style_glyphs_resnet_last_block", "minilm_lora"),
                    *("style_wine_mlp", "klettres_transformer"),
                    *("style_glyphs_vit_lora", "style_cldr_gpt_lora"),
                    *("klettres_finetune", "style_klettres_conv"),
                    *("style_glyphs_conv", "cancer_mlp"),
                    *("style_photos_field", "style_friedman_mlp"),
                    "style_glyphs_head",
                ),
                "num_steps": {
                    "style_wine_mlp": 200,
                    "style_friedman_mlp": 250,
                    "style_photos_field": 200,
                    "cancer_mlp": 400,
                    "style_glyphs_head": 300,
                    "style_glyphs_vit_lora": 200,
                    "style_glyphs_resnet_last_block": 150,
                    "klettres_finetune": 200,
                    "style_cldr_gpt_lora": 200,
                    "style_glyphs_conv": 150,
                    "style_klettres_conv": 150,
                    "minilm_lora": 80,
                    "efficientnet_layer": 80,
                    "minilm_layer_few": 50,
                    "klettres_transformer": 150,
                },
                "direct": _DIRECT,
                "generations": 6,
                "population": 11,
                "seeds": 1,
                "yardstick_seeds": 2,
                "budgets": (1.0, 0.5),
                "rates": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
                "decays": (1e-2,),
                "error_weight": 2.0,
                "seed": 0,
                "validate_every": 2,
                # Weight of the mean over the worst fifth of the families.
                "worst_weight": 0.5,
                # Of the squared distance from where the search began.
                "pull": 0.03,
                # Families drawn for a generation; 0: all.
                "families_per_generation": 0,
                # Processes that share the families; 0: this one alone.
                "workers": 2,
                # One program for all candidates; false is faster for large models.
                "side_by_side": False,
                # Weights that what is searched is added to; "": the hand-designed rule.
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
            # Devices to split the CPU into; 0 leaves it (and accelerators) alone.
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
    config.search.side_by_side = True
    config.validation.tasks = ()
    return config


def get_config(arg: str = "small") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    return common.choose(arg, {v.__name__: v for v in (small, from_scratch, smoke)})
