"""Contrastive and generative vision-text models for inference."""

from collections.abc import Callable, Iterator, Sequence
from typing import overload

import jax
import numpy as np

from meta_opt.data.preprocessing.answers import AnswerTokenizer
from meta_opt.evaluators.answers import write_answers
from meta_opt.evaluators.category_likelihood import answer_scores
from meta_opt.evaluators.encoding import encode_images, encode_texts
from meta_opt.inference.pictures import Picture, batches, listed, opened
from meta_opt.models.decoding import DecodingConfig
from meta_opt.models.generative import Generative
from meta_opt.models.vision_text import VisionText
from meta_opt.workloads.image_text_preprocessing import Preprocessing


class ContrastiveModel:
    """Image and text encoders with their preprocessing.

    Args:
        model: a CLIP or SigLIP model or one of this package, with or without adapters.
        preprocessing: preprocessing that the model was trained with.
        batch_size: images or texts per batch; the last batch is padded, so that one
            program is compiled for images and one for texts.

    Attributes:
        model: the model.
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
        """Embeds images, texts, or both.

        Args:
            images: B images: open images, files, or uint8 [H, W, 3] of any size.
            texts: any number of texts.

        Returns:
            float32 [B, D] with rows of length 1, so that dot products are cosines; a
            pair of such arrays if both images and texts are given.

        Raises:
            ValueError: an image cannot be read (the message names it); or neither
                images nor texts are given.
            TypeError: an argument is a single image or text, or has an unsupported
                type.
        """
        if images is None and texts is None:
            raise ValueError("embed needs images, texts or both")
        found = []
        if images is not None:
            found.append(self._embed(listed("images", images), self._encode_images))
        if texts is not None:
            found.append(self._embed(listed("texts", texts), self._encode_texts))
        return found[0] if len(found) == 1 else (found[0], found[1])

    def classify(self, images: Sequence[Picture], texts: Sequence[str]) -> np.ndarray:
        """Classifies images zero-shot: returns the probability of each text.

        This is the softmax over texts of the cosines times the logit scale (Radford et
        al. 2021); SigLIP's bias does not affect it.

        Args:
            images: B images, as `embed` takes them.
            texts: K texts, such as ``"a photo of a cat"``.

        Returns:
            float32 [B, K] whose rows sum to 1.

        Raises:
            ValueError, TypeError: see `embed`.
        """
        image_z, text_z = self.embed(images, texts)
        scale = np.asarray(self.model.scale(), np.float32)
        return np.asarray(jax.nn.softmax(scale * image_z @ text_z.T, axis=1))

    def _embed(
        self, given: Sequence[Picture] | Sequence[str], encode: Callable
    ) -> np.ndarray:
        width = self.model.config.embed_dim
        parts = [encode(part) for part in batches(given, self._batch_size)]
        return np.concatenate([np.zeros((0, width), np.float32), *parts])

    def _encode_images(self, images: Sequence[Picture]) -> np.ndarray:
        pixels = _fitted(images, self._preprocessing)
        return encode_images(self.model, pixels, self._batch_size)

    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise TypeError(f"texts has {wrong[0]!r}, which is not a string")
        tokenizer = self._preprocessing.tokenizer
        tokens = tokenizer.encode(texts, self._preprocessing.text_length)
        return encode_texts(self.model, tokens, self._batch_size)


class GenerativeModel:
    """A model that generates text about images, with its preprocessing.

    Args:
        model: a PaliGemma model or one of this package, with or without adapters.
        preprocessing: preprocessing that the model was trained with.
        batch_size: images per batch; the last batch is padded, so that one program is
            compiled.

    Attributes:
        model: the model.
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
        """Generates answers to prompts about images by greedy decoding.

        Args:
            images: B images, as `ContrastiveModel.embed` takes them.
            prompts: one for each image, or one for all, such as ``"caption en"``.

        Returns:
            B answers.

        Raises:
            ValueError: an image cannot be read (the message names it); or the numbers
                of prompts and images differ.
            TypeError: ``images`` is a single image, or has an unsupported type.
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
        """Returns the probability of each of a list of answers, one being correct.

        This is the softmax of their log-likelihoods
        (`meta_opt.models.answer_likelihood.answer_log_likelihoods`), which amounts to
        decoding constrained to the list, so that no answer needs parsing.

        Args:
            images: B images, as `ContrastiveModel.embed` takes them.
            answers: K texts as the model was trained to write them, such as
                ``'{"category": "fruit"}'``.
            prompts: one for each image, or one for all.

        Returns:
            float32 [B, K] whose rows sum to 1.

        Raises:
            ValueError: see `answer`; or there are no answers, or two with the same
                tokens.
            TypeError: see `answer`.
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
        """Yields batches of preprocessed images and prompts."""
        images = listed("images", images)
        asked = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
        if len(asked) != len(images):
            raise ValueError(
                f"got {len(asked)} prompts for {len(images)} images; pass one prompt "
                "or one per image"
            )
        for part in batches(list(zip(images, asked, strict=True)), self._batch_size):
            yield {
                "image": _fitted([image for image, _ in part], self._preprocessing),
                "prompt": self._tokenizer.encode_prompts([text for _, text in part]),
            }


def _fitted(images: Sequence[Picture], preprocessing: Preprocessing) -> np.ndarray:
    """Scales images of any size to the model's input, uint8 [B, h, w, 3]."""
    return np.stack([preprocessing.fit(opened(image)) for image in images])
