"""``make demo``: four optimizers on one budget. ``nano`` and, for tests, ``smoke``."""

import ml_collections

from configs import common


def nano() -> ml_collections.ConfigDict:
    """Nano on bundled clip art; about a minute a run on two cores."""
    config = ml_collections.ConfigDict()
    config.base = common.image_text_config(num_steps=120, batch_size=64)
    config.base.loop.eval_every = 10
    config.base.loop.checkpoint_every = 40
    config.base.loop.keep_best = 0
    config.base.pipeline.flip = True
    config.base.pipeline.crop_pixels = 4
    # Holds a whole split, so that the loss contrasts all of it.
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
        adamw_default=dict(
            label="AdamW, default",
            # The defaults of optax.adamw at a learning rate of 1e-3.
            optimizer=dict(
                name="adamw", learning_rate=1e-3, weight_decay=1e-4, momentum=0.9
            ),
            tuned="",
        ),
        sgd=dict(
            label="SGD, default",
            optimizer=dict(name="sgd", learning_rate=1e-2, momentum=0.9),
            tuned="",
        ),
    )
    # A ConfigDict sorts its keys; the first is the subject of the comparison.
    config.order = ("learned", "adamw_tuned", "adamw_default", "sgd")
    config.reference = "adamw_tuned"
    config.num_queries = 6
    config.top = 5
    return config


def smoke() -> ml_collections.ConfigDict:
    """A few steps of each."""
    config = nano()
    config.base.num_steps = 4
    config.base.batch_size = 16
    config.base.loop.eval_every = 2
    config.base.loop.log_every = 2
    config.num_queries = 2
    return config


def get_config(arg: str = "nano") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    return common.choose(arg, {"nano": nano, "smoke": smoke})
