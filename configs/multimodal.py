"""A multimodal model on a task of the suite, by name, or on your samples (``own``).

``smoke`` is a quick check.
"""

import ml_collections

from configs import common

# By task: batch size, steps per epoch, and maximum samples per split (0 for all).
SUITE = {
    "tuxpaint_speech": (32, 16, 0),
    "tuxpaint_trimodal": (32, 16, 0),
    # Half of the samples, to save time: the table trains each of these 248 times.
    "clipart_category": (64, 15, 1000),
    "clipart_retrieval": (64, 15, 1000),
    "clipart_captions": (64, 15, 1000),
    "asterisk_commands": (32, 21, 0),
    "emoji_category": (32, 18, 0),
    "emoji_sentiment": (32, 7, 0),
}
EPOCHS = 8


def task(name: str) -> ml_collections.ConfigDict:
    """A task under the learned optimizer; all but the encoders' lower layers train."""
    batch_size, steps_per_epoch, most = SUITE[name]
    config = common.run_config(EPOCHS * steps_per_epoch, batch_size)
    config.loop.eval_every = steps_per_epoch
    config.loop.log_every = steps_per_epoch
    config.loop.checkpoint_every = steps_per_epoch
    config.loop.recovery.enabled = True
    config.inputs = dict(
        task=name,
        encoders=dict(image="efficientnet_lite0", text="minilm", audio="whisper_tiny"),
        max_examples=most,
        text_length=12,
        # Number of last layers that train (0 for all); the others are run once.
        trainable_layers=dict(image=1, text=1, audio=1),
        # Number of adjacent features averaged before the trained layers.
        pool_size=dict(audio=4),
        feature_cache_dir="runs/features",
    )
    config.model.fusion = dict(width=128, mlp_width=512, remat="none")
    config.model.captioner = {}
    config.model.lora = dict(pattern=common.ENCODER_KERNELS, alpha=8.0)
    return config


def own() -> ml_collections.ConfigDict:
    """Your own samples, ``--config.inputs.task=FILE.jsonl``.

    Steps and batch size are chosen from the number of samples.
    """
    config = task("tuxpaint_trimodal")
    config.inputs.task = "samples.jsonl"
    config.inputs.image_size = 128
    config.inputs.audio_seconds = 4.0
    config.inputs.text_length = 64
    config.inputs.caption_length = 32
    config.num_steps = config.batch_size = 0
    for key in ("eval_every", "checkpoint_every"):
        config.loop[key] = 50
    config.loop.log_every = 10
    return config


def smoke() -> ml_collections.ConfigDict:
    """A few steps on few samples."""
    config = task("tuxpaint_trimodal")
    config.num_steps = 4
    config.batch_size = 8
    config.loop.eval_every = 2
    config.loop.log_every = 1
    config.loop.checkpoint_every = 2
    config.inputs.max_examples = 24
    config.inputs.feature_cache_dir = ""
    config.optimizer.name = "hand_designed"
    return config


get_config = common.variants(
    *(own, smoke),
    default="tuxpaint_trimodal",
    **{name: lambda name=name: task(name) for name in SUITE},
)
