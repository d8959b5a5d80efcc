"""Exports of vision-text models or their adapters, in four formats."""

import shutil
import tempfile
from pathlib import Path

from meta_opt.data.catalog.encoder_weights import ABOUT, license_of
from meta_opt.models import huggingface, pretrained
from meta_opt.models.adapters import save_adapters, save_peft
from meta_opt.models.lora import LoRAParam, merge_lora
from meta_opt.models.parameters import by_path
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.image_text_architecture import (
    ModelConfig,
    is_folder,
    tokenizer_folder,
)
from meta_opt.workloads.image_text_model import Module

_OF_ADAPTERS = ("adapters", "peft")
# Files copied from the source folder: neither weights nor written by this package.
_BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "preprocessor_config.json",
    "processor_config.json",
)


def check_settings(export: ExportConfig, model: ModelConfig) -> None:
    """Checks, from settings alone, that the export can be written.

    Raises:
        ValueError: the run has no adapters or no tokenizer to write, or the export
            would overwrite files that the run reads.
    """
    if not export.path:
        return
    if export.format in _OF_ADAPTERS and model.trainable != "lora":
        raise ValueError(
            f"export.format={export.format!r} writes adapters, and "
            f"model.trainable={model.trainable!r} has none; use 'model' or "
            "'huggingface', or model.trainable='lora'"
        )
    path = Path(export.path).resolve()
    if any(path == Path(f).resolve() for f in (model.weights, model.processor) if f):
        raise ValueError(
            f"export.path={export.path!r} is what the run reads; use another"
        )
    if export.format == "huggingface" and not model.folder:
        raise ValueError(
            "export.format='huggingface' writes a tokenizer too, and there is no "
            f"folder with one: model.weights={model.weights!r} is none and "
            "model.processor is not given"
        )


def check_model(export: ExportConfig, model: Module) -> None:
    """Checks, before training, that this model can be written.

    Raises:
        ValueError: the format does not support the architecture or the adapters.
    """
    if not export.path:
        return
    if export.format in ("huggingface", "peft"):
        huggingface.check_writable(model.config)
    if export.format == "peft":
        params = by_path(model)
        for path in by_path(model, LoRAParam):
            kernel = f"{path.rpartition('/')[0]}/kernel"
            huggingface.module_names(model.config, kernel, params[kernel].shape)


def write(export: ExportConfig, model: Module, config: ModelConfig) -> None:
    """Writes a trained model; adapters are merged unless the format keeps them.

    Args:
        export: path and format; without a path nothing is written.
        model: trained model with its adapters, if any; it may be modified.
        config: configuration that the model was built from.
    """
    if not export.path:
        return
    if export.format == "adapters":
        save_adapters(export.path, model, config.lora)
        return
    if export.format == "peft":
        base = config.weights if is_folder(config.weights) else ""
        save_peft(export.path, model, config.lora, base)
        return
    if config.trainable == "lora":
        merge_lora(model)
    if export.format == "model":
        _write_tokenizer(export.path, config.folder)
        pretrained.save(export.path, model)
        return
    huggingface.save(export.path, model)
    for name in _BESIDE:
        if (there := Path(config.folder) / name).is_file():
            shutil.copyfile(there, Path(export.path) / name)


def _write_tokenizer(path: str, source: str) -> None:
    """Writes the tokenizer next to weights in this package's format.

    This package's own tokenizer is not written, nor are files without a known licence,
    which may not permit redistribution.
    """
    folder = tokenizer_folder(path)
    if folder.exists():  # From an earlier export.
        shutil.rmtree(folder)
    if not source or not license_of(source):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as name:
        scratch = Path(name) / folder.name
        scratch.mkdir()
        for file in (ABOUT, *_BESIDE):
            if (there := Path(source) / file).is_file():
                shutil.copyfile(there, scratch / file)
        scratch.rename(folder)
