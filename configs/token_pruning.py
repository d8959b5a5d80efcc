"""Token pruning on animated emoji: ``retrieval`` is reported; and ``smoke``."""

import ml_collections

from configs import common, meltr


def retrieval() -> ml_collections.ConfigDict:
    """Retrieval by the cross encoder, which reads every clip with every text."""
    config = meltr.univl_retrieval()
    config.num_steps = 150
    config.loop.eval_every = 150
    config.meta_loss.combiner = "primary"
    # Compiled in seconds; what is compared are the models.
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    # 2 x 2 patches a frame, 32 a clip.
    config.clips.image_size = 64
    config.model.pruning = dict(tokens="patches")
    config.study = dict(kept_shares=(1.0, 0.5, 0.2), seeds=(0, 1))
    config.results = "results/token_pruning"
    return config


def smoke() -> ml_collections.ConfigDict:
    """A few steps on few clips, on one seed."""
    config = retrieval()
    config.num_steps = 2
    config.batch_size = 4
    config.loop.eval_every = 2
    config.clips.max_examples = 24
    config.clips.codebook_size = 8
    config.clips.feature_cache_dir = ""
    config.study = dict(kept_shares=(0.5,), seeds=(0,), rounds=1)
    config.results = "runs/token_pruning/smoke"
    return config


def get_config(arg: str = "retrieval") -> ml_collections.ConfigDict:
    """Returns the variant of that name."""
    return common.choose(arg, {v.__name__: v for v in (retrieval, smoke)})
