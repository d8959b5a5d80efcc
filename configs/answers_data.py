"""Questions about images for pre-training: ``emoji_tuxpaint``, ``smoke``."""

import ml_collections

from configs import common


def emoji_tuxpaint() -> ml_collections.ConfigDict:
    """Emoji of four artists and Tux Paint's stamps."""
    config = ml_collections.ConfigDict()
    config.data = {}
    config.questions = {}
    config.out = "data/answers/emoji_tuxpaint"
    return config


def smoke() -> ml_collections.ConfigDict:
    """One stamp of ten, small: a quick check."""
    config = emoji_tuxpaint()
    config.data = dict(names=("tuxpaint",), width=32, every=10)
    config.out = "runs/answers/smoke_data"
    return config


get_config = common.variants(emoji_tuxpaint, smoke)
