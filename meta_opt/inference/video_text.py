"""Video-text models that a run exported."""

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from meta_opt.data.preprocessing.frame_indices import even_indices
from meta_opt.data.preprocessing.images import fit_square
from meta_opt.data.sources.clips import fit_frames
from meta_opt.data.sources.video_annotations.clip_files import read_clip
from meta_opt.evaluators.video_text_outputs import (
    answer_logits,
    clip_text_scores,
    sentiment_scores,
    written_captions,
)
from meta_opt.inference.pictures import Picture, listed, opened
from meta_opt.types import PyTree
from meta_opt.workloads.video_text_export import ExportedVideoText

Clip: TypeAlias = str | os.PathLike | np.ndarray | Sequence[Picture]
"""A folder of frames, an animation or a ``.npy`` file of features; uint8 [T, H, W, 3]
or float [T, D]; or a list of images."""


class VideoTextModel:
    """A video-text model with its preprocessing.

    A method works if the family and the task of the training have the heads for it:
    UniVL's losses train matching and a decoder for every task. Long clips are
    subsampled and long texts truncated as in training.

    Args:
        exported: the model and the reader of its inputs.
        batch_size: number of clips, texts or questions per batch; the last batch is
            padded, so that one program is compiled for each use.

    Attributes:
        model: the model.
        task: task that the model was trained for.
        answers: vocabulary of K answers to open-ended questions; empty if there is
            none.
    """

    def __init__(self, exported: ExportedVideoText, batch_size: int = 32) -> None:
        self.model = exported.model
        self.task = exported.settings.task
        self.answers = exported.settings.answers
        self._exported = exported
        self._batch_size = batch_size

    def scores(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """Returns matching scores of every clip with every text; higher is better.

        After training on ``contrastive`` the scores are cosines, else logits of the
        cross encoder, which reads each clip with each text, in time proportional to N x
        M.

        Args:
            clips: N clips.
            texts: M texts.

        Returns:
            float32 [N, M].

        Raises:
            ValueError: a clip cannot be read or has no frames (the message names it);
                there are no clips or no texts; or the model was not trained to match.
            TypeError: an argument is a single clip or text, or has an unsupported type.
        """
        contrastive = self._exported.settings.primary == "contrastive"
        if not contrastive and "match" not in self.model.heads:
            raise ValueError(self._without("to match clips with texts"))
        texts = _texts("texts", texts)
        length = self._exported.reader.config.text_length
        return clip_text_scores(
            *(self.model, self._clips(clips)),
            *(self._exported.reader.texts(texts, length), self._batch_size),
            from_embeddings=contrastive,
        )

    def search(
        self, clips: Sequence[Clip], texts: Sequence[str], count: int = 5
    ) -> np.ndarray:
        """Returns the best clips for each text, in decreasing order of score.

        Args:
            clips: N clips.
            texts: M texts.
            count: number of clips per text; N if there are fewer.

        Returns:
            int [M, count], indices into ``clips``.

        Raises:
            ValueError, TypeError: see `scores`.
        """
        if count < 1:
            raise ValueError(f"count={count} must be at least 1")
        order = np.argsort(-self.scores(clips, texts), axis=0, kind="stable")
        return order[:count].T

    def caption(self, clips: Sequence[Clip]) -> list[str]:
        """Generates a caption of each clip, from the vocabulary of training captions.

        Args:
            clips: N clips.

        Returns:
            N texts.

        Raises:
            ValueError: see `scores`; or the model was not trained to write captions.
            TypeError: see `scores`.
        """
        if not hasattr(self.model, "captioner"):
            raise ValueError(self._without("to write captions"))
        exported = self._exported
        # The start token is not part of a generated caption.
        length = exported.reader.config.text_length - 1
        data = self._clips(clips)
        return exported.decode(
            written_captions(self.model, data, length, self._batch_size)
        )

    def answer(self, clips: Sequence[Clip], questions: Sequence[str]) -> list[str]:
        """Returns the most likely of ``answers`` to a question about each clip.

        Args:
            clips: N clips.
            questions: N texts.

        Returns:
            N answers.

        Raises:
            ValueError: see `scores`; or the numbers of questions and clips differ; or
                the model was not trained on open-ended questions.
            TypeError: see `scores`.
        """
        best = np.argmax(self.answer_probabilities(clips, questions), axis=1)
        return [self.answers[i] for i in best]

    def answer_probabilities(
        self, clips: Sequence[Clip], questions: Sequence[str]
    ) -> np.ndarray:
        """Returns the probability of each of ``answers`` to a question about each clip.

        Args:
            clips: N clips.
            questions: N texts.

        Returns:
            float32 [N, K] whose rows sum to 1.

        Raises:
            ValueError, TypeError: see `answer`.
        """
        if not self.answers:
            raise ValueError(self._without("to answer questions in words"))
        asked = self._of_each("questions", questions, clips)
        data = {**self._clips(clips), "question": self._asked(asked)}
        return _softmax(answer_logits(self.model, data, self._batch_size))

    def choose(
        self, clips: Sequence[Clip], options: Sequence[Sequence[str]]
    ) -> np.ndarray:
        """Returns the probability of each answer option for a clip.

        Args:
            clips: N clips.
            options: N lists of C texts in the format of the training data: the
                question, a space and the option for official datasets, ``"is it
                NAME?"`` for animated emoji.

        Returns:
            float32 [N, C] whose rows sum to 1.

        Raises:
            ValueError: see `scores`; or the numbers of lists and clips differ, lists
                have different lengths, or the model was not trained on multiple choice.
            TypeError: see `scores`.
        """
        if "choice" not in self.model.heads:
            raise ValueError(self._without("to choose between options"))
        given = self._of_each("options", options, clips)
        rows = [_texts("options", texts) for texts in given]
        if len(counts := {len(row) for row in rows}) > 1:
            raise ValueError(
                f"options has lists of {sorted(counts)} texts; all need as many"
            )
        read = self._asked([text for row in rows for text in row])
        choices = jax.tree.map(lambda x: x.reshape(len(rows), -1, *x.shape[1:]), read)
        data = {**self._clips(clips), "choices": choices}
        return _softmax(answer_logits(self.model, data, self._batch_size))

    def sentiment(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """Returns the sentiment of clips with texts, on the training data's scale.

        Args:
            clips: N clips.
            texts: N texts, such as transcripts.

        Returns:
            float32 [N].

        Raises:
            ValueError: see `scores`; or the numbers of texts and clips differ, or the
                model was not trained for sentiment.
            TypeError: see `scores`.
        """
        if "scores" not in self.model.heads:
            raise ValueError(self._without("for sentiment"))
        said = _texts("texts", self._of_each("texts", texts, clips))
        length = self._exported.reader.config.text_length
        read = self._exported.reader.texts(said, length)
        data = {**self._clips(clips), "text_features": read}
        return sentiment_scores(self.model, data, self._batch_size)

    def _asked(self, texts: Sequence[str]) -> PyTree:
        reader = self._exported.reader
        return reader.texts(_texts("texts", texts), reader.config.question_length)

    def _clips(self, clips: Sequence[Clip]) -> dict[str, PyTree]:
        reader = self._exported.reader
        given = listed("clips", clips)
        if not len(given):
            raise ValueError("clips has no clip")
        found = [self._frames(clip, place) for place, clip in enumerate(given)]
        frames, present = fit_frames(found, reader.config.frames)
        return {"frames": reader.frames(frames), "present": present}

    def _frames(self, clip: Clip, place: int) -> np.ndarray:
        """Reads a clip of at most T frames, uint8 [t, h, w, 3] or float32 [t, D]."""
        config = self._exported.reader.config
        if isinstance(clip, str | os.PathLike):
            found = read_clip(clip, config.frames, config.image_size)
            name = os.fspath(clip)
        else:
            name = f"clips[{place}]"
            if not len(clip):
                raise ValueError(f"{name} has no frames")
            kept: Any = [clip[i] for i in even_indices(len(clip), config.frames)]
            if isinstance(clip, np.ndarray) and clip.ndim == 2:
                found = np.asarray(kept, np.float32)
            else:
                size = config.image_size
                found = np.stack([fit_square(opened(x), size) for x in kept])
        width = config.feature_width
        if width and (found.ndim != 2 or found.shape[1] != width):
            raise ValueError(
                f"{name} has frames of shape {list(found.shape[1:])}, and the model "
                f"reads features [{width}]"
            )
        if not width and found.ndim != 4:
            raise ValueError(f"{name} has features, and the model reads images")
        return found

    def _of_each(self, name: str, given: Sequence, clips: Sequence) -> Sequence:
        rows = listed(name, given)
        if len(rows) != len(listed("clips", clips)):
            raise ValueError(
                f"got {len(rows)} {name} for {len(clips)} clips; pass one per clip"
            )
        return rows

    def _without(self, what: str) -> str:
        settings = self._exported.settings
        return (
            f"this model was not trained {what}: it is of family={settings.family!r}, "
            f"task={settings.task!r}"
        )


def _texts(name: str, given: Sequence[str]) -> list[str]:
    texts = list(listed(name, given))
    if not texts:
        raise ValueError(f"{name} has no text")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(f"{name} has {wrong[0]!r}, which is not a string")
    return texts


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.softmax(logits, axis=1))
