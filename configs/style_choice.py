"""Candidates near ``lstm-v3``: leave-one-style-out, and style validation."""

import ml_collections

from configs import common, direct_search, meta_evaluate

_STYLES = {
    "dense from scratch": (
        *("style_wine_mlp", "style_friedman_mlp", "style_diabetes_residual"),
        *("digits_mlp", "cancer_mlp"),
    ),
    "sequences from scratch": (
        *("style_digits_vit", "klettres_transformer", "style_cldr_bag"),
        *("style_cldr_gpt", "style_descriptions_llama"),
    ),
    "fields and convolutions": ("style_photos_field", "style_glyphs_conv"),
    "linear head": ("style_glyphs_head",),
    "fine-tuning": (
        *("style_emoji_vit_finetune", "emoji_vit_finetune", "klettres_finetune"),
        "style_emoji_conv_finetune",
    ),
    "last block": ("style_klettres_last_block", "style_glyphs_resnet_last_block"),
    "LoRA": (
        *("style_klettres_lora", "style_glyphs_vit_lora", "style_cldr_gpt_lora"),
        *("style_emoji_pairs_lora", "minilm_lora"),
    ),
    "layer of an encoder": (
        *("efficientnet_layer", "whisper_layer", "minilm_layer", "minilm_layer_few"),
    ),
}


# What the candidates are near, and its weight of ``loss_low``. That of the present
# default, `common.WEIGHTS`, is the one that most styles chose.
_WEIGHTS = "lstm-v3"
_LOSS_LOW = 6.0


_RULE = {"name": "hand-designed rule", "share": 0.0}
_SHIPPED = {"name": "as shipped"}


def _candidate(step: float = 0.0, loss_low: float = _LOSS_LOW) -> dict:
    """The shipped weights with steps scaled by e^step and another ``loss_low``."""
    names, change = [], {}
    if step:
        names.append(f"step e^{step}")
        change["constant>step"] = step
    if loss_low != _LOSS_LOW:
        names.append(f"loss_low {loss_low}")
        change["loss_low>step"] = loss_low - _LOSS_LOW
    return {"name": ", ".join(names), "change": change}


def shipped() -> ml_collections.ConfigDict:
    """Twelve candidates on the 28 families of the search, in one to two hours."""
    search = direct_search.small().search
    return ml_collections.ConfigDict(
        {
            "style_choice": {
                "weights": _WEIGHTS,
                "candidates": (
                    _RULE,
                    {"name": "half of the outputs", "share": 0.5},
                    _SHIPPED,
                    *(_candidate(x) for x in (-0.6, -0.3, 0.3, 0.6)),
                    *(_candidate(0.0, x) for x in (2.8, 9.0, 13.0)),
                    *(_candidate(0.3, x) for x in (9.0, 13.0)),
                ),
                "styles": ml_collections.ConfigDict(_STYLES),
                "num_steps": search.num_steps,
                "seeds": 2,
                "reference_seeds": 1,
                "budgets": search.budgets,
                "rates": search.rates,
                "decays": search.decays,
                "error_weight": search.error_weight,
                "worst_weight": search.worst_weight,
                "workers": 0,
            },
            "data_dir": "",
            "results": "results/style_choice",
        }
    )


def less_loss_low() -> ml_collections.ConfigDict:
    """Five more candidates in the direction that ``shipped`` found better."""
    config = shipped()
    config.style_choice.candidates = (
        _SHIPPED,
        _candidate(0.0, 0.0),
        *(_candidate(0.3, x) for x in (2.8, 0.0)),
        _candidate(0.6, 2.8),
    )
    config.results = "results/style_choice/less_loss_low"
    return config


def gradient_decay() -> ml_collections.ConfigDict:
    """The default with less weight on what slows a run whose losses fall by decades."""
    config = shipped()
    chosen = config.style_choice
    chosen.weights = common.WEIGHTS
    chosen.candidates = (
        _SHIPPED,
        *(
            {
                "name": f"ema/max {ema_max:g}, loss_low {loss_low:g}",
                # Differences to the shipped 0.67 and 2.8.
                "change": {
                    "ema/max>step": ema_max - 0.67,
                    "loss_low>step": loss_low - 2.8,
                },
            }
            for ema_max, loss_low in (
                *((0.33, 2.8), (0.0, 2.8), (0.67, 1.4), (0.67, 0.0)),
                *((0.33, 1.4), (0.0, 1.4), (0.0, 0.0)),
            )
        ),
    )
    config.results = "results/style_choice/gradient_decay"
    return config


def style_validation() -> ml_collections.ConfigDict:
    """Six candidates on style validation, where each task is its own style."""
    config = shipped()
    chosen = config.style_choice
    chosen.candidates = (
        _RULE,
        _SHIPPED,
        *(_candidate(x) for x in (0.3, 0.6)),
        *(_candidate(x, 2.8) for x in (0.0, 0.3)),
    )
    tasks = meta_evaluate.style_validation().meta_test.tasks
    chosen.styles = ml_collections.ConfigDict(
        {task.removeprefix("validation_"): (task,) for task in tasks}
    )
    chosen.num_steps = ml_collections.ConfigDict()
    config.results = "results/style_choice/style_validation"
    return config


def smoke() -> ml_collections.ConfigDict:
    """Two candidates on scikit-learn's data; needs no prepared data."""
    config = shipped()
    chosen = config.style_choice
    chosen.candidates = chosen.candidates[:3:2]
    chosen.styles = ml_collections.ConfigDict(
        {"digits": ("digits_mlp",), "cancer": ("cancer_mlp",)}
    )
    chosen.num_steps = ml_collections.ConfigDict({"digits_mlp": 20, "cancer_mlp": 20})
    chosen.seeds = 1
    chosen.rates = (3e-3,)
    config.results = "runs/style_choice_smoke"
    return config


get_config = common.variants(
    shipped, less_loss_low, gradient_decay, style_validation, smoke
)
