"""Optimizers compared on the suite: ``table1``; combiners of losses: ``meltr``.

``meltr_all`` trains more parameters; ``smoke`` and ``meltr_smoke`` are quick checks.
"""

import ml_collections

from configs import common, multimodal
from configs import meltr as video_text

# Weights of the stored cells that were measured before those of `common.WEIGHTS`.
EARLIER_WEIGHTS = "lstm-v3"


def table1() -> ml_collections.ConfigDict:
    """Table 1, Figures 2 and 3: six optimizers, all parameters and adapters."""
    config = ml_collections.ConfigDict()
    config.tasks = ml_collections.ConfigDict(
        {name: multimodal.task(name) for name in multimodal.SUITE}
    )
    # No automatic recovery.
    for task in config.tasks.values():
        task.loop.recovery.enabled = False
    config.optimizers = ("sgd", "adam", "adamw", "rmsprop", "lion", "learned")
    config.variants = {
        name: dict(model=dict(trainable=name)) for name in ("all", "lora")
    }
    # Seeds of initialisation and data order; tuning uses a different one.
    config.seeds = (1, 2, 3)
    config.tuning_seed = 0
    # Fractions of the full length at which the (untuned) learned optimizer is run.
    config.budgets = (1.0, 0.6, 0.35)
    config.search = dict(
        num_trials=20,
        seed=0,
        startup_trials=6,
        # Epochs before the first rung of successive halving, which keeps
        # 1 / reduction_factor of the trials.
        min_resource=2,
        reduction_factor=3,
        progress=False,
    )
    # Interleaved timing rounds over all optimizers; 0 times no steps.
    config.timing_rounds = 15
    # Weights of the timed steps. The program, and so the time, does not depend on their
    # values.
    config.timed_weights = EARLIER_WEIGHTS
    # Tasks on data used neither for meta-training nor for the choice of weights.
    config.unseen = tuple(
        t for t in multimodal.SUITE if t.startswith(("tuxpaint", "emoji"))
    )
    # Processes, each pinned to a core; 1 on an accelerator.
    config.workers = 2
    config.report = "optimizers"
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


def meltr() -> ml_collections.ConfigDict:
    """Seven ways of combining losses, four tasks, AdamW and the learned optimizer.

    A run takes one to five minutes on a core: adapters on the last layer of each
    encoder, small batches, and a narrow fusion, since some combiners take a backward
    pass for each of eight losses and AdamW is tuned for each combiner.
    """
    config = meltr_all()
    tasks = (
        *("univl_retrieval", "univl_captioning", "univl_sentiment"),
        "violet_question_answering",
    )
    config.tasks = _video_text(tasks)
    for task in config.tasks.values():
        task.batch_size = 8
        task.model.trainable = "lora"
        task.model.fusion.width = 64
        task.model.fusion.mlp_width = 256
    # Learning rates of the loss weights are those of the papers.
    config.variants = dict(
        primary=dict(meta_loss=dict(combiner="primary")),
        uncertainty=dict(meta_loss=dict(combiner="uncertainty", learning_rate=1e-2)),
        gradnorm=dict(meta_loss=dict(combiner="gradnorm", learning_rate=2.5e-2)),
        pcgrad=dict(meta_loss=dict(combiner="pcgrad")),
        **config.variants.to_dict(),
    )
    config.optimizers = ("adamw", "learned")
    config.results = "results/meltr"
    return config


def meltr_all() -> ml_collections.ConfigDict:
    """Equal weights and MELTR with all parameters of the last layers trained."""
    config = table1()
    config.tasks = _video_text(("univl_retrieval", "univl_captioning"))
    for task in config.tasks.values():
        task.optimizer.weights = EARLIER_WEIGHTS
    config.variants = dict(
        equal=dict(meta_loss=dict(combiner="equal")),
        meltr=dict(meta_loss=dict(combiner="meltr")),
        # The published network starts with derivatives of either sign; this one starts
        # at equal weights.
        meltr_residual=dict(
            meta_loss=dict(combiner="meltr", network=dict(num_losses=1, residual=True))
        ),
    )
    config.optimizers = ("learned",)
    config.budgets = (1.0,)
    # Evaluations before the first rung of successive halving.
    config.search.min_resource = 1
    # configs/meltr_throughput.py measures time.
    config.timing_rounds = 0
    config.unseen = ()
    config.report = "meltr"
    config.results = "results/meltr_all"
    return config


def _video_text(names: tuple[str, ...]) -> ml_collections.ConfigDict:
    tasks = ml_collections.ConfigDict({n: video_text.get_config(n) for n in names})
    for task in tasks.values():
        task.num_steps = 300
        task.loop.eval_every = 100
    return tasks


def meltr_smoke() -> ml_collections.ConfigDict:
    """Equal weights and MELTR under the learned optimizer for a few steps."""
    config = meltr()
    config.tasks = ml_collections.ConfigDict({"univl_retrieval": video_text.smoke()})
    config.tasks.univl_retrieval.optimizer.name = "learned"
    for name in ("primary", "uncertainty", "gradnorm", "pcgrad", "meltr_residual"):
        del config.variants[name]
    config.optimizers = ("learned",)
    config.seeds = (1, 2)
    config.workers = 1
    config.results = "runs/meltr_smoke"
    return config


get_config = common.variants(table1, smoke, meltr, meltr_all, meltr_smoke)
