"""Token pruning on animated emoji: ``all_in_one`` and ``univl`` are reported.

``smoke`` is a quick check.
"""

import ml_collections

from configs import common, meltr


def all_in_one() -> ml_collections.ConfigDict:
    """Retrieval by clip and text embeddings alone: metrics on two seeds."""
    return _pruned(meltr.all_in_one_retrieval(), "all_in_one")


def univl() -> ml_collections.ConfigDict:
    """Retrieval by the cross encoder, which reads every clip with every text.

    Only steps are timed, since a run takes long on a CPU; ``--config.study.seeds=0,1``
    trains the model as well.
    """
    config = _pruned(meltr.univl_retrieval(), "univl")
    config.study.seeds = ()
    config.study.rounds = 9
    return config


def _pruned(config: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    config.num_steps = 150
    config.loop.eval_every = 150
    config.meta_loss.combiner = "primary"
    # Compiles in seconds; only the models are compared.
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    # 2 x 2 patches per frame, 32 per clip.
    config.clips.image_size = 64
    config.model.pruning = dict(tokens="patches")
    config.study = dict(kept_shares=(1.0, 0.5, 0.2), seeds=(0, 1))
    config.results = f"results/token_pruning/{name}"
    return config


def smoke() -> ml_collections.ConfigDict:
    """A few steps on few clips, on one seed."""
    config = univl()
    config.num_steps = 2
    config.batch_size = 4
    config.loop.eval_every = 2
    config.clips.max_examples = 24
    config.clips.codebook_size = 8
    config.clips.feature_cache_dir = ""
    config.study = dict(kept_shares=(0.5,), seeds=(0,), rounds=1)
    config.results = "runs/token_pruning/smoke"
    return config


get_config = common.variants(all_in_one, univl, smoke)
