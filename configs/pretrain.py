"""Pre-training of nano on emoji of several artists: ``nano_emoji``, ``smoke``."""

import ml_collections

from configs import common


def nano_emoji() -> ml_collections.ConfigDict:
    """The shipped nano weights: from scratch; more than 400 steps overfit."""
    config = common.image_text_config(num_steps=400, batch_size=128)
    config.loop.eval_every = 50
    config.loop.checkpoint_every = 100
    config.optimizer.name = "hand_designed"
    config.model.weights = ""
    config.data.name = "emoji"
    config.data.captions = "name_tags"
    config.pipeline.captions = "random"
    config.pipeline.flip = True
    config.pipeline.crop_pixels = 4
    return config


def smoke() -> ml_collections.ConfigDict:
    """A few steps."""
    config = nano_emoji()
    config.num_steps = 4
    config.batch_size = 16
    return config


def get_config(arg: str = "nano_emoji") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    variants = (nano_emoji, smoke)
    return common.choose(arg, {variant.__name__: variant for variant in variants})
