"""``make demo``: optimizers at one budget; ``nano`` and, for tests, ``smoke``."""

import ml_collections

from configs import common
from configs.meta_evaluate import RIVALS


def nano() -> ml_collections.ConfigDict:
    """On bundled data: titles from scratch, then nano on images and titles."""
    config = ml_collections.ConfigDict()
    config.untuned = dict(
        tasks=("demo_titles_writer",),
        num_steps={"demo_titles_writer": 250},
        untuned=("learned", "hand_designed", *RIVALS),
        weights=(common.WEIGHTS,),
        budgets=(1.0,),
        seeds=(1, 2, 3),
        seeds_at_once=3,
    )
    config.base = common.image_text_config(num_steps=120, batch_size=64)
    config.base.loop.eval_every = 10
    config.base.loop.checkpoint_every = 40
    config.base.loop.keep_best = 0
    config.base.pipeline.flip = True
    config.base.pipeline.crop_pixels = 4
    # A whole split in one batch, so that the contrastive loss covers all of it.
    config.base.data.eval_batch_size = 176
    config.runs = dict(
        learned=dict(
            label=f"learned, {common.WEIGHTS}",
            optimizer=dict(name="learned", weights=common.WEIGHTS),
            tuned="",
        ),
        adamw_tuned=dict(
            label="AdamW, tuned",
            optimizer=dict(name="adamw"),
            tuned="results/tuned/nano_clipart_adamw.json",
        ),
    )
    # ConfigDict sorts its keys; the first is the subject of the comparison.
    config.order = ("learned", "adamw_tuned")
    config.reference = "adamw_tuned"
    config.num_queries = 6
    config.top = 5
    return config


def smoke() -> ml_collections.ConfigDict:
    """A few steps of each."""
    config = nano()
    config.untuned.tasks = ("digits_mlp",)
    config.untuned.num_steps = {"digits_mlp": 20}
    config.untuned.untuned = ("adamw_calibrated", "dog_default")
    config.base.num_steps = 4
    config.base.batch_size = 16
    config.base.loop.eval_every = 2
    config.base.loop.log_every = 2
    config.num_queries = 2
    return config


get_config = common.variants(nano, smoke)
