"""Meta-training of the LSTMs: ``small``, then ``longer``; ``smoke`` is a quick check.

Both start from direct weights, which ``configs/direct_search.py`` finds; ``direct``
trains these by evolution strategies instead. ``residual`` trains LSTMs on top of the
shipped weights.
"""

import ml_collections

from configs import common

_FAMILIES = (
    # In pairs of about equal cost, one for each of two devices.
    *("emoji_vit", "cldr_writer_lora"),
    *("digits_mlp", "cancer_mlp"),
    *("emoji_vit_finetune", "emoji_clip_lora"),
    *("klettres_transformer", "cldr_writer"),
    *("emoji_head", "glyphs_mlp"),
    *("emoji_clip_finetune", "emoji_clip"),
    *("digits_conv", "emoji_conv_finetune"),
    *("klettres_finetune", "cldr_reader"),
    *("emoji_fusion", "glyphs_conv"),
)

# Direct weights from features to outputs, see meta_opt/optimizers/controller.py.
_STEP = (
    *("constant", "log_num_steps", "past_60%", "past_90%", "loss_known"),
    *("loss_level", "loss_low", "feedback_over_best", "ema/max", "moved"),
    *("momentum/gradient", "alignment_ema", "alignment_ema_all", "size", "near_zero"),
    *("structure", "structured", "matrix", "aspect", "thin", "width"),
)
_DIRECT = (
    *(f"{feature}>step" for feature in _STEP),
    *("constant>weight_decay", "log_num_steps>weight_decay", "loss_level>weight_decay"),
    *("size>weight_decay", "structure>weight_decay"),
    *("constant>one_minus_b1", "log_num_steps>one_minus_b1"),
    *("constant>adam", "structure>adam", "thin>adam", "constant>momentum"),
)


def direct() -> ml_collections.ConfigDict:
    """Evolution strategies over whole, long runs; direct weights only, no LSTM yet."""
    return ml_collections.ConfigDict(
        {
            "meta": {
                "families": _FAMILIES,
                "outer_steps": 252,
                "estimator": "es",
                # "particles": one family per step, its particles on all devices.
                "parallel": "families",
                "particles": 2,
                "pairs": 12,
                "sigma": 0.3,
                "learning_rate": 0.04,
                "seed": 0,
                "augmentation": {
                    "reparametrisation": 1.5,
                    "subset": 0.15,
                    "batch": 0.25,
                    "label_noise": 0.2,
                    "low_precision": 0.25,
                    "sparse": 0.1,
                },
                "error_weight": 2.0,
                "weight_decay": 0.0,
                "checkpoint_every": 9,
                "validate_every": 36,
                "stop_after": 0,
                "budget_seconds": 0.0,
                "controller": {
                    "global_hidden": 24,
                    "tensor_hidden": 16,
                    "directions": ("orthogonal", "adam", "momentum"),
                    "orthogonal": True,
                },
                "direct": _DIRECT,
                "keep_direct": False,
                "shortest": 80,
                "longest": (),
                "rates": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
                "least_budget": 0.4,
            },
            # Initial weights: a shipped name or a path; "" for random LSTMs.
            "start": "",
            "validation": common.meta_validation(),
            # Number of virtual CPU devices; 0 uses the devices as they are.
            "cpu_devices": 2,
            "data_dir": "",
            "export": "",
            # Exported weights: the "best" by meta-validation or the "last", and how far
            # to interpolate from ``start`` to them.
            "export_from": "best",
            "export_share": 1.0,
        }
    )


def small() -> ml_collections.ConfigDict:
    """The LSTMs, by back-propagation through whole runs of up to 120 steps."""
    config = direct()
    config.meta.families = (
        *("emoji_vit", "cldr_writer_lora"),
        *("digits_mlp", "cancer_mlp"),
        *("emoji_vit_finetune", "klettres_transformer"),
        *("emoji_head", "glyphs_mlp"),
        *("emoji_clip_finetune", "emoji_clip_lora_few"),
        *("emoji_fusion", "klettres_finetune"),
        *("emoji_vit_head", "cldr_reader"),
    )
    config.meta.estimator = "bptt"
    config.meta.outer_steps = 420
    config.meta.validate_every = 84
    config.meta.checkpoint_every = 21
    config.meta.learning_rate = 3e-3
    config.meta.weight_decay = 0.3
    config.meta.direct = ()
    config.meta.keep_direct = True
    config.meta.shortest = 1
    # Gradients of different seeds agree on short runs, and these compile sooner.
    config.meta.longest = ((0, 120),)
    config.meta.particles = 3
    return config


def longer() -> ml_collections.ConfigDict:
    """From the weights of ``small``: runs of up to 240 steps, accuracy counts more."""
    config = small()
    config.meta.outer_steps = 280
    config.meta.validate_every = 56
    config.meta.checkpoint_every = 14
    config.meta.learning_rate = 1.5e-3
    config.meta.error_weight = 3.0
    config.meta.seed = 1
    config.meta.longest = ((0, 240),)
    # The mean of start and end, best on meta-validation at all budgets (see docs).
    config.export_share = 0.5
    return config


def residual() -> ml_collections.ConfigDict:
    """LSTMs on top of the shipped weights, which do not use theirs; for one core."""
    config = small()
    config.start = common.WEIGHTS
    config.meta.families = (
        *("style_digits_vit", "emoji_vit_finetune", "style_wine_mlp"),
        *("style_glyphs_conv", "style_cldr_gpt_lora", "style_emoji_vit_finetune"),
        *("style_glyphs_head", "style_diabetes_residual", "klettres_finetune"),
        "style_klettres_lora",
    )
    config.meta.controller.directions = ("orthogonal", "adam")
    config.meta.controller.iterations = (5, 5)
    config.meta.outer_steps = 960
    config.meta.checkpoint_every = 16
    config.meta.validate_every = 0
    config.meta.longest = ((0, 200),)
    config.meta.particles = 2
    # Style validation chooses the weights (see docs).
    config.validation.tasks = ()
    config.export_from = "last"
    config.cpu_devices = 0
    return config


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


get_config = common.variants(direct, small, longer, residual, smoke, default="small")
