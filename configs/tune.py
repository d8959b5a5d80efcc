"""Tuning of a baseline at a budget: ``nano_clipart_adamw``, ``smoke``.

``openclipart_answers_adamw``: AdamW for the phases of ``configs/progressive.py``.
"""

import ml_collections

from configs import common, progressive


def nano_clipart_adamw() -> ml_collections.ConfigDict:
    """AdamW at the budget of ``configs/demo.py``, with a different seed."""
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
        # With cosine decay, early losses favour small steps: prune only half-way.
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


def openclipart_answers_adamw() -> ml_collections.ConfigDict:
    """AdamW by 100 trials of three epochs over the examples of all phases.

    For ``adamw_tuned`` of ``configs/progressive.py:openclipart_reduced``.
    """
    config = nano_clipart_adamw()
    base = progressive.openclipart_reduced()
    folder = f"{base.study.folder}/{base.study.width}"
    for section in ("study", "optimizers"):
        del base[section]
    base.data.name = f"{folder}/train.jsonl"
    base.data.validation = f"{folder}/validation.jsonl"
    base.data.test = f"{folder}/test.jsonl"
    base.num_steps = 3 * 840 // base.batch_size
    base.loop.eval_every = 840 // base.batch_size
    base.loop.progress = False
    base.optimizer = dict(name="adamw")
    # Room for the list of 30 categories, and for an answer.
    base.pipeline.prompt_length = 192
    base.pipeline.text_length = 16
    config.base = base
    config.search.num_trials = 100
    config.search.startup_trials = 10
    config.search.min_resource = base.loop.eval_every
    config.search.reduction_factor = 3
    config.name = "openclipart_answers_adamw"
    config.results = "results/tuned/openclipart_answers_adamw.json"
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


get_config = common.variants(nano_clipart_adamw, openclipart_answers_adamw, smoke)
