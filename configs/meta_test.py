"""Meta-test: ``test`` is reported, ``validation`` chooses weights; and ``smoke``."""

import ml_collections

from configs import common


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
        # Full budget by task; a task's larger horizon where it is not named here.
        num_steps=ml_collections.ConfigDict(),
        five=("sgd", "adam", "adamw", "rmsprop", "lion"),
        further=("muon", "schedule_free_adamw", "prodigy"),
        # Run without tuning; "learned" once with each of the weights (names or paths).
        untuned=("learned", "hand_designed"),
        weights=(common.WEIGHTS,),
        budgets=(1.0, 0.75, 0.6, 0.5, 0.35, 0.25),
        # Of initialisation and batches. What is reported has other seeds than the
        # trials that settings are chosen by.
        tuning_seeds=(0,),
        seeds=(1, 2, 3),
        # Side by side in one program.
        seeds_at_once=1,
        trials_of_five=20,
        trials_of_further=8,
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
    # One yardstick is enough to choose by.
    config.meta_test.five = ("adamw",)
    config.meta_test.further = ()
    config.results = "results/meta_validation"
    return config


def smoke() -> ml_collections.ConfigDict:
    """Two trials of two baselines on scikit-learn's digits; needs no prepared data."""
    config = test()
    config.meta_test.tasks = ("digits_mlp",)
    config.meta_test.num_steps = {"digits_mlp": 30}
    config.meta_test.five = ("sgd", "adamw")
    config.meta_test.further = ()
    config.meta_test.untuned = ("hand_designed",)
    config.meta_test.budgets = (1.0, 0.5)
    config.meta_test.seeds = (1, 2)
    config.meta_test.trials_of_five = 2
    config.results = "runs/meta_test/smoke"
    return config


def get_config(arg: str = "test") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    variants = (test, validation, smoke)
    return common.choose(arg, {variant.__name__: variant for variant in variants})
