"""Settings that the experiments share.

Every setting of a component is listed, so that each can be overridden:
``--config.section.key=value``.
"""

import ml_collections
from ml_collections import config_dict

# Of the learned optimizer; the library's default.
WEIGHTS = "lstm-v3"
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
        # What is done about spikes, NaN, a metric that stands still, too little memory.
        recovery=dict(
            enabled=False,
            spike=2.0,
            window=5,
            sustained=2,
            shrink=0.5,
            recover=5,
            max_rollbacks=3,
            # Evaluations; 0: no early stopping.
            patience=0,
            # Bytes of a device; 0: what it has.
            memory_limit=0,
            # Times the usual step from which a step is slow; 0: never.
            slow=3.0,
        ),
    )
    config.optimizer = dict(
        name="learned",
        num_steps=config.loop.get_ref("num_steps"),
        learning_rate=config_dict.placeholder(float),
        weight_decay=0.0,
        momentum=0.9,
        warmup_fraction=0.05,
        weights=WEIGHTS,
        stacked=STACKED,
        groups=(),
        safeguard=True,
        # A Pallas kernel of the learned optimizer, for one GPU.
        pallas=False,
    )
    config.model = dict(
        # A Hugging Face folder, shipped weights, or our own files; "": from scratch.
        weights="nano",
        # A folder with the tokenizer, if it is not that of the weights.
        processor="",
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
        # "int8": a base of one byte a parameter, under adapters.
        base="float",
        loss="clip",
        dtype="float32",
        param_dtype="float32",
        remat="full",
    )
    config.data = dict(
        # clipart, openclipart, emoji, FILE.jsonl, SHARDS.tar or tfds:NAME.
        name="clipart",
        # Paths; "": splits of the dataset's own, or a share held out by hash.
        validation="",
        test="",
        held_out=0.1,
        max_evaluated=1000,
        max_unreadable=100,
        # Holds a whole split of the bundled clip art.
        eval_batch_size=256,
        artists=(),
        captions="name",
        # What a generative model is asked where no question comes with a picture.
        prompt="",
        data_dir="",
    )
    config.pipeline = dict(
        shuffle=True,
        num_epochs=config_dict.placeholder(int),
        # S; None: the model's context.
        text_length=16,
        # P, of a generative model's prompts.
        prompt_length=32,
        captions="first",
        flip=False,
        crop_pixels=0,
        num_threads=1,
    )
    config.mesh = dict(data=1, fsdp=1, tensor=1)
    # model, adapters, peft or huggingface.
    config.export = dict(path="", format="model")
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
