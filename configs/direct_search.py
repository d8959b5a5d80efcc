"""Search of direct weights: ``small`` for two cores; ``smoke`` shows that it runs."""

import ml_collections

from configs import common

# Where each begins, and its first standard deviation: near those of lstm-v3.
_DIRECT = (
    ("constant>step", 0.92, 0.3),
    ("log_num_steps>step", -0.34, 0.3),
    ("loss_known>step", 0.2, 0.3),
    ("loss_level>step", 0.58, 0.3),
    ("loss_low>step", 3.01, 0.5),
    ("ema/max>step", 0.49, 0.3),
    ("alignment_ema>step", 0.3, 0.3),
    ("alignment_ema_all>step", 0.46, 0.3),
    ("momentum/gradient>step", -0.73, 0.3),
    ("size>step", -0.09, 0.3),
    ("near_zero>step", -0.33, 0.3),
    ("moved>step", 0.43, 0.3),
    ("structure>step", -1.1, 0.3),
    ("structured>step", -1.07, 0.3),
    ("matrix>step", 0.34, 0.3),
    ("aspect>step", -0.25, 0.3),
    ("thin>step", -0.26, 0.3),
    ("width>step", 1.14, 0.3),
    ("thin>adam", 0.92, 0.3),
    ("thin>orthogonal", -0.34, 0.3),
    ("constant>adam", 0.14, 0.3),
    ("structure>adam", 0.46, 0.3),
    ("constant>one_minus_b1", 0.67, 0.3),
    ("constant>weight_decay", 0.18, 0.3),
    ("structure>weight_decay", -0.61, 0.3),
    ("loss_level>weight_decay", 0.2, 0.3),
    ("past_60%>step", 0.06, 0.3),
)


def small() -> ml_collections.ConfigDict:
    """Sixteen families, every one in every generation; about three minutes each."""
    return ml_collections.ConfigDict(
        {
            "search": {
                # Beside each other on two devices.
                "families": (
                    *("glyphs_mlp", "emoji_vit_finetune"),
                    *("emoji_vit", "cldr_writer_lora"),
                    *("klettres_transformer", "klettres_finetune"),
                    *("emoji_fusion", "emoji_head"),
                    *("cancer_mlp", "digits_mlp"),
                    *("cldr_reader", "emoji_clip_lora"),
                    *("emoji_clip_lora_few", "emoji_vit_head"),
                    *("emoji_clip_finetune", "emoji_clip"),
                ),
                "num_steps": {
                    "digits_mlp": 600,
                    "cancer_mlp": 600,
                    "glyphs_mlp": 600,
                    "emoji_head": 1000,
                    "klettres_transformer": 400,
                    "klettres_finetune": 400,
                    "cldr_reader": 250,
                    "emoji_clip_lora": 250,
                },
                "direct": _DIRECT,
                "generations": 6,
                "population": 24,
                "seeds": 1,
                "yardstick_seeds": 3,
                "budgets": (1.0, 0.4),
                "rates": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
                "decays": (1e-2, 0.5),
                "error_weight": 2.0,
                "seed": 0,
                "validate_every": 2,
                # Weight of the mean over the worst fifth of the families.
                "worst_weight": 0.5,
                # Families drawn for a generation; 0: all.
                "families_per_generation": 0,
                # Processes that share the families; 0: this one alone.
                "workers": 0,
                # One program for all candidates; false is faster for large models.
                "side_by_side": True,
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
            "cpu_devices": 2,
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
    config.validation.tasks = ()
    config.cpu_devices = 0
    return config


def get_config(arg: str = "small") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    return common.choose(arg, {v.__name__: v for v in (small, from_scratch, smoke)})
