"""Using a model that a run exported, or that comes from elsewhere.

Tokenizer, sizes and channels of pictures are those that the model was trained with.

Example:
    >>> import meta_opt, numpy
    >>> model = meta_opt.load_exported("nano", batch_size=2)
    >>> grey = numpy.full((48, 64, 3), 128, numpy.uint8)
    >>> model.embed(images=[grey]).shape, model.embed(texts=["a cat", "a dog"]).shape
    ((1, 128), (2, 128))
    >>> model.classify([grey], ["a cat", "a dog"]).sum(axis=1).round(5)
    array([1.], dtype=float32)
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias, overload

import jax
import numpy as np
from PIL import Image

from meta_opt.data.preprocessing.answers import AnswerTokenizer
from meta_opt.data.preprocessing.image_fit import ImageFit
from meta_opt.data.preprocessing.images import decode, to_rgb
from meta_opt.data.preprocessing.pictures import MAX_PIXELS
from meta_opt.evaluators.answers import write_answers
from meta_opt.evaluators.category_likelihood import answer_scores
from meta_opt.evaluators.encoding import encode_images, encode_texts
from meta_opt.evaluators.pictures import probabilities
from meta_opt.models import huggingface, pretrained
from meta_opt.models.adapters import load_adapters, load_peft
from meta_opt.models.convnets import Classifier
from meta_opt.models.decoding import DecodingConfig
from meta_opt.models.generative import Generative, GenerativeConfig
from meta_opt.models.vision_text import VisionText
from meta_opt.workloads.classification_export import is_classifier, read_classifier
from meta_opt.workloads.image_text_model import (
    ModelConfig,
    Preprocessing,
    is_folder,
    load_weights,
    read_preprocessing,
)

Picture: TypeAlias = Image.Image | str | os.PathLike | np.ndarray
"""An open Pillow image, a file, or uint8 [H, W, 3]."""


class ContrastiveModel:
    """Image and text encoders with all that they need of preprocessing.

    Args:
        model: CLIP, SigLIP or one of ours, with adapters or without.
        preprocessing: as it was trained with.
        batch_size: pictures or texts at a time; the last batch is filled up, so that
            one program is compiled for pictures and one for texts.

    Attributes:
        model: as given.
    """

    def __init__(
        self, model: VisionText, preprocessing: Preprocessing, batch_size: int = 32
    ) -> None:
        self.model = model
        self._preprocessing = preprocessing
        self._batch_size = batch_size

    @overload
    def embed(self, images: Sequence[Picture], texts: None = None) -> np.ndarray: ...

    @overload
    def embed(self, images: None = None, *, texts: Sequence[str]) -> np.ndarray: ...

    @overload
    def embed(
        self, images: Sequence[Picture], texts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def embed(
        self,
        images: Sequence[Picture] | None = None,
        texts: Sequence[str] | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Embeds pictures, texts, or both.

        Args:
            images: B pictures: open images, files, or uint8 [H, W, 3] of any size.
            texts: any number of texts.

        Returns:
            float32 [B, D] whose rows have length 1, so that the product of two is their
            cosine; of pictures and texts a pair of such arrays.

        Raises:
            ValueError: a picture that cannot be read, which is named; or neither
                pictures nor texts.
            TypeError: one picture or text where a list is due, or another kind of
                thing.
        """
        if images is None and texts is None:
            raise ValueError("embed needs images, texts or both")
        found = []
        if images is not None:
            found.append(self._embed(_listed("images", images), self._encode_images))
        if texts is not None:
            found.append(self._embed(_listed("texts", texts), self._encode_texts))
        return found[0] if len(found) == 1 else (found[0], found[1])

    def classify(self, images: Sequence[Picture], texts: Sequence[str]) -> np.ndarray:
        """Probability of each text for each picture: zero-shot classification.

        The softmax over the texts of the cosines times the logit scale (Radford et al.
        2021); a bias, as SigLIP has one, makes no difference to it.

        Args:
            images: B pictures, as `embed` takes them.
            texts: K texts, such as ``"a photo of a cat"``.

        Returns:
            float32 [B, K] whose rows sum to 1.

        Raises:
            ValueError, TypeError: as `embed`.
        """
        image_z, text_z = self.embed(images, texts)
        scale = np.asarray(self.model.scale(), np.float32)
        return np.asarray(jax.nn.softmax(scale * image_z @ text_z.T, axis=1))

    def _embed(
        self, given: Sequence[Picture] | Sequence[str], encode: Callable
    ) -> np.ndarray:
        width = self.model.config.embed_dim
        parts = [encode(part) for part in _batches(given, self._batch_size)]
        return np.concatenate([np.zeros((0, width), np.float32), *parts])

    def _encode_images(self, images: Sequence[Picture]) -> np.ndarray:
        pixels = _fitted(images, self._preprocessing)
        return encode_images(self.model, pixels, self._batch_size)

    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(f"texts has {wrong[0]!r}, which is no text")
        tokenizer = self._preprocessing.tokenizer
        tokens = tokenizer.encode(texts, self._preprocessing.text_length)
        return encode_texts(self.model, tokens, self._batch_size)


class GenerativeModel:
    """A model that writes about pictures, with all that it needs of preprocessing.

    Args:
        model: PaliGemma or one of ours, with adapters or without.
        preprocessing: as it was trained with.
        batch_size: pictures at a time; the last batch is filled up, so that one program
            is compiled.

    Attributes:
        model: as given.
    """

    def __init__(
        self, model: Generative, preprocessing: Preprocessing, batch_size: int = 8
    ) -> None:
        self.model = model
        self._preprocessing = preprocessing
        self._batch_size = batch_size

    def answer(
        self, images: Sequence[Picture], prompts: str | Sequence[str] = ""
    ) -> list[str]:
        """The likeliest answers to prompts about pictures.

        Args:
            images: B pictures, as `ContrastiveModel.embed` takes them.
            prompts: one for each of them, or one for all, such as ``"caption en"``.

        Returns:
            B answers.

        Raises:
            ValueError: a picture that cannot be read, which is named; or as many
                prompts as there are no pictures.
            TypeError: one picture where a list is due, or another kind of thing.
        """
        config = DecodingConfig(max_tokens=self._preprocessing.text_length)
        answers: list[str] = []
        for data in self._asked(images, prompts):
            answers += write_answers(
                self.model, data, self._tokenizer, config, self._batch_size
            )
        return answers

    def classify(
        self,
        images: Sequence[Picture],
        answers: Sequence[str],
        prompts: str | Sequence[str] = "",
    ) -> np.ndarray:
        """Probability of each of a list of answers, given that one of them is right.

        The softmax of their log-likelihoods
        (`meta_opt.models.answer_likelihood.answer_log_likelihoods`): decoding that is
        constrained to the list, so that nothing needs parsing.

        Args:
            images: B pictures, as `ContrastiveModel.embed` takes them.
            answers: K texts as the model was trained to write them, such as
                ``'{"category": "fruit"}'``.
            prompts: one for each picture, or one for all.

        Returns:
            float32 [B, K] whose rows sum to 1.

        Raises:
            ValueError: as `answer`; no answers, or two that are the same tokens.
            TypeError: as `answer`.
        """
        parts = [
            answer_scores(self.model, data, answers, self._tokenizer, self._batch_size)
            for data in self._asked(images, prompts)
        ]
        scores = np.concatenate([np.zeros((0, len(answers)), np.float32), *parts])
        return np.asarray(jax.nn.softmax(scores, axis=1))

    @property
    def _tokenizer(self) -> AnswerTokenizer:
        tokenizer = self._preprocessing.tokenizer
        assert isinstance(tokenizer, AnswerTokenizer)
        return tokenizer

    def _asked(
        self, images: Sequence[Picture], prompts: str | Sequence[str]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Batches of pictures and prompts, as the model takes them."""
        images = _listed("images", images)
        asked = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
        if len(asked) != len(images):
            raise ValueError(f"{len(asked)} prompts are not for {len(images)} images")
        for part in _batches(list(zip(images, asked, strict=True)), self._batch_size):
            yield {
                "image": _fitted([image for image, _ in part], self._preprocessing),
                "prompt": self._tokenizer.encode_prompts([text for _, text in part]),
            }


class PictureClassifier:
    """A trained network from pictures to classes, with all that it needs of them.

    Args:
        model: the network.
        class_names: K names, in the order of its logits.
        fit: as its pictures were fitted in training.
        batch_size: pictures at a time; the last batch is filled up, so that one program
            is compiled.

    Attributes:
        model: as given.
        class_names: as given.
    """

    MIN_PIXELS = 32
    """Side of the smallest picture of which a network leaves a pixel."""

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
        """Side in pixels that pictures are fitted to."""
        return self._fit.size

    def predict(self, images: Sequence[Picture]) -> list[str]:
        """The likeliest class of each picture.

        Args:
            images: B pictures, as `ContrastiveModel.embed` takes them.

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
        """Probability of each class for each picture.

        Args:
            images: B pictures, as `ContrastiveModel.embed` takes them.
            image_size: side in pixels that they are fitted to; 0 for that of training.
                At another one the network sees things at another scale.

        Returns:
            float32 [B, K] whose rows sum to 1, K in the order of ``class_names``.

        Raises:
            ValueError: a picture that cannot be read, which is named, or a side of
                fewer than `MIN_PIXELS`.
            TypeError: one picture where a list is due, or another kind of thing.
        """
        fit = self._fit
        if image_size:
            if image_size < self.MIN_PIXELS:
                raise ValueError(
                    f"image_size={image_size}: the network takes pictures of "
                    f"{self.MIN_PIXELS} pixels or more"
                )
            fit = dataclasses.replace(fit, size=image_size)
        parts = [
            probabilities(
                self.model,
                np.stack([fit(_opened(image)) for image in part]),
                self._batch_size,
            )
            for part in _batches(_listed("images", images), self._batch_size)
        ]
        empty = np.zeros((0, len(self.class_names)), np.float32)
        return np.concatenate([empty, *parts])


def load_exported(
    path: str | os.PathLike,
    *,
    adapter: str | os.PathLike = "",
    processor: str | os.PathLike = "",
    batch_size: int = 32,
    dtype: str = "float32",
    max_tokens: int = 32,
    prompt_length: int = 32,
) -> ContrastiveModel | GenerativeModel | PictureClassifier:
    """Loads a model for inference: an export of a run, or anything a run can read.

    Args:
        path: the folder of a picture classifier that a run exported; a CLIP, SigLIP or
            PaliGemma folder of Hugging Face's form; a path of our own weights without
            suffix; or the name of shipped ones.
        adapter: folder of adapters on it: ours, or PEFT's for CLIP and SigLIP.
        processor: folder whose tokenizer and image processor take the place of those
            in ``path`` or in the export; needed where an export has none because the
            licence of the tokenizer was not known, and it is not the one that ships
            here.
        batch_size: pictures or texts at a time.
        dtype: of the computation, ``float32`` or ``bfloat16``.
        max_tokens: longest answer of a model that writes.
        prompt_length: longest prompt, in tokens.

    Returns:
        A model that embeds and classifies, one that answers, or a picture classifier.

    Raises:
        ValueError: no such model, one that is damaged or lacks its tokenizer, or
            adapters of another one.

    Example:
        >>> sorted(name for name in dir(load_exported("nano")) if name[0] != "_")
        ['classify', 'embed', 'model']
    """
    weights = os.fspath(path)
    _check_not_adapters(weights)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if is_classifier(weights):
        if adapter or processor:
            raise ValueError(
                f"{weights} is a picture classifier, which takes no adapter and no "
                "processor; leave them out"
            )
        classifier, settings = read_classifier(weights, dtype)
        return PictureClassifier(
            classifier, settings.class_names, settings.fit, batch_size
        )
    generative = (
        huggingface.is_generative(weights)
        if is_folder(weights)
        else isinstance(pretrained.read_config(weights), GenerativeConfig)
    )
    config = ModelConfig(
        weights=weights,
        processor=os.fspath(processor),
        loss="captioning" if generative else "clip",
        dtype=dtype,
    )
    preprocessing = read_preprocessing(
        config, max_tokens if generative else None, prompt_length
    )
    model = load_weights(config, preprocessing)
    if adapter:
        _put_on(adapter, model)
    if isinstance(model, Generative):
        return GenerativeModel(model, preprocessing, batch_size)
    return ContrastiveModel(model, preprocessing, batch_size)


def _fitted(images: Sequence[Picture], preprocessing: Preprocessing) -> np.ndarray:
    """Pictures of any size as the model takes them, uint8 [B, h, w, 3]."""
    return np.stack([preprocessing.fit(_opened(image)) for image in images])


def _opened(image: Picture) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                f"an image of {image.dtype} {list(image.shape)} must be uint8 [H, W, 3]"
            )
        return Image.fromarray(image)
    if isinstance(image, str | os.PathLike):
        try:
            return decode(Path(image).read_bytes(), MAX_PIXELS)
        except (OSError, ValueError) as error:
            raise ValueError(f"{os.fspath(image)} cannot be read: {error}") from None
    raise TypeError(
        f"an image must be a path, a Pillow image or an array, not {type(image)}"
    )


def _listed(name: str, given: Sequence) -> Sequence:
    if isinstance(given, str | os.PathLike | Image.Image):
        raise TypeError(f"{name} takes a list, not one {type(given).__name__}")
    return given if isinstance(given, np.ndarray) else list(given)


def _batches(rows: Sequence, size: int) -> Iterator[Sequence]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


_READERS: dict[str, Callable[..., object]] = {
    "adapters.json": load_adapters,
    "adapter_config.json": load_peft,
}


def _put_on(adapter: str | os.PathLike, model: VisionText | Generative) -> None:
    for name, load in _READERS.items():
        if (Path(adapter) / name).is_file():
            load(adapter, model)
            return
    raise ValueError(
        f"adapter={os.fspath(adapter)!r} is no folder of adapters: it has no "
        f"{' and no '.join(_READERS)}"
    )


def _check_not_adapters(weights: str) -> None:
    if (Path(weights) / "config.json").is_file():
        return
    if any((Path(weights) / name).is_file() for name in _READERS):
        raise ValueError(
            f"{weights} holds adapters alone: give the model that they are for as "
            f"path, and adapter={weights!r}"
        )
