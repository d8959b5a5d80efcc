"""Balancing of modalities on classifications of the suite, by name.

``clipart_category`` is reported; ``smoke`` is a quick check.
"""

import ml_collections

from configs import common, multimodal


def task(name: str) -> ml_collections.ConfigDict:
    """AdamW at one setting, on two seeds."""
    return _balanced(multimodal.task(name), name)


def _balanced(
    config: ml_collections.ConfigDict, name: str
) -> ml_collections.ConfigDict:
    # No automatic recovery.
    config.loop.recovery.enabled = False
    config.loop.eval_every = config.loop.log_every = config.num_steps
    config.loop.evaluate_at_start = False
    # Compiles in seconds.
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-4
    config.study = dict(seeds=(1, 2))
    config.results = f"results/balancing/{name}"
    return config


def smoke() -> ml_collections.ConfigDict:
    """A few steps on few samples, on one seed."""
    config = _balanced(multimodal.smoke(), "smoke")
    config.num_steps = 2
    config.loop.eval_every = config.loop.log_every = 2
    config.study = dict(seeds=(0,))
    config.results = "runs/balancing/smoke"
    return config


get_config = common.variants(
    smoke,
    default="clipart_category",
    **{
        name: lambda name=name: task(name)
        for name in (
            *("clipart_category", "tuxpaint_speech", "tuxpaint_trimodal"),
            "emoji_category",
        )
    },
)
