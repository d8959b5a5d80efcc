"""Other libraries on the same data and encoder.

``texts``, ``small``, ``images``, ``smoke``.
"""

import ml_collections

from configs import common


def texts() -> ml_collections.ConfigDict:
    """`meta_opt.fit`, AutoGluon, Trainer and PEFT; three tasks, three seeds."""
    config = ml_collections.ConfigDict()
    # Training, validation and test texts; few, since AutoGluon takes two CPU seconds
    # per text.
    config.tasks = {
        name: (200, 100, 400) for name in ("docstrings", "sayings", "titles")
    }
    config.peers = (
        dict(name="meta_opt.fit, good", script="with_meta_opt", setting="good"),
        dict(name="meta_opt.fit, best", script="with_meta_opt", setting="best"),
        dict(
            name="AutoGluon, default",
            script="with_autogluon",
            setting="high_quality",
        ),
        dict(name="AutoGluon, best", script="with_autogluon", setting="best_quality"),
        dict(name="Trainer, default", script="with_trainer", setting="default"),
        dict(name="Trainer, its guide", script="with_trainer", setting="guide"),
        dict(name="PEFT's LoRA, its guide", script="with_trainer", setting="lora"),
    )
    config.seeds = (1, 2, 3)
    # Python of an environment with experiments/peers/requirements.txt.
    config.python = ".venv-peers/bin/python"
    config.data_dir = ""
    config.results = "results/peers/texts"
    return config


def small() -> ml_collections.ConfigDict:
    """Sixty training texts, one seed; minutes per library."""
    config = texts()
    config.tasks = dict(docstrings=(60, 30, 30))
    config.seeds = (1,)
    config.results = "results/peers/small"
    return config


def images() -> ml_collections.ConfigDict:
    """Drawings by category through EfficientNet-Lite0, one seed."""
    config = texts()
    config.tasks = dict(drawings=(60, 30, 100))
    config.peers = (
        dict(name="meta_opt.fit, good", script="with_meta_opt", setting="good"),
        dict(
            name="AutoGluon, default",
            script="images_with_autogluon",
            setting="high_quality",
        ),
        dict(name="Trainer, default", script="images_with_trainer", setting="default"),
        dict(name="Trainer, its guide", script="images_with_trainer", setting="guide"),
    )
    config.seeds = (1,)
    config.results = "results/peers/images"
    return config


def smoke() -> ml_collections.ConfigDict:
    """`meta_opt.fit` on few texts, one seed; needs no other environment."""
    config = texts()
    config.tasks = dict(docstrings=(60, 30, 30))
    config.peers = (
        dict(name="meta_opt.fit, fast", script="with_meta_opt", setting="fast"),
    )
    config.seeds = (1,)
    config.results = "runs/peers_smoke"
    return config


get_config = common.variants(texts, small, images, smoke)
