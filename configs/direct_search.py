"""Search of direct weights: ``small`` for two cores; ``smoke`` shows that it runs."""

import ml_collections

from configs import common

# Where each begins, and its first standard deviation: near the centre that earlier
# searches reached, see docs/meta_training.md.
_DIRECT = (
    ("constant>step", 2.06, 0.17),
    ("log_num_steps>step", -0.04, 0.21),
    ("loss_known>step", -0.05, 0.17),
    ("loss_level>step", 1.01, 0.42),
    ("loss_low>step", 4.84, 0.42),
    ("usual/peak>step", 0.35, 0.21),
    ("parameter>step", -0.34, 0.21),
    ("rank_1>step", -1.05, 0.17),
    ("role_lora_a>step+role_lora_b>step", 0.21, 0.28),
    ("group_head>step", -0.34, 0.21),
    ("constant>weight_decay", 3.72, 0.35),
    ("model_matrices>weight_decay", 0.97, 0.28),
    ("constant>forget_momentum", 0.83, 0.17),
    ("constant>adam", 0.04, 0.1),
    ("parameter>weight_decay", -0.47, 0.35),
    ("alignment>step", 0.68, 0.35),
    ("momentum/gradient>step", 1.12, 0.28),
    ("loss_noise>step", -0.23, 0.28),
    ("model_size>step", -0.4, 0.28),
    ("loss_level>weight_decay", -0.74, 0.56),
    ("past_60%>weight_decay", -0.02, 0.35),
    ("group_head>weight_decay", -1.01, 0.35),
    ("constant>forget_second", -0.19, 0.35),
    ("epochs>step", -0.75, 0.35),
    ("passes>step", -0.41, 0.42),
    ("epochs_known>step", 0.73, 0.35),
    ("epochs>weight_decay", 2.06, 0.42),
    ("epochs_known>weight_decay", -1.79, 0.35),
    ("role_lora_a>weight_decay+role_lora_b>weight_decay", -1.15, 0.7),
    # A linear model, which has one matrix, overfits less.
    ("model_matrices>step", 0.0, 0.28),
    # A contrastive model of few examples overfits most of all.
    ("two_towers>step", -2.5, 0.5),
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
                # One program for all candidates; false is faster for large models.
                "side_by_side": True,
                # Weights that what is searched is added to; "": the hand-designed rule.
                "start": "",
                "controller": {
                    "global_hidden": 24,
                    "tensor_hidden": 16,
                    "directions": ("orthogonal", "adam", "momentum"),
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


def wide() -> ml_collections.ConfigDict:
    """From the small tasks' weights to large pretrained models: twelve numbers.

    They are weights of features that are zero in every small task, and stand where
    scans of single ones ended, see docs/meta_training.md. With ``generations`` the
    search goes on from there.
    """
    config = small()
    config.search.families = (
        *("emoji_encoders", "emoji_encoder_names"),
        *("emoji_encoder_pairs", "klettres_encoder"),
        *("emoji_encoders_lora", "klettres_encoder_lora"),
        *("emoji_encoder_names_lora", "klettres_encoder_texts_lora"),
    )
    config.search.num_steps = ml_collections.ConfigDict()
    config.search.start = "lstm-v1"
    config.search.controller.iterations = (5, 2)
    config.search.side_by_side = False
    config.search.direct = (
        ("large>step", -1.8, 0.25),
        ("large_loss_low>step", 2.0, 1.0),
        ("large_loss_level>step", 1.2, 0.4),
        ("large_parameter>step", 1.5, 0.3),
        ("large_adapters>step", 0.8, 0.3),
        ("large_adapters_loss_level>step", 5.0, 1.0),
        ("large_role_lora>step", -0.85, 0.3),
        ("wide>step", -0.1, 0.2),
        ("large>orthogonal", 0.5, 0.2),
        ("large>adam", 0.25, 0.1),
        ("large>forget_momentum", -0.6, 0.3),
        ("large>weight_decay", -0.5, 0.4),
    )
    config.search.generations = 0
    config.search.population = 6
    config.search.yardstick_seeds = 1
    config.search.budgets = (1.0,)
    config.search.rates = (1e-4, 3e-4, 1e-3, 3e-3)
    config.search.decays = (5e-2,)
    config.validation.tasks = ()
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
    return common.choose(
        arg, {v.__name__: v for v in (small, from_scratch, wide, smoke)}
    )
