"""From clips and texts to the arrays that a video-text model reads."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.catalog.encoder_weights import encoder_folder
from meta_opt.data.preprocessing.folder_tokenizer import FolderTokenizer
from meta_opt.data.records import SPLITS
from meta_opt.data.sources.clip_questions import (
    Questions,
    answer_ids,
    answer_vocabulary,
    ask_questions,
)
from meta_opt.data.sources.clips import CLIPS, Clips, fit_frames, hold_out, read_clips
from meta_opt.types import PyTree, check_keys, check_name
from meta_opt.workloads.lower_features import (
    EncoderParts,
    FeatureCache,
    divide_encoder,
    features_of,
)

META_VALIDATION = "meta_validation"
_CHOICES = 4


@dataclasses.dataclass(frozen=True)
class ClipsConfig:
    """Which clips, and how they become arrays.

    Attributes:
        source: one of `meta_opt.data.sources.clips.CLIPS`.
        data_dir: the folder of datasets and encoders; "" for $META_OPT_DATA_DIR, else
            ``data``.
        max_examples: clips of a split at most; 0: all of them.
        frames: T, of a clip; longer ones are thinned, shorter ones filled up.
        image_size: of the frames in pixels.
        text_length: S, tokens of a clip's name.
        question_length: S, tokens of a question or of an answer that is offered.
        meta_validation: share of the training clips that is held out of training, for
            what is learned of the losses.
        codebook_size: K, visual tokens.
        encoders: of ``image`` and ``text``, names of `meta_opt.models.encoders`.
        trainable_layers: by modality, how many of the last layers train; 0: all.
        feature_cache_dir: folder for the features of the layers that do not train; ""
            computes them for each run.
        seed: of questions and codebook.
    """

    source: str = "animated_emoji"
    data_dir: str = ""
    max_examples: int = 0
    frames: int = 8
    image_size: int = 64
    text_length: int = 12
    question_length: int = 16
    meta_validation: float = 0.15
    codebook_size: int = 64
    encoders: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {"image": "efficientnet_lite0", "text": "minilm"}
    )
    trainable_layers: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"image": 1, "text": 1}
    )
    feature_cache_dir: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        check_name("clips.source", self.source, CLIPS)
        check_keys("clips.encoders", self.encoders, ("image", "text"))
        for modality in ("image", "text"):
            if modality not in self.encoders:
                raise ValueError(f"clips.encoders has no encoder of {modality}")
        check_keys("clips.trainable_layers", self.trainable_layers, self.encoders)
        for name in ("frames", "codebook_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"clips.{name}={getattr(self, name)} must be positive")


class ClipInputs(NamedTuple):
    """What a run reads.

    Attributes:
        splits: ``train``, ``meta_validation``, ``validation`` and ``test``, dicts of
            arrays [N, ...]: ``frames`` and ``text_features``, what the encoders read,
            ``present`` bool [N, T], ``targets`` [N, T, F] of masked frames, ``text``
            int [N, S], ``words``, the same by `vocabulary`, ``score``; of questions
            ``question``, ``choices`` [N, C, ...], ``answer`` (-1: not in `answers`) and
            ``choice``.
        clips: by split.
        questions: by split; of other tasks none.
        encoders: what trains of them and what not.
        tokenizer: of the text's encoder.
        vocabulary: int [K], its ids of the tokens that training texts have; the first
            is the padding's, and stands for all others too.
        answers: of training questions.
        codebook: float32 [K, F], centres of the targets of training frames.
        short: by split, how many clips have fewer than T frames.
    """

    splits: dict[str, dict[str, PyTree]]
    clips: dict[str, Clips]
    questions: dict[str, Questions]
    encoders: dict[str, EncoderParts]
    tokenizer: FolderTokenizer
    vocabulary: np.ndarray
    answers: tuple[str, ...]
    codebook: np.ndarray
    short: dict[str, int]

    @property
    def end_id(self) -> int:
        """Of the token that ends a text, by `vocabulary`."""
        return int(np.flatnonzero(self.vocabulary == self.tokenizer.special_ids[-1])[0])

    def decode(self, words: np.ndarray) -> list[str]:
        """The texts of rows [N, S] by `vocabulary`."""
        return self.tokenizer.decode(self.vocabulary[words])


def read_clip_inputs(config: ClipsConfig, task: str) -> ClipInputs:
    """Reads the clips and takes them through what does not train.

    Args:
        config: which clips.
        task: ``question_answering`` has questions, ``sentiment`` only clips whose
            sentiment is known.

    Raises:
        MissingDataError: a dataset or encoder that is not prepared.
        ValueError: see `read_clips`, `hold_out`, `divide_encoder` and `ask_questions`;
            a tokenizer that has no mask.
    """
    root = config.data_dir or default_data_dir()
    clips = _split_clips(config, task, root)
    encoders = {
        m: divide_encoder(name, config.trainable_layers.get(m, 0), root)
        for m, name in config.encoders.items()
    }
    tokenizer = FolderTokenizer(encoder_folder(config.encoders["text"], root), 0)
    lower = encoders["text"].lower
    if lower is not None and not isinstance(lower, nnx.Module):
        raise ValueError(
            f"masked texts go through all layers of the encoder "
            f"{config.encoders['text']!r}, and its lower ones are no module; train all "
            "of it (clips.trainable_layers.text=0)"
        )
    if tokenizer.mask_id is None or len(tokenizer.special_ids) != 2:
        raise ValueError(
            f"the tokenizer of the encoder {config.encoders['text']!r} must have a "
            "mask, and tokens that begin and end a text"
        )
    reader = _Reader(config, encoders, tokenizer, root)
    fitted = {s: fit_frames(x.video, config.frames) for s, x in clips.items()}
    splits = {s: reader.arrays(s, x, *fitted[s]) for s, x in clips.items()}
    _centre_targets(splits)
    train = splits["train"]
    vocabulary = _add_words(splits, tokenizer)
    codebook = make_codebook(
        train["targets"][train["present"]], config.codebook_size, config.seed
    )
    questions: dict[str, Questions] = {}
    answers: tuple[str, ...] = ()
    if task == "question_answering":
        for split, x in clips.items():
            frames, present = fitted[split]
            questions[split] = ask_questions(
                x.key,
                x.name,
                x.category,
                frames,
                present,
                choices=_CHOICES,
                seed=config.seed,
            )
        answers = answer_vocabulary(questions["train"])
        splits = {
            split: reader.question_arrays(split, arrays, questions[split], answers)
            for split, arrays in splits.items()
        }
    return ClipInputs(
        splits=splits,
        clips=clips,
        questions=questions,
        encoders=encoders,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        answers=answers,
        codebook=codebook,
        short={s: int((~x[1][:, -1]).sum()) for s, x in fitted.items()},
    )


def patches_of(inputs: ClipInputs) -> int:
    """P, patches that the image encoder makes of a frame."""
    frames = inputs.splits["train"]["frames"]
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x[0].shape, x.dtype), frames)
    upper: Any = inputs.encoders["image"].upper
    return jax.eval_shape(lambda x: upper.tokens(x)[0], one).shape[1]


def _split_clips(
    config: ClipsConfig, task: str, root: str | os.PathLike
) -> dict[str, Clips]:
    clips = {
        split: read_clips(config.source, split, root, config.image_size)
        for split in SPLITS
    }
    if task == "sentiment":
        clips = {split: x.with_sentiment() for split, x in clips.items()}
        if empty := [split for split, x in clips.items() if not len(x)]:
            raise ValueError(f"no clip in {empty[0]} has a sentiment")
    train, held = hold_out(clips["train"], config.meta_validation)
    clips = {**clips, "train": train, META_VALIDATION: held}
    return {split: x.at_most(config.max_examples) for split, x in clips.items()}


class _Reader:
    """Takes frames and texts through the layers that do not train."""

    def __init__(
        self,
        config: ClipsConfig,
        encoders: Mapping[str, EncoderParts],
        tokenizer: FolderTokenizer,
        root: str | os.PathLike,
    ) -> None:
        self._config, self._encoders, self._tokenizer = config, encoders, tokenizer
        self._caches = {
            m: FeatureCache(
                config.feature_cache_dir,
                f"{config.source}-{m}",
                name,
                root,
                {"trained": config.trainable_layers},
            )
            for m, name in config.encoders.items()
        }

    def _read(self, split: str, modality: str, inputs: np.ndarray) -> PyTree:
        lower = self._encoders[modality].lower
        if lower is None:
            return inputs
        return self._caches[modality](split, inputs, lower)

    def _read_texts(self, split: str, tokens: np.ndarray) -> PyTree:
        """Of token ids [N, S]; equal texts are read once."""
        different, places = np.unique(tokens, axis=0, return_inverse=True)
        read = self._read(split, "text", different)
        return jax.tree.map(lambda x: x[places.reshape(-1)], read)

    def arrays(
        self, split: str, clips: Clips, frames: np.ndarray, present: np.ndarray
    ) -> dict[str, PyTree]:
        """Of clips without questions; ``targets`` are not centred yet."""
        read = self._read(split, "image", frames)
        upper: Any = self._encoders["image"].upper
        targets = features_of(
            read, lambda x: jnp.mean(upper.tokens(x)[0], axis=1), clips=True
        )
        tokens = self._tokenizer.encode(clips.name, self._config.text_length)
        return {
            "frames": read,
            "present": present,
            "targets": targets.astype(np.float32),
            "text": tokens,
            "text_features": self._read_texts(split, tokens),
            "score": clips.sentiment,
        }

    def question_arrays(
        self,
        split: str,
        arrays: dict[str, PyTree],
        questions: Questions,
        answers: Sequence[str],
    ) -> dict[str, PyTree]:
        """Of questions, from those of their clips."""
        rows = {k: jax.tree.map(lambda x: x[questions.clip], arrays[k]) for k in arrays}
        shown = questions.frames
        at = np.arange(len(shown))[:, None]
        for name in ("frames", "targets"):
            # Of what is not shown anything will do: it is not present.
            rows[name] = jax.tree.map(lambda x: x[at, np.maximum(shown, 0)], rows[name])
        length = self._config.question_length
        offered = [f"is it {text}?" for texts in questions.choices for text in texts]
        choices = self._read_texts(split, self._tokenizer.encode(offered, length))
        asked = self._tokenizer.encode(questions.question, length)
        by_question = (len(shown), -1)
        return {
            **rows,
            "present": shown >= 0,
            "question": self._read_texts(split, asked),
            "choices": jax.tree.map(
                lambda x: x.reshape(*by_question, *x.shape[1:]), choices
            ),
            "answer": answer_ids(questions, answers),
            "choice": questions.choice,
        }


def _centre_targets(splits: dict[str, dict[str, PyTree]]) -> None:
    """Frames' targets as unit vectors from the mean of the training ones."""
    train = splits["train"]
    mean = train["targets"][train["present"]].mean(axis=0)
    for arrays in splits.values():
        x = arrays["targets"] - mean[None, None]
        norm = np.linalg.norm(x, axis=-1, keepdims=True)
        arrays["targets"] = x / np.maximum(norm, 1e-6)


def _add_words(
    splits: dict[str, dict[str, PyTree]], tokenizer: FolderTokenizer
) -> np.ndarray:
    """Adds ``words`` and ``caption``, and returns the vocabulary."""
    found = np.setdiff1d(splits["train"]["text"], [tokenizer.pad_id])
    vocabulary = np.concatenate([[tokenizer.pad_id], found])
    place = np.zeros(tokenizer.vocab_size, np.int32)
    place[vocabulary] = np.arange(len(vocabulary))
    for arrays in splits.values():
        arrays["words"] = place[arrays["text"]]
        # Without the token that begins a text; that which ends it is written.
        arrays["caption"] = arrays["words"][:, 1:]
    return vocabulary


def make_codebook(targets: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Visual tokens: centres of frames' features by k-means, scikit-learn's.

    Args:
        targets: float32 [N, F], of training frames.
        size: K.
        seed: of the first centres.

    Returns:
        float32 [K, F].

    Raises:
        ValueError: fewer different frames than centres.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    different = len(np.unique(targets, axis=0))
    if different < size:
        raise ValueError(
            f"clips.codebook_size={size} is more than the {different} different frames "
            "to train on"
        )
    # Sums of several threads differ in their last bits from run to run.
    with threadpool_limits(1):
        found = KMeans(size, n_init=1, random_state=seed).fit(targets)
    return found.cluster_centers_.astype(np.float32)
