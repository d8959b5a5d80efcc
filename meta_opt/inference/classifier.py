"""Image classifiers that a run exported."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from meta_opt.data.preprocessing.image_fit import ImageFit
from meta_opt.evaluators.pictures import probabilities
from meta_opt.inference.pictures import Picture, batches, listed, opened
from meta_opt.models.convnets import Classifier


class PictureClassifier:
    """A trained image classifier with its preprocessing.

    Args:
        model: the network.
        class_names: K names, in the order of its logits.
        fit: how images are scaled to the network's input, as in training.
        batch_size: number of images per batch; the last batch is padded, so that one
            program is compiled.

    Attributes:
        model: the network.
        class_names: K names, in the order of the network's logits.
    """

    MIN_PIXELS = 32
    """Side of the smallest image of which a network leaves a pixel."""

    def __init__(
        self,
        model: Classifier,
        class_names: Sequence[str],
        fit: ImageFit,
        batch_size: int = 32,
    ) -> None:
        self.model = model
        self.class_names = tuple(class_names)
        self._fit = fit
        self._batch_size = batch_size

    @property
    def image_size(self) -> int:
        """Side length in pixels that images are scaled to."""
        return self._fit.size

    def predict(self, images: Sequence[Picture]) -> list[str]:
        """Returns the most likely class of each image.

        Args:
            images: B images, as `ContrastiveModel.embed` takes them.

        Returns:
            B class names.

        Raises:
            ValueError, TypeError: see `probabilities`.
        """
        best = np.argmax(self.probabilities(images), axis=1)
        return [self.class_names[i] for i in best]

    def probabilities(
        self, images: Sequence[Picture], image_size: int = 0
    ) -> np.ndarray:
        """Returns the probability of each class for each image.

        Args:
            images: B images, as `ContrastiveModel.embed` takes them.
            image_size: side length in pixels that images are scaled to; 0 for that of
                training. Another size changes the scale of objects in the images.

        Returns:
            float32 [B, K] whose rows sum to 1, K in the order of ``class_names``.

        Raises:
            ValueError: an image cannot be read (the message names it), or
                ``image_size`` is below `MIN_PIXELS`.
            TypeError: ``images`` is a single image, or has an unsupported type.
        """
        fit = self._fit
        if image_size:
            if image_size < self.MIN_PIXELS:
                raise ValueError(
                    f"image_size={image_size}: the network takes images of "
                    f"{self.MIN_PIXELS} pixels or more"
                )
            fit = dataclasses.replace(fit, size=image_size)
        parts = [
            probabilities(
                self.model,
                np.stack([fit(opened(image)) for image in part]),
                self._batch_size,
            )
            for part in batches(listed("images", images), self._batch_size)
        ]
        empty = np.zeros((0, len(self.class_names)), np.float32)
        return np.concatenate([empty, *parts])
