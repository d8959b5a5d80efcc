"""Meta-test: ``foreign`` and ``test`` are reported, the validations choose weights.

``foreign`` is the suite of other people's code and data, the headline result, which
chooses nothing; ``style_validation`` is of the same kind and chooses weights, as
``validation`` does; ``smoke`` needs no prepared data.
"""

import ml_collections

from configs import common

RIVALS = (
    # At one setting for all tasks: `meta_opt.optimizers.untuned.CALIBRATED`.
    "adamw_calibrated",
    "nadamw_calibrated",
    "lion_calibrated",
    "muon_calibrated",
    # At optax's defaults.
    "prodigy_default",
    "schedule_free_adamw_default",
    "dog_default",
    "mechanic_adamw_default",
    "momo_default",
    "momo_adam_default",
)


def test() -> ml_collections.ConfigDict:
    """Data sets that no meta-training and no choice of weights has seen."""
    config = ml_collections.ConfigDict()
    config.meta_test = dict(
        tasks=(
            "tuxpaint_conv",
            "tuxpaint_vit_finetune",
            "tuxpaint_clip_lora",
            "tuxpaint_trimodal",
            "tuxpaint_reader",
            "tuxpaint_writer",
            "tuxpaint_writer_lora",
            "tuxpaint_head",
            "animated_video",
        ),
        # Full budget by task; tasks not named here use their larger horizon.
        num_steps=ml_collections.ConfigDict(),
        core_baselines=("sgd", "adam", "adamw", "rmsprop", "lion"),
        extra_baselines=("muon", "schedule_free_adamw", "prodigy"),
        # Run without tuning; "learned" once for each of ``weights`` (names or paths).
        untuned=("learned", "hand_designed", *RIVALS),
        weights=(common.WEIGHTS, "lstm-v3"),
        budgets=(1.0, 0.75, 0.6, 0.5, 0.35, 0.25),
        # Seeds of initialisation and data order; tuning uses a different one.
        tuning_seeds=(0,),
        seeds=(1, 2, 3),
        # Seeds vectorised in one program.
        seeds_at_once=1,
        trials_of_core=20,
        trials_of_extra=8,
    )
    config.search = dict(
        seed=0,
        startup_trials=6,
        min_resource=0,
        reduction_factor=2,
        progress=True,
    )
    config.data_dir = ""
    config.results = "results/meta_test"
    return config


def validation() -> ml_collections.ConfigDict:
    """Held-out data sets of meta-training: to choose between weights."""
    config = test()
    config.meta_test.tasks = common.meta_validation()["tasks"]
    # Tuned AdamW alone suffices as the reference for choosing weights.
    config.meta_test.core_baselines = ("adamw",)
    config.meta_test.extra_baselines = ()
    config.meta_test.untuned = ("learned", "hand_designed")
    config.results = "results/meta_validation"
    return config


def foreign() -> ml_collections.ConfigDict:
    """Other people's code, names, initialisation and data; chooses nothing."""
    config = test()
    config.meta_test.tasks = (
        "foreign_sayings_minilm_lora",
        "foreign_docstrings_minilm",
        "foreign_manpages_lstm",
        "foreign_temperatures_lstm",
        "foreign_icons_convnext",
        "foreign_icons_fusion",
        "foreign_sayings_writer_lora",
        "foreign_kinds_few_shot",
        "foreign_code_transformer",
        "foreign_cars_regression",
        "foreign_sayings_head",
    )
    config.results = "results/foreign"
    return config


def style_validation() -> ml_collections.ConfigDict:
    """Tasks in other people's styles that weights may be chosen by."""
    config = test()
    config.meta_test.tasks = (
        "validation_clipart_resnet",
        "validation_titles_gru",
        "validation_prompts_tcn",
        "validation_currencies_bert",
        "validation_terrain_siren",
        "validation_titles_minilm_lora",
        "validation_source_llama",
        "validation_iris_mlp",
    )
    # As in `validation`.
    config.meta_test.core_baselines = ("adamw",)
    config.meta_test.extra_baselines = ()
    config.meta_test.untuned = ("learned", "hand_designed")
    config.results = "results/style_validation"
    return config


def smoke() -> ml_collections.ConfigDict:
    """Two trials of two baselines on scikit-learn's digits; needs no prepared data."""
    config = test()
    config.meta_test.tasks = ("digits_mlp",)
    config.meta_test.num_steps = {"digits_mlp": 30}
    config.meta_test.core_baselines = ("sgd", "adamw")
    config.meta_test.extra_baselines = ()
    config.meta_test.untuned = ("hand_designed",)
    config.meta_test.budgets = (1.0, 0.5)
    config.meta_test.seeds = (1, 2)
    config.meta_test.trials_of_core = 2
    config.results = "runs/meta_test/smoke"
    return config


get_config = common.variants(test, validation, foreign, style_validation, smoke)
