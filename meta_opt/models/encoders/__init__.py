"""Pretrained encoders by name: text, images, speech.

`register` adds further ones: functions that make a module from a folder's tensors.
"""

from meta_opt.models.encoders.base import Divisible, Encoder, Halves
from meta_opt.models.encoders.efficientnet import EfficientNet, EfficientNetConfig
from meta_opt.models.encoders.minilm import MiniLM, MiniLMConfig
from meta_opt.models.encoders.registry import load_encoder, names, register
from meta_opt.models.encoders.whisper import WhisperConfig, WhisperEncoder

__all__ = [
    "Divisible",
    "EfficientNet",
    "EfficientNetConfig",
    "Encoder",
    "Halves",
    "MiniLM",
    "MiniLMConfig",
    "WhisperConfig",
    "WhisperEncoder",
    "load_encoder",
    "names",
    "register",
]
