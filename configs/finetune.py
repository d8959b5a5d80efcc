"""Fine-tuning on bundled clip art: ``nano_clipart[_lora]`` and ``smoke``."""

import ml_collections

from configs import common


def nano_clipart() -> ml_collections.ConfigDict:
    """All parameters of nano."""
    config = common.run_config(num_steps=300, batch_size=128)
    config.loop.eval_every = 25
    config.pipeline.flip = True
    config.pipeline.crop_pixels = 4
    return config


def nano_clipart_lora() -> ml_collections.ConfigDict:
    """Adapters on the attention and MLP kernels of nano."""
    config = nano_clipart()
    config.model.trainable = "lora"
    config.model.lora.pattern = r"(attention/(query|value|out)|mlp/(up|down))/kernel$"
    return config


def smoke() -> ml_collections.ConfigDict:
    """A few steps of an untrained model: whether it runs at all."""
    config = common.run_config(num_steps=4, batch_size=16)
    config.model.weights = ""
    config.optimizer.name = "hand_designed"
    config.loop.eval_every = 4
    config.loop.evaluate_at_start = False
    config.loop.log_every = 2
    config.loop.checkpoint_every = 2
    return config


def get_config(arg: str = "nano_clipart") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    variants = (nano_clipart, nano_clipart_lora, smoke)
    return common.choose(arg, {variant.__name__: variant for variant in variants})
