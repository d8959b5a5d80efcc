"""Model weights: safetensors, files of other libraries, and exported models."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.hostile_files import samples
from experiments.hostile_files.format import Files, Format, of_file, written
from experiments.hostile_files.model_settings import clip_settings


def _tensors(folder: Path) -> Any:
    from meta_opt.models.huggingface.files import Files as TensorFiles

    found = TensorFiles(folder)
    return {name: np.asarray(found.slice(name)[...]) for name in found.names()}


def _sharded() -> Files:
    import safetensors.numpy

    tensors = samples.tensors()
    parts = {"x.safetensors": ("a.weight", "a.bias"), "y.safetensors": ("b", "c")}
    found = {
        file: safetensors.numpy.save({k: tensors[k] for k in names})
        for file, names in parts.items()
    }
    weight_map = {k: file for file, names in parts.items() for k in names}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    return {**found, "model.safetensors.index.json": samples.dumped(index)}


def _single() -> Files:
    import safetensors.numpy

    return {"model.safetensors": safetensors.numpy.save(samples.tensors())}


@functools.cache
def _model() -> Any:
    """Returns graph definition and state of a small CLIP model, see `_copy`."""
    from flax import nnx

    from meta_opt.models.huggingface.contrastive import parse_config
    from meta_opt.models.vision_text import VisionText

    config = parse_config(clip_settings())
    return nnx.split(nnx.jit(lambda: VisionText(config, rngs=nnx.Rngs(0)))())


def _copy() -> Any:
    from flax import nnx

    return nnx.merge(*_model(), copy=True)


def _clip_folder() -> Files:
    from meta_opt.models import huggingface

    return written(lambda folder: huggingface.save(folder, _copy()))


def _read_clip(folder: Path) -> Any:
    from meta_opt.models import huggingface

    return huggingface.load(folder)


def _with_adapters() -> Any:
    from flax import nnx

    from meta_opt.models.lora import LoRAConfig, add_lora

    model, config = _copy(), LoRAConfig(pattern="query|value", rank=2)
    add_lora(model, config, rngs=nnx.Rngs(0))
    return model, config


def _adapters() -> Files:
    from meta_opt.models.adapters import save_adapters

    return written(lambda folder: save_adapters(folder, *_with_adapters()))


def _read_adapters(folder: Path) -> Any:
    from meta_opt.models.adapters import load_adapters

    return load_adapters(folder, _copy())


def _peft() -> Files:
    from meta_opt.models.adapters import save_peft

    return written(lambda folder: save_peft(folder, *_with_adapters()))


def _read_peft(folder: Path) -> Any:
    from meta_opt.models.adapters import load_peft

    return load_peft(folder, _copy())


def _own_weights() -> Files:
    from meta_opt.models import pretrained

    return written(lambda folder: pretrained.save(folder / "own", _copy()))


def _read_own(folder: Path) -> Any:
    from meta_opt.models import pretrained

    return pretrained.load(folder / "own")


def _theta() -> Files:
    import jax

    from meta_opt.optimizers.controller import ControllerConfig, init_theta
    from meta_opt.optimizers.weights import save_theta

    config = ControllerConfig(global_hidden=4, tensor_hidden=4)
    theta = init_theta(jax.random.key(0), config)
    return written(lambda folder: save_theta(folder / "theta", theta, config))


def _read_theta(folder: Path) -> Any:
    from meta_opt.optimizers.weights import load_theta, weights_digest

    path = folder / "theta.safetensors"
    return weights_digest(path), load_theta(path)


def _classifier() -> Files:
    from flax import nnx

    from meta_opt.data.preprocessing.image_fit import ImageFit
    from meta_opt.models.convnets import Classifier, ResNetConfig, make_convnet
    from meta_opt.workloads.classification_export import write_classifier

    def create() -> Classifier:
        rngs, config = nnx.Rngs(0), ResNetConfig(depths=(1,), widths=(8,), stem=4)
        return Classifier(make_convnet(config, rngs=rngs), 2, 0.0, rngs=rngs)

    return written(
        lambda folder: write_classifier(
            folder, nnx.jit(create)(), ("cat", "dog"), ImageFit(32)
        )
    )


def _read_classifier(folder: Path) -> Any:
    from meta_opt.workloads.classification_export import read_classifier

    return read_classifier(folder)


def _ctranslate2(path: Path) -> Any:
    from meta_opt.data.convert.ctranslate2 import read_ctranslate2

    return read_ctranslate2(path)


def _torch(path: Path) -> Any:
    from meta_opt.data.convert.torch_legacy import read_torch_legacy

    return read_torch_legacy(path)


_exported = functools.partial(Format, costly=True)

FORMATS: Mapping[str, Format] = {
    "safetensors": Format(_single, _tensors, {"model.safetensors": "safetensors"}),
    "safetensors_index": Format(
        _sharded,
        _tensors,
        {"model.safetensors.index.json": "json", "x.safetensors": "safetensors"},
    ),
    "ctranslate2": of_file("model.bin", samples.ctranslate2, _ctranslate2, "bytes"),
    "torch_legacy": of_file("a.pth", samples.torch_legacy, _torch, "bytes"),
    "clip_folder": _exported(
        _clip_folder,
        _read_clip,
        {"config.json": "json", "model.safetensors": "safetensors"},
    ),
    "adapters": _exported(
        _adapters,
        _read_adapters,
        {"adapters.json": "json", "adapters.safetensors": "safetensors"},
        sealed=("adapters.json", "adapters.safetensors"),
    ),
    "peft": _exported(
        _peft,
        _read_peft,
        {"adapter_config.json": "json", "adapter_model.safetensors": "safetensors"},
    ),
    "own_weights": _exported(
        _own_weights,
        _read_own,
        {"own.json": "json", "own.safetensors": "safetensors"},
        sealed=("own.json", "own.safetensors"),
    ),
    "controller_weights": _exported(
        _theta,
        _read_theta,
        {"theta.json": "json", "theta.safetensors": "safetensors"},
        sealed=("theta.json", "theta.safetensors"),
    ),
    "classifier": _exported(
        _classifier,
        _read_classifier,
        {"classifier.json": "json", "model.safetensors": "safetensors"},
        sealed=("classifier.json", "model.safetensors"),
    ),
}
