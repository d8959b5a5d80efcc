"""Outputs of a video-text model for whole arrays of clips and texts, on the host.

Evaluations compare them with targets; `meta_opt.inference` returns them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.evaluators.answers import token_sums
from meta_opt.evaluators.encoding import in_batches
from meta_opt.models.fusion import Tokens
from meta_opt.models.video_text import VideoText
from meta_opt.types import PyTree


def clip_text_scores(
    model: VideoText,
    clips: PyTree,
    texts: PyTree,
    batch_size: int,
    *,
    from_embeddings: bool,
) -> np.ndarray:
    """Returns matching scores of every clip with every text, float32 [N, M].

    Args:
        model: model with a matching head, or with embeddings.
        clips: arrays ``frames`` and ``present`` of N clips.
        texts: inputs of the text encoder for M texts.
        batch_size: number of clips or texts per batch.
        from_embeddings: whether scores are cosines of separate embeddings instead of
            logits of the cross encoder, which reads every clip with every text.
    """
    video = in_batches(model, _video, clips, batch_size)
    text = in_batches(model, _text, {"text_features": texts}, batch_size)
    if from_embeddings:
        video = in_batches(model, _Embed("video"), {"x": video}, batch_size)
        text = in_batches(model, _Embed("text"), {"x": text}, batch_size)
        return video @ text.T
    return _pair_scores(model, video, text, batch_size)


def _pair_scores(
    model: VideoText, video: np.ndarray, text: np.ndarray, batch_size: int
) -> np.ndarray:
    """Returns logits of every clip with every text, float32 [N, M], text by text.

    Args:
        model: model with a matching head.
        video: packed tokens of N clips; see `_pack`.
        text: packed tokens of M texts.
        batch_size: number of clips per batch.
    """
    columns = [
        in_batches(
            model,
            _match,
            {
                "video": video,
                "text": np.broadcast_to(one[None], (len(video), *one.shape)),
            },
            batch_size,
        )
        for one in text
    ]
    return np.stack(columns, axis=1)


def caption_sums(model: VideoText, data: PyTree, batch_size: int) -> np.ndarray:
    """Returns `meta_opt.evaluators.answers.token_sums` of captions.

    Args:
        model: model with a decoder.
        data: arrays ``frames``, ``present`` and ``caption`` of N clips.
        batch_size: number of clips per batch.
    """
    return in_batches(model, _caption_sums, data, batch_size)


def written_captions(
    model: VideoText, clips: PyTree, max_tokens: int, batch_size: int
) -> np.ndarray:
    """Decodes captions greedily, to the decoder's tokens int [N, max_tokens].

    Args:
        model: model with a decoder.
        clips: arrays ``frames`` and ``present`` of N clips.
        max_tokens: maximum number of tokens of a caption.
        batch_size: number of clips per batch.
    """
    return in_batches(model, _Write(max_tokens), clips, batch_size)


def answer_logits(model: VideoText, data: PyTree, batch_size: int) -> np.ndarray:
    """Returns the logits of answers, float32 [N, K + C].

    Args:
        model: model with the heads that the data require.
        data: arrays ``frames`` and ``present`` of N questions, with ``question`` for
            logits of the K answers of the vocabulary, ``choices`` for logits of the C
            options, or both.
        batch_size: number of questions per batch.
    """
    return in_batches(model, _answers, data, batch_size)


def sentiment_scores(model: VideoText, data: PyTree, batch_size: int) -> np.ndarray:
    """Returns the predicted sentiment, float32 [N].

    Args:
        model: model with a sentiment head.
        data: arrays ``frames``, ``present`` and ``text_features`` of N clips.
        batch_size: number of clips per batch.
    """
    return in_batches(model, _score, data, batch_size)


def _pack(tokens: Tokens) -> jax.Array:
    """Packs tokens into one array [B, S, D + 1]; the last feature is the mask."""
    return jnp.concatenate(
        [tokens.x, tokens.real[..., None].astype(tokens.x.dtype)], axis=-1
    )


def _unpack(packed: jax.Array) -> Tokens:
    return Tokens(packed[..., :-1], packed[..., -1] > 0)


def _tokens(model: VideoText, batch: PyTree) -> Tokens:
    return model.video(model.frame_features(batch["frames"]), batch["present"])


def _video(model: VideoText, batch: PyTree) -> jax.Array:
    return _pack(_tokens(model, batch))


def _text(model: VideoText, batch: PyTree) -> jax.Array:
    return _pack(model.text(batch["text_features"]))


def _match(model: VideoText, batch: PyTree) -> jax.Array:
    return model.match(model.cross(_unpack(batch["video"]), _unpack(batch["text"])))


def _caption_sums(model: VideoText, batch: PyTree) -> jax.Array:
    states, _, text, _ = model.caption_states(
        model.cross(_tokens(model, batch)), batch["caption"]
    )
    logits = model.captioner.decoder.logits(states)
    return token_sums(logits, text, model.captioner.config.pad_id)


def _answers(model: VideoText, batch: PyTree) -> jax.Array:
    video = _tokens(model, batch)
    found = []
    if "question" in batch:
        fused = model.cross(video, model.text(batch["question"]))
        found.append(model.answer_logits(fused))
    if "choices" in batch:
        found.append(model.choice_logits(video, batch["choices"]))
    return jnp.concatenate(found, axis=1)


def _score(model: VideoText, batch: PyTree) -> jax.Array:
    fused = model.cross(_tokens(model, batch), model.text(batch["text_features"]))
    return model.score(fused)


@dataclasses.dataclass(frozen=True)
class _Embed:
    modality: str

    def __call__(self, model: VideoText, batch: PyTree) -> jax.Array:
        return model.embed(self.modality, _unpack(batch["x"]))


@dataclasses.dataclass(frozen=True)
class _Write:
    max_tokens: int

    def __call__(self, model: VideoText, batch: PyTree) -> jax.Array:
        return model.write(model.cross(_tokens(model, batch)), self.max_tokens)
