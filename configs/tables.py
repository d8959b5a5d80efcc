"""The comparison of optimizers on the suite: ``table1``, and ``smoke``."""

import ml_collections

from configs import common, multimodal


def table1() -> ml_collections.ConfigDict:
    """Table 1, Figures 2 and 3: six optimizers, all parameters and adapters."""
    config = ml_collections.ConfigDict()
    config.tasks = ml_collections.ConfigDict(
        {name: multimodal.task(name) for name in multimodal.SUITE}
    )
    # The optimizers themselves are compared: nothing comes to their help.
    for task in config.tasks.values():
        task.loop.recovery.enabled = False
    config.optimizers = ("sgd", "adam", "adamw", "rmsprop", "lion", "learned")
    config.variants = {
        name: dict(model=dict(trainable=name)) for name in ("all", "lora")
    }
    # Of initialisation and batches; trials have another.
    config.seeds = (1, 2, 3)
    config.tuning_seed = 0
    # Shares of the full length that the learned optimizer is run at; it is not tuned.
    config.budgets = (1.0, 0.6, 0.35)
    config.search = dict(
        num_trials=20,
        seed=0,
        startup_trials=6,
        # Epochs; one trial in so many goes on from there.
        min_resource=2,
        reduction_factor=3,
        progress=False,
    )
    # Of all optimizers' steps, taking turns.
    config.timing_rounds = 15
    # On data that had no part in meta-training, nor in the choice of weights.
    config.unseen = tuple(
        t for t in multimodal.SUITE if t.startswith(("tuxpaint", "emoji"))
    )
    # Processes, each on a core of its own; 1 on an accelerator.
    config.workers = 2
    config.results = "results/table1"
    return config


def smoke() -> ml_collections.ConfigDict:
    """Two trials and two seeds of two optimizers on few samples of one task."""
    config = table1()
    config.tasks = ml_collections.ConfigDict({"tuxpaint_trimodal": multimodal.smoke()})
    config.optimizers = ("adamw", "learned")
    del config.variants["all"]
    config.seeds = (1, 2)
    config.budgets = (1.0, 0.5)
    config.search.num_trials = 2
    config.search.startup_trials = 1
    config.search.min_resource = 1
    config.timing_rounds = 2
    config.workers = 1
    config.results = "runs/table1_smoke"
    return config


def get_config(arg: str = "table1") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    return common.choose(arg, {"table1": table1, "smoke": smoke})
