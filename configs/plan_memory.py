"""Memory plans for TPUs: ``so400m``, ``generative``, ``base``; ``smoke`` is local."""

import ml_collections

from configs import common


def so400m() -> ml_collections.ConfigDict:
    """So400m/14 on four TPU v5e: three optimizers, full and LoRA."""
    config = ml_collections.ConfigDict()
    config.size = "So400m/14"
    # A model folder as for model.weights, whose architecture replaces ``size``.
    config.model = ""
    # v5e:2x2, v4:2x2x2, v6e:4x4, ...; "" for the local devices.
    config.topology = "v5e:2x2"
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    config.optimizers = ("adamw", "lion", "learned")
    config.trainable = ("all", "lora")
    config.lora = dict(pattern=r"attention/(query|value)/kernel$", rank=8, alpha=16.0)
    config.dtype = "bfloat16"
    config.param_dtype = "float32"
    config.remat = "full"
    config.loss = "siglip"
    # Token lengths of a generative model's prompts and answers.
    config.prompt_length = 32
    config.text_length = 32
    # Examples per shard at which the optimizers are compared.
    config.examples = 32
    # Upper bound of the search for the largest batch that fits; 0 skips the search.
    config.most_examples = 1024
    # Trainable variants for which the largest batch is searched.
    config.largest_of = ("all",)
    config.accumulation_steps = 1
    config.weights = common.WEIGHTS
    config.results = ""
    return config


def generative() -> ml_collections.ConfigDict:
    """The generative model of 2.9B parameters on sixteen TPU v5e."""
    config = so400m()
    config.size = "3B/14"
    config.loss = "captioning"
    config.topology = "v5e:4x4"
    config.examples = 8
    config.most_examples = 1024
    return config


def base() -> ml_collections.ConfigDict:
    """B/16, which compiles in a minute."""
    config = so400m()
    config.size = "B/16"
    return config


def smoke() -> ml_collections.ConfigDict:
    """Nano on the local devices: a quick check."""
    config = so400m()
    config.size = "nano"
    config.topology = ""
    config.examples = 4
    config.most_examples = 0
    config.optimizers = ("adamw", "learned")
    return config


get_config = common.variants(so400m, generative, base, smoke)
