"""Inference with models that a run exported, or with pretrained models.

Texts and images are preprocessed as in the training of the model.

Example:
    >>> import meta_opt, numpy
    >>> model = meta_opt.load_exported("nano", batch_size=2)
    >>> grey = numpy.full((48, 64, 3), 128, numpy.uint8)
    >>> model.embed(images=[grey]).shape, model.embed(texts=["a cat", "a dog"]).shape
    ((1, 128), (2, 128))
    >>> model.classify([grey], ["a cat", "a dog"]).sum(axis=1).round(5)
    array([1.], dtype=float32)
"""

from meta_opt.inference.classifier import PictureClassifier
from meta_opt.inference.image_text import ContrastiveModel, GenerativeModel
from meta_opt.inference.load import load_exported
from meta_opt.inference.pictures import Picture
from meta_opt.inference.video_text import Clip, VideoTextModel

__all__ = [
    "Clip",
    "ContrastiveModel",
    "GenerativeModel",
    "Picture",
    "PictureClassifier",
    "VideoTextModel",
    "load_exported",
]
