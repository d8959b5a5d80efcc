"""Convolutional image classifiers: ResNet and ConvNeXt, and their pretrained folders.

A network has ``stem`` and ``stages``; in a `Classifier` the last stage's variables
begin with ``trunk/stages/3/``, the head's with ``head/``.
"""

from meta_opt.models.convnets.base import ConvNet, ConvNetConfig, Stages
from meta_opt.models.convnets.classifier import Classifier
from meta_opt.models.convnets.convnext import ConvNeXt, ConvNeXtConfig
from meta_opt.models.convnets.folders import (
    ARCHITECTURES,
    load_classifier,
    make_convnet,
    read_config,
)
from meta_opt.models.convnets.resnet import ResNet, ResNetConfig

__all__ = [
    "ARCHITECTURES",
    "Classifier",
    "ConvNeXt",
    "ConvNeXtConfig",
    "ConvNet",
    "ConvNetConfig",
    "ResNet",
    "ResNetConfig",
    "Stages",
    "load_classifier",
    "make_convnet",
    "read_config",
]
