"""Meta-training: ``small`` makes `lstm-v0` on two cores; ``smoke`` shows it runs."""

import ml_collections

from configs import common


def small() -> ml_collections.ConfigDict:
    """Seven small families; the recipe of ``lstm-v0``."""
    return ml_collections.ConfigDict(
        {
            "meta": {
                "families": (
                    "emoji_clip_finetune",
                    "emoji_head",
                    "emoji_clip_lora",
                    "emoji_mlp",
                    "emoji_clip_finetune",
                    "emoji_vit",
                    "digits_mlp",
                    "emoji_clip",
                ),
                "outer_steps": 560,
                "pairs": 12,
                "sigma": 0.05,
                "learning_rate": 5e-3,
                "seed": 0,
                "reparametrisation": 2.0,
                "error_weight": 1.0,
                "weight_decay": 1.0,
                "checkpoint_every": 50,
                "budget_seconds": 0.0,
                "controller": {
                    "global_hidden": 24,
                    "tensor_hidden": 16,
                    "directions": ("orthogonal", "adam", "momentum"),
                    "orthogonal": True,
                },
            },
            "data_dir": "",
            "export": "",
        }
    )


def smoke() -> ml_collections.ConfigDict:
    """A few outer steps on scikit-learn's digits; needs no prepared data."""
    config = small()
    config.meta.families = ("digits_mlp",)
    config.meta.outer_steps = 4
    config.meta.pairs = 2
    config.meta.checkpoint_every = 2
    return config


def get_config(arg: str = "small") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    return common.choose(arg, {v.__name__: v for v in (small, smoke)})
