"""Reading and writing of model folders in the format of Hugging Face Transformers.

CLIP and SigLIP are `meta_opt.models.vision_text.VisionText` here, PaliGemma is
`meta_opt.models.generative.Generative`. A folder has ``config.json`` and
``model.safetensors``, or several files of that kind and
``model.safetensors.index.json``. Tensors are read from memory-mapped files directly
into arrays of any sharding: each device reads only its shard of a kernel.
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
