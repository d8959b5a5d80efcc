"""Folders as Hugging Face Transformers saves them, read and written.

CLIP and SigLIP are `meta_opt.models.vision_text.VisionText` here, PaliGemma is
`meta_opt.models.generative.Generative`. A folder has ``config.json`` and
``model.safetensors``, or several files of that kind and
``model.safetensors.index.json``. Tensors are read from memory-mapped files straight
into arrays of any sharding: of a large kernel each device's part alone.
"""

from meta_opt.models.huggingface.folders import (
    check_writable,
    is_generative,
    load,
    load_generative,
    read_config,
    read_generative_config,
    save,
)
from meta_opt.models.huggingface.names import module_names

__all__ = [
    "check_writable",
    "is_generative",
    "load",
    "load_generative",
    "module_names",
    "read_config",
    "read_generative_config",
    "save",
]
