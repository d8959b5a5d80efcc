"""Settings that the experiments share.

A run's config lists only what differs from the defaults of the dataclasses that it is
turned into: `meta_opt.finetuning.run_config.RunConfig` and the workload's config. All
of their settings can be given on the command line, ``--config.section.key=value``.
"""

import ml_collections

# Weights of the learned optimizer; the library's default.
WEIGHTS = "lstm-v4"
# Parameters with a leading layer axis, in the models of this repository.
STACKED = r"(^|/)layers/"
# Linear layers of pretrained encoders, dense or 1x1 convolutions.
ENCODER_KERNELS = (
    r"^encoders/.*(attention/(query|key|value|out)|mlp/(up|down)"
    r"|(expand|project|head)/conv)/kernel$"
)


def run_config(num_steps: int, batch_size: int) -> ml_collections.ConfigDict:
    """A training run under the learned optimizer."""
    config = ml_collections.ConfigDict()
    config.num_steps = num_steps
    config.batch_size = batch_size
    config.seed = 0
    config.loop = dict(recovery={})
    config.optimizer = dict(stacked=STACKED)
    config.model = dict(lora={})
    config.mesh = {}
    config.export = {}
    config.prices = {}
    return config


def image_text_config(num_steps: int, batch_size: int) -> ml_collections.ConfigDict:
    """A run on images with captions or answers; nano on the bundled clip art."""
    config = run_config(num_steps, batch_size)
    config.data = {}
    # Decoding threads.
    config.pipeline = dict(num_threads=1)
    return config


def meta_validation() -> dict:
    """Held-out tasks for choosing weights, and the tuned baseline on them."""
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


def variants(*functions, default="", **named):
    """Returns a config file's ``get_config``, which calls the variant of a name.

    ``--config file.py:NAME`` names it; without a name it is the default.

    Args:
        *functions: variants that have the names of their functions.
        default: name of the default variant; "" for the first.
        **named: further variants.

    Example:
        >>> get_config = variants(image_text=lambda: image_text_config(10, 8))
        >>> get_config("image_text").batch_size
        8
    """
    by_name = {function.__name__: function for function in functions} | named

    def get_config(name: str = default or next(iter(by_name))):
        if name not in by_name:
            known = ", ".join(by_name)
            raise ValueError(f"unknown variant {name!r}; available: {known}")
        return by_name[name]()

    return get_config
