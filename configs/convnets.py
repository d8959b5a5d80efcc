"""Convolutional networks on labelled images: the last stage and a head are trained.

``resnet50`` and ``convnext_tiny`` with ``--config.network.weights=FOLDER``;
``efficientnet_lite0`` with its prepared weights; ``smoke`` is a quick check. For your
own images: ``--config.pictures.task=FILE.jsonl``.
"""

import ml_collections

from configs import common


def _classifier(name: str, batch_size: int) -> ml_collections.ConfigDict:
    """The published recipe on emoji at 100 pixels."""
    config = common.run_config(num_steps=300, batch_size=batch_size)
    del config["model"]
    config.loop.eval_every = 25
    config.optimizer = dict(
        name="adam",
        learning_rate=3e-4,
        clip_norm=1.0,
        # The head is trained from scratch.
        rate_factors=((r"^head/", 10.0),),
    )
    config.pictures = dict(
        task="emoji_pictures",
        augment=dict(flip=True, rotate_degrees=15.0, jitter=0.2),
        feature_cache_dir="runs/features",
    )
    config.network = dict(name=name)
    return config


def resnet50() -> ml_collections.ConfigDict:
    """ResNet-50 under Adam."""
    return _classifier("resnet50", batch_size=64)


def convnext_tiny() -> ml_collections.ConfigDict:
    """ConvNeXt-T under AdamW, with stronger augmentation."""
    config = _classifier("convnext_tiny", batch_size=32)
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 3e-5
    config.optimizer.weight_decay = 1e-3
    config.pictures.augment.update(crop_scale=0.8, hue=0.1, random_ops=2)
    return config


def efficientnet_lite0() -> ml_collections.ConfigDict:
    """EfficientNet-Lite0 under Adam."""
    return _classifier("efficientnet_lite0", batch_size=64)


def smoke() -> ml_collections.ConfigDict:
    """A few steps on few images."""
    config = efficientnet_lite0()
    config.num_steps = 4
    config.batch_size = 8
    config.loop.eval_every = 2
    config.loop.log_every = 1
    config.loop.checkpoint_every = 2
    config.pictures.max_examples = 24
    config.pictures.image_size = 64
    config.pictures.augmented_views = 2
    config.pictures.feature_cache_dir = ""
    return config


get_config = common.variants(resnet50, convnext_tiny, efficientnet_lite0, smoke)
