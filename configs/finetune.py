"""Fine-tuning: ``nano_clipart[_lora]``, ``nano_captions``, ``smoke``.

For your own data: ``so400m[_lora]``, ``paligemma[_lora]``.
"""

import ml_collections

from configs import common


def nano_clipart() -> ml_collections.ConfigDict:
    """All parameters of nano."""
    config = common.image_text_config(num_steps=300, batch_size=128)
    config.loop.eval_every = 25
    config.pipeline.flip = True
    config.pipeline.crop_pixels = 4
    return config


def nano_clipart_lora() -> ml_collections.ConfigDict:
    """Adapters on the attention and MLP kernels of nano."""
    config = nano_clipart()
    config.model.trainable = "lora"
    config.model.lora.pattern = r"(attention/(query|value|out)|mlp/(up|down))/kernel$"
    return config


def nano_captions() -> ml_collections.ConfigDict:
    """A small model that learns to name clip art, from scratch."""
    config = common.image_text_config(num_steps=1000, batch_size=64)
    config.model.weights = ""
    config.model.size = "nano-generative"
    config.model.loss = "captioning"
    config.loop.eval_every = 250
    config.data.prompt = "caption"
    config.pipeline.prompt_length = 4
    config.pipeline.flip = True
    config.pipeline.crop_pixels = 4
    return config


def so400m() -> ml_collections.ConfigDict:
    """All parameters of SigLIP So400m, or any CLIP or SigLIP folder, on your images.

    With ``--config.model.weights=FOLDER --config.data.name=FILE.jsonl``. Steps and
    batch size are chosen from the number of images.
    """
    config = common.image_text_config(num_steps=0, batch_size=0)
    config.model.weights = "siglip-so400m-patch14-384"
    config.model.loss = "siglip"
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.name = "captions.jsonl"
    config.data.eval_batch_size = 64
    # The model's context length.
    config.pipeline.text_length = None
    config.pipeline.num_threads = 8
    config.mesh.fsdp = -1
    return config


def so400m_lora() -> ml_collections.ConfigDict:
    """Adapters on all attention and MLP kernels; all other parameters are frozen."""
    return _with_adapters(so400m())


def paligemma() -> ml_collections.ConfigDict:
    """All parameters of PaliGemma, on your images with captions or answers.

    With ``--config.model.weights=FOLDER --config.data.name=FILE.jsonl``.
    """
    config = so400m()
    config.model.weights = "paligemma-3b-pt-224"
    config.model.loss = "captioning"
    config.data.prompt = "caption en"
    config.data.eval_batch_size = 32
    config.pipeline.text_length = 32
    return config


def paligemma_lora() -> ml_collections.ConfigDict:
    """Adapters on all attention and MLP kernels of both towers."""
    return _with_adapters(paligemma())


def _with_adapters(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    config.model.trainable = "lora"
    config.model.lora.pattern = (
        r"layers/(attention/(query|key|value|out)|mlp/(up|gate|down))/kernel$"
    )
    config.model.lora.rank = 16
    return config


def smoke() -> ml_collections.ConfigDict:
    """A few steps of an untrained model: a quick check."""
    config = common.image_text_config(num_steps=4, batch_size=16)
    config.model.weights = ""
    config.optimizer.name = "hand_designed"
    config.loop.eval_every = 4
    config.loop.evaluate_at_start = False
    config.loop.log_every = 2
    config.loop.checkpoint_every = 2
    return config


get_config = common.variants(
    nano_clipart,
    nano_clipart_lora,
    nano_captions,
    so400m,
    so400m_lora,
    paligemma,
    paligemma_lora,
    smoke,
)
