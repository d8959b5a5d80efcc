"""Loading of models for inference: exports of runs and pretrained models."""

import os
from collections.abc import Callable
from pathlib import Path

from meta_opt.inference.classifier import PictureClassifier
from meta_opt.inference.image_text import ContrastiveModel, GenerativeModel
from meta_opt.inference.video_text import VideoTextModel
from meta_opt.models import huggingface, pretrained
from meta_opt.models.adapters import load_adapters, load_peft
from meta_opt.models.generative import Generative, GenerativeConfig
from meta_opt.models.vision_text import VisionText
from meta_opt.workloads.classification_export import is_classifier, read_classifier
from meta_opt.workloads.image_text_architecture import ModelConfig, is_folder
from meta_opt.workloads.image_text_model import load_weights
from meta_opt.workloads.image_text_preprocessing import read_preprocessing
from meta_opt.workloads.video_text_export import is_video_text, read_video_text


def load_exported(
    path: str | os.PathLike,
    *,
    adapter: str | os.PathLike = "",
    processor: str | os.PathLike = "",
    batch_size: int = 32,
    dtype: str = "float32",
    max_tokens: int = 32,
    prompt_length: int = 32,
    data_dir: str | os.PathLike = "",
) -> ContrastiveModel | GenerativeModel | PictureClassifier | VideoTextModel:
    """Loads a model for inference: an export of a run, or a pretrained model.

    Args:
        path: the folder of an image classifier or a video-text model that a run
            exported; a CLIP, SigLIP or PaliGemma folder in Hugging Face's format; a
            path of weights in this package's format, without suffix; or the name of
            shipped weights.
        adapter: folder of adapters in this package's format, or PEFT's for CLIP and
            SigLIP.
        processor: folder whose tokenizer and image processor replace those of ``path``;
            required if an export has no tokenizer because its licence is unknown.
        batch_size: images or texts per batch.
        dtype: compute dtype, ``float32`` or, but for video-text models, ``bfloat16``.
        max_tokens: maximum number of tokens per answer of a generative model.
        prompt_length: maximum number of tokens per prompt.
        data_dir: for a video-text model, the folder of the prepared encoders; "" for
            $META_OPT_DATA_DIR, or ``data`` if it is not set.

    Returns:
        A contrastive model, a generative model, an image classifier, or a video-text
        model.

    Raises:
        ValueError: the model does not exist, is damaged or lacks its tokenizer, or
            the adapters are of another model.
        MissingDataError: an encoder of a video-text model is not prepared.

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
                f"{weights} is an image classifier, which takes no adapter and no "
                "processor; leave them out"
            )
        classifier, settings = read_classifier(weights, dtype)
        return PictureClassifier(
            classifier, settings.class_names, settings.fit, batch_size
        )
    if is_video_text(weights):
        if adapter or processor or dtype != "float32":
            raise ValueError(
                f"{weights} is a video-text model, which takes no adapter, no "
                "processor and no dtype but float32; leave them out"
            )
        return VideoTextModel(read_video_text(weights, data_dir), batch_size)
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
        f"adapter={os.fspath(adapter)!r} is not a folder of adapters: it has no "
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
