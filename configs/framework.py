"""The framework compared with plain fine-tuning on the suite: ``suite``, ``smoke``."""

import ml_collections

from configs import common, multimodal, tables


def suite() -> ml_collections.ConfigDict:
    """Gains of best checkpoint, readout and `meta_opt.fit`, three seeds each."""
    config = ml_collections.ConfigDict()
    config.tasks = tables.table1().tasks
    # Weights of the cells that are not in Table 1.
    config.weights = tables.EARLIER_WEIGHTS
    # The first is the reference.
    config.stages = (
        dict(name="AdamW, tuned", optimizer="adamw"),
        dict(name="AdamW, best checkpoint", optimizer="adamw", part="best checkpoint"),
        dict(name="AdamW, readout", optimizer="adamw", part="readout"),
        dict(name="learned, LoRA", trainable="lora"),
        dict(name="learned"),
        dict(name="learned, best checkpoint", part="best checkpoint"),
        dict(name="learned, readout", part="readout"),
        dict(name="framework", part="fit"),
    )
    config.seeds = (1, 2, 3)
    # Preset of `meta_opt.fit`.
    config.preset = "good"
    # Stored tuned settings, and runs without checkpoint selection.
    config.table1 = "results/table1"
    config.results = "results/framework"
    return config


def smoke() -> ml_collections.ConfigDict:
    """One seed of a few stages on few samples of one task; needs its Table 1 cells."""
    config = suite()
    task = multimodal.task("tuxpaint_trimodal")
    task.inputs.max_examples = 40
    task.num_steps = 4
    task.batch_size = 8
    task.loop.eval_every = task.loop.log_every = 2
    config.tasks = ml_collections.ConfigDict({"tuxpaint_trimodal": task})
    parts = ("AdamW, tuned", "learned, readout", "framework")
    config.stages = tuple(x for x in config.stages if x["name"] in parts)
    config.seeds = (1,)
    config.preset = "fast"
    config.results = "runs/framework_smoke"
    return config


get_config = common.variants(suite, smoke)
