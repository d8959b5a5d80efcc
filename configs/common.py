"""Settings that the experiments share.

Every setting of a component is listed, so that each can be overridden:
``--config.section.key=value``.
"""

import ml_collections
from ml_collections import config_dict

# Of the learned optimizer; the library's default.
WEIGHTS = "lstm-v1"
# Leaves with a leading layer axis, in the models of this repository.
STACKED = r"(^|/)layers/"


def run_config(num_steps: int, batch_size: int) -> ml_collections.ConfigDict:
    """A training run; what two sections share refers to one value."""
    config = ml_collections.ConfigDict()
    config.loop = dict(
        num_steps=num_steps,
        batch_size=batch_size,
        accumulation_steps=1,
        seed=0,
        eval_every=100,
        evaluate_at_start=True,
        log_every=10,
        checkpoint_every=100,
        keep_latest=2,
        keep_best=1,
        best_metric="loss",
        best_mode="min",
        feedback=False,
        progress=True,
    )
    config.optimizer = dict(
        name="learned",
        num_steps=config.loop.get_ref("num_steps"),
        learning_rate=config_dict.placeholder(float),
        weight_decay=0.0,
        momentum=0.9,
        warmup_fraction=0.05,
        # Passes over the training examples; from data and batch size if not given.
        epochs=config_dict.placeholder(float),
        weights=WEIGHTS,
        stacked=STACKED,
        groups=(),
        safeguard=True,
    )
    config.model = dict(
        weights="nano",
        size="nano",
        trainable="all",
        lora=dict(
            pattern=r"attention/(query|value)/kernel$",
            # Modality groups that are adapted; none named: all.
            groups=(),
            rank=8,
            alpha=16.0,
            rs_lora=False,
        ),
        loss="clip",
        dtype="float32",
        seed=config.loop.get_ref("seed"),
    )
    config.data = dict(name="clipart", artists=(), captions="name", data_dir="")
    config.pipeline = dict(
        batch_size=config.loop.get_ref("batch_size"),
        seed=config.loop.get_ref("seed"),
        shuffle=True,
        num_epochs=config_dict.placeholder(int),
        text_length=16,
        captions="first",
        flip=False,
        crop_pixels=0,
        num_threads=1,
    )
    config.mesh = dict(data=1, fsdp=1, tensor=1)
    config.export = ""
    return config


def meta_validation() -> dict:
    """Held-out tasks that weights are chosen by, and the tuned baseline on them."""
    return {
        "tasks": (
            "clipart_conv",
            "clipart_vit_finetune",
            "clipart_writer_lora",
            "clipart_head",
            "clipart_fusion",
            "asterisk_transformer",
        ),
        "baseline": "adamw",
        "results": "results/meta_validation",
    }


def choose(arg: str, variants: dict) -> ml_collections.ConfigDict:
    """Calls the variant that ``--config file.py:arg`` names.

    Raises:
        ValueError: if there is none of that name.
    """
    if arg not in variants:
        raise ValueError(f"no variant {arg!r}; there are {', '.join(variants)}")
    return variants[arg]()
