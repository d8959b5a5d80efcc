"""The framework on one task of the suite each, and ``own`` on your samples.

``smoke`` shows that it runs.
"""

import ml_collections

from configs import common

# Of each task: batch size, steps of an epoch, and samples of a split at most; 0: all.
SUITE = {
    "tuxpaint_speech": (32, 16, 0),
    "tuxpaint_trimodal": (32, 16, 0),
    # Of some 2,000, for time: the table runs each 248 times.
    "clipart_category": (64, 15, 1000),
    "clipart_retrieval": (64, 15, 1000),
    "clipart_captions": (64, 15, 1000),
    "asterisk_commands": (32, 21, 0),
    "emoji_category": (32, 18, 0),
    "emoji_sentiment": (32, 7, 0),
}
EPOCHS = 8


def task(name: str) -> ml_collections.ConfigDict:
    """A task under the learned optimizer, all parameters of what is not cut off."""
    batch_size, steps_per_epoch, most = SUITE[name]
    config = common.run_config(EPOCHS * steps_per_epoch, batch_size)
    for section in ("model", "data", "pipeline"):
        del config[section]
    config.loop.eval_every = steps_per_epoch
    config.loop.log_every = steps_per_epoch
    config.loop.checkpoint_every = steps_per_epoch
    config.loop.recovery.enabled = True
    config.inputs = dict(
        task=name,
        data_dir="",
        max_examples=most,
        max_unreadable=100,
        image_size=64,
        audio_seconds=1.6,
        text_length=12,
        caption_length=12,
        encoders=dict(image="efficientnet_lite0", text="minilm", audio="whisper_tiny"),
        # Last layers that train; 0: all. What is below is computed once.
        trainable_layers=dict(image=1, text=1, audio=1),
        # Features that are averaged below the layers that train.
        pool_size=dict(audio=4),
        feature_cache_dir="runs/features",
    )
    config.model = dict(
        fusion=dict(
            width=128,
            depth=2,
            heads=4,
            mlp_width=512,
            video_depth=1,
            frames=8,
            dtype="float32",
            param_dtype="float32",
            remat="none",
            scan_layers=True,
        ),
        embed_dim=64,
        captioner=dict(width=128, depth=2, heads=4),
        # lora: adapters on the encoders, and all that is new.
        trainable="all",
        lora=dict(
            # Linear layers, at a token or at a pixel.
            pattern=(
                r"^encoders/.*(attention/(query|key|value|out)|mlp/(up|down)"
                r"|(expand|project|head)/conv)/kernel$"
            ),
            groups=(),
            rank=8,
            alpha=8.0,
            rs_lora=False,
        ),
    )
    return config


def own() -> ml_collections.ConfigDict:
    """Your own samples, ``--config.inputs.task=FILE.jsonl``."""
    config = task("tuxpaint_trimodal")
    config.inputs.task = "samples.jsonl"
    config.inputs.image_size = 128
    config.inputs.audio_seconds = 4.0
    config.inputs.text_length = 64
    config.inputs.caption_length = 32
    config.loop.num_steps = 500
    for key in ("eval_every", "checkpoint_every"):
        config.loop[key] = 50
    config.loop.log_every = 10
    return config


def smoke() -> ml_collections.ConfigDict:
    """A few steps on few samples."""
    config = task("tuxpaint_trimodal")
    config.loop.num_steps = 4
    config.loop.batch_size = 8
    config.loop.eval_every = 2
    config.loop.log_every = 1
    config.loop.checkpoint_every = 2
    config.inputs.max_examples = 24
    config.inputs.feature_cache_dir = ""
    config.optimizer.name = "hand_designed"
    return config


def get_config(arg: str = "tuxpaint_trimodal") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    variants = {name: lambda name=name: task(name) for name in SUITE}
    return common.choose(arg, {**variants, "own": own, "smoke": smoke})
