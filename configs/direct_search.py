"""Search of direct weights: ``small`` for two cores; ``smoke`` shows that it runs."""

import ml_collections

from configs import common

# Where each begins, and its first standard deviation. They begin at the centre that a
# first search of seven generations reached, see docs/meta_training.md.
_DIRECT = (
    ("constant>step", 1.3, 0.24),
    ("log_num_steps>step", -0.32, 0.3),
    ("loss_known>step", -0.24, 0.24),
    ("loss_level>step", 0.7, 0.72),
    ("loss_low>step", 3.5, 0.72),
    ("usual/peak>step", 0.38, 0.3),
    ("parameter>step", -0.81, 0.3),
    ("rank_1>step", -0.93, 0.24),
    ("role_lora_a>step+role_lora_b>step", -0.12, 0.3),
    ("group_head>step", -0.27, 0.3),
    ("constant>weight_decay", 3.76, 0.6),
    ("model_matrices>weight_decay", 0.11, 0.48),
    ("constant>forget_momentum", 0.51, 0.24),
    ("constant>adam", 0.25, 0.15),
    ("constant>momentum", 0.08, 0.15),
)


def small() -> ml_collections.ConfigDict:
    """Ten families, every one in every generation; about two minutes each."""
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
                ),
                "num_steps": {
                    "digits_mlp": 600,
                    "cancer_mlp": 600,
                    "glyphs_mlp": 600,
                    "emoji_head": 1000,
                    "klettres_transformer": 400,
                    "klettres_finetune": 400,
                },
                "direct": _DIRECT,
                "generations": 3,
                "population": 15,
                "seeds": 2,
                "budgets": (1.0, 0.4),
                "rates": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
                "decays": (1e-2, 0.5),
                "error_weight": 2.0,
                "seed": 0,
                "validate_every": 1,
                "controller": {
                    "global_hidden": 24,
                    "tensor_hidden": 16,
                    "directions": ("orthogonal", "adam", "momentum"),
                    "orthogonal": True,
                },
            },
            "validation": common.meta_validation(),
            # Devices to split the CPU into; 0 leaves it (and accelerators) alone.
            "cpu_devices": 2,
            "data_dir": "",
            "export": "",
        }
    )


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
    return common.choose(arg, {v.__name__: v for v in (small, smoke)})
