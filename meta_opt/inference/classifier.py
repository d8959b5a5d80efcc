"""Picture classifiers that a run exported."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from meta_opt.data.preprocessing.image_fit import ImageFit
from meta_opt.evaluators.pictures import probabilities
from meta_opt.inference.pictures import Picture, batches, listed, opened
from meta_opt.models.convnets import Classifier


class PictureClassifier:
    """A trained network from images to classes, with all that it needs of them.

    Args:
        model: the network.
        class_names: K names, in the order of its logits.
        fit: as its images were fitted in training.
        batch_size: images at a time; the last batch is filled up, so that one program
            is compiled.

    Attributes:
        model: as given.
        class_names: as given.
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
        """Side in pixels that images are fitted to."""
        return self._fit.size

    def predict(self, images: Sequence[Picture]) -> list[str]:
        """The likeliest class of each image.

        Args:
            images: B images, as `ContrastiveModel.embed` takes them.

        Returns:
            B names of classes.

        Raises:
            ValueError, TypeError: as `probabilities`.
        """
        best = np.argmax(self.probabilities(images), axis=1)
        return [self.class_names[i] for i in best]

    def probabilities(
        self, images: Sequence[Picture], image_size: int = 0
    ) -> np.ndarray:
        """Probability of each class for each image.

        Args:
            images: B images, as `ContrastiveModel.embed` takes them.
            image_size: side in pixels that they are fitted to; 0 for that of training.
                At another one the network sees things at another scale.

        Returns:
            float32 [B, K] whose rows sum to 1, K in the order of ``class_names``.

        Raises:
            ValueError: an image that cannot be read, which is named, or a side of
                fewer than `MIN_PIXELS`.
            TypeError: a single image instead of a list, or an unsupported type.
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
