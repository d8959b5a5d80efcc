"""Search for a baseline's settings at a budget: ``nano_clipart_adamw``, ``smoke``."""

import ml_collections

from configs import common


def nano_clipart_adamw() -> ml_collections.ConfigDict:
    """AdamW at the budget of ``configs/demo.py``, under another seed than its."""
    config = ml_collections.ConfigDict()
    config.base = common.image_text_config(num_steps=120, batch_size=64)
    config.base.seed = 1
    config.base.loop.eval_every = 20
    config.base.loop.evaluate_at_start = False
    config.base.loop.progress = False
    config.base.optimizer.name = "adamw"
    config.base.pipeline.flip = True
    config.base.pipeline.crop_pixels = 4
    config.base.data.eval_batch_size = 176
    config.search = dict(
        num_trials=20,
        seed=0,
        startup_trials=8,
        # With cosine decay, early losses favour small steps: only half-way counts.
        min_resource=60,
        reduction_factor=2,
        progress=True,
    )
    config.space = dict(
        learning_rate=dict(kind="log", low=1e-5, high=1e-2),
        weight_decay=dict(kind="log", low=1e-4, high=1.0),
        momentum=dict(kind="choice", choices=(0.8, 0.9, 0.95)),
        warmup_fraction=dict(kind="choice", choices=(0.05, 0.1, 0.2)),
    )
    config.name = "nano_clipart_adamw"
    config.results = "results/tuned/nano_clipart_adamw.json"
    return config


def smoke() -> ml_collections.ConfigDict:
    """Two trials of a few steps."""
    config = nano_clipart_adamw()
    config.base.num_steps = 4
    config.base.batch_size = 16
    config.base.loop.eval_every = 2
    config.search.num_trials = 2
    config.search.min_resource = 0
    config.name = "smoke"
    config.results = "runs/tune/smoke.json"
    return config


def get_config(arg: str = "nano_clipart_adamw") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    variants = (nano_clipart_adamw, smoke)
    return common.choose(arg, {variant.__name__: variant for variant in variants})
