"""Pre-training: ``nano_emoji`` on emoji of several artists, ``smoke``.

``answers``: a generative model from pretrained parts; ``answers_smoke``.
"""

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


def answers() -> ml_collections.ConfigDict:
    """EfficientNet-Lite0 and a decoder with MiniLM's token embeddings.

    On the questions of ``configs/answers_data.py:emoji_tuxpaint``. Tower and embeddings
    are frozen, since training would spoil the embeddings of words that no answer has.
    The tower reads each image once.
    """
    config = common.image_text_config(num_steps=1200, batch_size=16)
    config.loop.eval_every = 300
    config.loop.checkpoint_every = 60
    config.loop.evaluate_at_start = False
    config.optimizer.name = "hand_designed"
    config.model.weights = ""
    config.model.size = "lite0-answers"
    config.model.processor = "data/encoders/minilm"
    config.model.parts = dict(image="efficientnet_lite0", text="minilm")
    config.model.loss = "captioning"
    config.model.trainable = "layers"
    config.model.cache_features = True
    config.model.remat = "none"
    config.data.name = "data/answers/emoji_tuxpaint/train.jsonl"
    config.data.validation = "data/answers/emoji_tuxpaint/validation.jsonl"
    config.data.test = "data/answers/emoji_tuxpaint/test.jsonl"
    config.data.max_evaluated = 200
    config.data.eval_batch_size = 25
    config.pipeline.text_length = 20
    config.pipeline.prompt_length = 112
    config.export.path = "runs/answers/model"
    config.export.format = "model"
    return config


def answers_smoke() -> ml_collections.ConfigDict:
    """A few steps of a small model on ``configs/answers_data.py:smoke``."""
    config = answers()
    config.num_steps = 4
    config.batch_size = 8
    config.model.size = "nano-answers"
    config.model.parts.image = ""
    for split in ("train", "validation", "test"):
        key = "name" if split == "train" else split
        config.data[key] = f"runs/answers/smoke_data/{split}.jsonl"
    config.export.path = "runs/answers/smoke_model"
    return config


get_config = common.variants(nano_emoji, smoke, answers, answers_smoke)
