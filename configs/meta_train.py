"""Meta-training: ``small`` is for two cores; ``smoke`` shows that it runs."""

import ml_collections

from configs import common


def small() -> ml_collections.ConfigDict:
    """Twelve families on six data sets; back-propagation through whole runs."""
    return ml_collections.ConfigDict(
        {
            "meta": {
                # In pairs of about equal cost: two devices take one each.
                "families": (
                    "emoji_vit_finetune",
                    "klettres_transformer",
                    "digits_mlp",
                    "emoji_head",
                    "emoji_clip_lora",
                    "cldr_writer_lora",
                    "glyphs_mlp",
                    "cancer_mlp",
                    "emoji_clip_finetune",
                    "cldr_reader",
                    "digits_conv",
                    "emoji_conv_finetune",
                ),
                "outer_steps": 210,
                "estimator": "bptt",
                # "particles": one family a step, its particles on all devices.
                "parallel": "families",
                "particles": 3,
                "learning_rate": 5e-3,
                "seed": 0,
                "augmentation": {
                    "reparametrisation": 1.5,
                    "subset": 0.15,
                    "label_noise": 0.2,
                    "low_precision": 0.25,
                },
                "error_weight": 1.0,
                "weight_decay": 0.3,
                "checkpoint_every": 15,
                "validate_every": 30,
                "stop_after": 0,
                "budget_seconds": 0.0,
                "controller": {
                    "global_hidden": 24,
                    "tensor_hidden": 16,
                    "directions": ("orthogonal", "adam", "momentum"),
                    "orthogonal": True,
                },
            },
            "validation": {
                "tasks": (
                    "clipart_conv",
                    "clipart_vit_finetune",
                    "clipart_writer_lora",
                    "clipart_head",
                ),
                "baseline": "adamw",
                "results": "results/meta_validation",
            },
            # Devices to split the CPU into; 0 leaves it (and accelerators) alone.
            "cpu_devices": 2,
            "data_dir": "",
            "export": "",
        }
    )


def smoke() -> ml_collections.ConfigDict:
    """A few outer steps on scikit-learn's digits; needs no prepared data."""
    config = small()
    config.meta.families = ("digits_mlp",)
    config.meta.outer_steps = 4
    config.meta.particles = 2
    config.meta.checkpoint_every = 2
    config.validation.tasks = ()
    config.cpu_devices = 0
    return config


def get_config(arg: str = "small") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    return common.choose(arg, {v.__name__: v for v in (small, smoke)})
