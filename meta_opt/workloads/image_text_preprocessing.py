"""The preprocessing of images and texts for a vision-text model."""

from typing import NamedTuple

from meta_opt.data.pipeline import EncodePrompts
from meta_opt.data.preprocessing.answers import AnswerTokenizer
from meta_opt.data.preprocessing.folder_tokenizer import FolderTokenizer
from meta_opt.data.preprocessing.image_fit import ImageFit, read_image_fit
from meta_opt.data.preprocessing.tokenizer import TextTokenizer, load_tokenizer
from meta_opt.models.generative import GenerativeConfig
from meta_opt.models.vision_text import (
    VisionTextConfig,
)
from meta_opt.workloads.image_text_architecture import (
    Architecture,
    ModelConfig,
    architecture,
    tokenizer_folder,
)

_ANSWER_LENGTH = 32
"""Default number of tokens of an answer."""


class Preprocessing(NamedTuple):
    """The preprocessing of images and texts for a model.

    Attributes:
        tokenizer: tokenizer of captions or answers.
        text_length: S, number of tokens of a caption or answer.
        fit: scales images.
        prompts: encodes prompts; None for a contrastive model.
    """

    tokenizer: TextTokenizer
    text_length: int
    fit: ImageFit
    prompts: EncodePrompts | None = None


def read_preprocessing(
    config: ModelConfig,
    text_length: int | None = None,
    prompt_length: int = 32,
    prompt: str = "",
) -> Preprocessing:
    """Reads the preprocessing of a model, without reading its weights.

    Args:
        config: the model.
        text_length: S; None for the model's context length, or 32 tokens for answers.
        prompt_length: P, number of tokens of a generative model's prompt.
        prompt: default prompt of a generative model.

    Raises:
        ValueError: the folder has no tokenizer, its vocabulary is not that of the
            weights, or the text length is above the model's.
    """
    made = architecture(config)
    tokenizer, fit = _tokenizer_and_fit(config, made)
    if isinstance(made, GenerativeConfig):
        end = made.end_id if config.weights else _end_id(config, tokenizer)
        answers = AnswerTokenizer(
            tokenizer, end, tokenizer.pad_id, prompt_length, prompt
        )
        length = text_length or _ANSWER_LENGTH
        return Preprocessing(answers, length, fit, answers.encode_prompts)
    length = text_length or made.text_length
    if config.weights:
        _check_end(config, made, tokenizer)
        _check_length(config, made, length)
    return Preprocessing(tokenizer, length, fit)


def _tokenizer_and_fit(
    config: ModelConfig, made: Architecture
) -> tuple[TextTokenizer, ImageFit]:
    """Returns the tokenizer and image fit of a folder, or those of this package."""
    known = (
        made.decoder.vocab_size
        if isinstance(made, GenerativeConfig)
        else made.vocab_size
    )
    if not config.folder:
        ours = load_tokenizer()
        if config.weights and known != ours.vocab_size:
            raise ValueError(
                f"the weights {config.weights!r} are for {known} tokens, the "
                f"tokenizer that ships here has {ours.vocab_size}, and there is no "
                f"{tokenizer_folder(config.weights)}: name the folder with theirs in "
                "model.processor"
            )
        return ours, ImageFit(made.image_size)
    tokenizer = FolderTokenizer(config.folder, made.pad_id)
    if config.weights and tokenizer.vocab_size > known:
        raise ValueError(
            f"the weights {config.weights!r} are for {known} tokens and the tokenizer "
            f"of {config.folder} has {tokenizer.vocab_size}"
        )
    if isinstance(made, GenerativeConfig) and made.tower != "vit":
        # The folder of a text encoder has no image preprocessing.
        return tokenizer, ImageFit(made.image_size)
    how = "crop" if made.class_token else "stretch"
    adapt = config.folder != config.weights
    return tokenizer, read_image_fit(config.folder, made.image_size, how, adapt=adapt)


def _end_id(config: ModelConfig, tokenizer: TextTokenizer) -> int:
    """Returns the token that ends the answers of a new model."""
    if not tokenizer.special_ids:
        raise ValueError(
            f"the tokenizer of {config.folder} adds no token that ends a text, and a "
            "new model must learn one; name another in model.processor"
        )
    return tokenizer.special_ids[-1]


def _check_end(
    config: ModelConfig, made: VisionTextConfig, tokenizer: TextTokenizer
) -> None:
    if not config.folder or made.text.pooling != "end":
        return
    if made.end_id not in tokenizer.special_ids:
        raise ValueError(
            f"the weights {config.weights!r} read a caption at its end token "
            f"{made.end_id}, and the tokenizer of {config.folder} adds "
            f"{list(tokenizer.special_ids)}"
        )


def _check_length(config: ModelConfig, made: VisionTextConfig, length: int) -> None:
    if length > made.text_length:
        raise ValueError(
            f"the weights {config.weights!r} are for captions up to {made.text_length} "
            f"tokens; pipeline.text_length={length} is more"
        )
    if made.text.pooling == "last" and length != made.text_length:
        raise ValueError(
            f"the weights {config.weights!r} read a caption at the last of "
            f"{made.text_length} places; pipeline.text_length={length} must be that "
            "or None"
        )
