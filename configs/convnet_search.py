"""Published hyper-parameter searches of image classifiers, on emoji at 100 pixels.

``resnet50`` and ``convnext_tiny``, with ``--config.base.network.weights=FOLDER``, use
the spaces of Roumeliotis et al. (2025); ``efficientnet_lite0`` uses that of
``resnet50``; ``smoke`` is a quick check. For your own images:
``--config.base.pictures.task=FILE.jsonl``, with another ``name`` and ``results``.
"""

import ml_collections

from configs import common, convnets


def _search(name: str) -> ml_collections.ConfigDict:
    """Settings common to the published searches."""
    config = ml_collections.ConfigDict()
    config.base = convnets.get_config(name)
    # Length and evaluations are set in epochs instead.
    config.base.num_steps = 1
    del config.base.loop["eval_every"]
    config.base.seed = 42
    config.base.optimizer = dict(
        clip_norm=1.0, rate_factors=((r"^head/", 10.0),), warmup_fraction=0.0
    )
    config.epochs = dict(
        max_epochs=50,
        metric="weighted_f1",
        early_stopping=dict(metric="loss", mode="min", patience=5),
    )
    config.search = dict(
        num_trials=100,
        seed=42,
        # Optuna's default.
        startup_trials=10,
        # Epochs at the lowest rung of the pruner (min_early_stopping_rate 0).
        min_resource=5,
        reduction_factor=4,
        progress=True,
    )
    config.jobs = 1
    config.seeds = (1, 2, 3)
    config.learned = True
    config.name = name
    config.results = f"results/convnet_search/{name}.json"
    return config


def resnet50() -> ml_collections.ConfigDict:
    """ResNet-50 under Adam, reduced where validation accuracy does not rise."""
    return _plateau("resnet50")


def efficientnet_lite0() -> ml_collections.ConfigDict:
    """EfficientNet-Lite0 in the space of ResNet-50; it has no published search."""
    return _plateau("efficientnet_lite0")


def _plateau(name: str) -> ml_collections.ConfigDict:
    config = _search(name)
    config.base.optimizer.name = "adam"
    config.base.optimizer.schedule = dict(
        name="plateau", factor=0.1, patience=1, mode="max"
    )
    config.base.loop.feedback = True
    config.base.loop.best_metric = "accuracy"
    config.base.loop.best_mode = "max"
    config.space = dict(
        learning_rate=dict(kind="log", low=1e-5, high=1e-3),
        batch_size=dict(kind="choice", choices=(16, 32, 64, 128, 256)),
    )
    return config


def convnext_tiny() -> ml_collections.ConfigDict:
    """ConvNeXt-T under AdamW with cosine decay to a hundredth of the rate."""
    config = _search("convnext_tiny")
    config.base.optimizer.name = "adamw"
    config.base.optimizer.schedule = dict(name="cosine", final_fraction=0.01)
    # The published search had no pruner.
    config.search.min_resource = 0
    config.space = dict(
        learning_rate=dict(kind="log", low=1e-6, high=1e-4),
        batch_size=dict(kind="choice", choices=(8, 16, 32, 64)),
        weight_decay=dict(kind="log", low=1e-5, high=1e-2),
    )
    return config


def smoke() -> ml_collections.ConfigDict:
    """Three trials of at most two epochs on few images."""
    config = efficientnet_lite0()
    config.base.pictures.max_examples = 24
    config.base.pictures.image_size = 64
    config.base.pictures.augmented_views = 2
    config.base.pictures.feature_cache_dir = ""
    config.base.batch_size = 8
    config.epochs.max_epochs = 2
    config.search.num_trials = 3
    config.search.min_resource = 1
    config.space.batch_size.choices = (8, 12)
    config.seeds = (1, 2)
    config.name = "smoke"
    config.results = "runs/convnet_search/smoke.json"
    return config


get_config = common.variants(resnet50, convnext_tiny, efficientnet_lite0, smoke)
