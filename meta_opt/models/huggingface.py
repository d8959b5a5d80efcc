"""CLIP and SigLIP folders as Hugging Face Transformers saves them, read and written.

A folder has ``config.json`` and ``model.safetensors``, or several files of that kind
and ``model.safetensors.index.json``. Tensors are read from memory-mapped files straight
into arrays of any sharding: of a large kernel each device's part alone.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models.parameters import by_path, exportable, mismatch, some
from meta_opt.models.vision_text import (
    CLIP_MEAN,
    CLIP_STD,
    TowerConfig,
    VisionText,
    VisionTextConfig,
    resize_positions,
)
from meta_opt.types import PyTree, near_match, write_atomic

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# What Transformers leaves out of config.json.
_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_IMAGES = {**_BASE, "num_channels": 3, "image_size": 224}
_OF_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_OF_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "clip": {
        "text_config": {
            **_BASE,
            **_OF_CLIP,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_attention_heads": 8,
            "vocab_size": 49408,
            "max_position_embeddings": 77,
            "eos_token_id": 49407,
        },
        "vision_config": {**_IMAGES, **_OF_CLIP, "patch_size": 32},
    },
    "siglip": {
        "text_config": {
            **_BASE,
            **_OF_SIGLIP,
            "vocab_size": 32000,
            "max_position_embeddings": 64,
            "pad_token_id": 1,
        },
        "vision_config": {**_IMAGES, **_OF_SIGLIP, "patch_size": 16},
    },
}
_LEGACY_END = 2
"""CLIP's ``eos_token_id`` where the end token is meant to be the largest id."""


def read_config(folder: str | os.PathLike) -> VisionTextConfig:
    """The architecture that a folder's ``config.json`` describes.

    Channel statistics come from ``preprocessor_config.json`` if there is one.

    Raises:
        ValueError: no such file, a model that is neither CLIP nor SigLIP, or one with
            parts that `VisionText` does not have; the setting is named.
    """
    folder = Path(folder)
    given = _read_json(folder / "config.json")
    processor = folder / "preprocessor_config.json"
    channels = _read_json(processor) if processor.is_file() else {}
    try:
        return _parse_config(given, channels)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None


def _parse_config(
    given: Mapping[str, Any], channels: Mapping[str, Any]
) -> VisionTextConfig:
    """The architecture of the two files' contents."""
    kind = given.get("model_type")
    if kind not in _DEFAULTS:
        raise ValueError(
            f"it is of a model_type {kind!r}"
            f"{near_match(str(kind), _DEFAULTS)}; clip and siglip can be read"
        )
    text, vision = (
        {**_DEFAULTS[kind][part], **(given.get(part) or {})}
        for part in ("text_config", "vision_config")
    )
    if vision["num_channels"] != 3 or not vision.get("vision_use_head", True):
        raise ValueError("images need 3 channels and the model a pooling head")
    clip = kind == "clip"
    towers = {
        "vision": _tower(
            vision,
            pooling="first" if clip else "attention",
            projection="linear" if clip else "none",
            input_norm=clip,
        ),
        "text": _tower(
            text,
            pooling="end" if clip else "last",
            projection="linear" if clip else "linear_bias",
            causal=clip,
        ),
    }
    mean, std = (CLIP_MEAN, CLIP_STD) if clip else ((0.5,) * 3, (0.5,) * 3)
    mean = tuple(channels.get("image_mean", mean))
    std = tuple(channels.get("image_std", std))
    end = text.get("eos_token_id", -1)
    vocabulary = text["vocab_size"]
    if clip:
        end = vocabulary - 1 if end == _LEGACY_END else end
        embed_dim = given.get("projection_dim", 512)
    else:
        embed_dim = vision["hidden_size"]
        if text.get("projection_size", embed_dim) not in (None, embed_dim):
            raise ValueError(
                f"projection_size={text['projection_size']} of the text is "
                f"not the width {embed_dim} of the vision tower"
            )
    return VisionTextConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision=towers["vision"],
        text=towers["text"],
        class_token=clip,
        patch_bias=not clip,
        image_mean=mean,
        image_std=std,
        vocab_size=vocabulary,
        text_length=text["max_position_embeddings"],
        pad_id=end if clip else text["pad_token_id"],
        reads_padding=True,
        end_id=end if clip else -1,
        embed_dim=embed_dim,
    )


def _tower(settings: Mapping[str, Any], **changes: Any) -> TowerConfig:
    name = settings["hidden_act"]
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"hidden_act={name!r} is none of {', '.join(_ACTIVATIONS)}"
            f"{near_match(name, _ACTIVATIONS)}"
        )
    return TowerConfig(
        width=settings["hidden_size"],
        depth=settings["num_hidden_layers"],
        heads=settings["num_attention_heads"],
        mlp_width=settings["intermediate_size"],
        activation=_ACTIVATIONS[name],
        norm_epsilon=settings["layer_norm_eps"],
        **changes,
    )


# Which tensors a parameter is made of


class _Place(NamedTuple):
    """Where a parameter is in the files.

    Attributes:
        names: of the tensors; for a scan-stacked parameter one for each layer.
        stacked: whether the parameter has a leading layer axis.
        transposed: whether a tensor [out, in] is a kernel [in, out].
        shape: of each tensor in the file.
        to_file: one layer of the parameter to the tensor, where that is more than a
            transposition or a reshape.
        from_file: back.
        third: which third of the tensor's rows it is, as in a joint projection.
    """

    names: tuple[str, ...]
    stacked: bool
    transposed: bool
    shape: tuple[int, ...]
    to_file: Callable[[np.ndarray], np.ndarray] | None = None
    from_file: Callable[[np.ndarray], np.ndarray] | None = None
    third: int | None = None


_BLOCK = {
    "attention_norm/scale": "layer_norm1.weight",
    "attention_norm/bias": "layer_norm1.bias",
    "mlp_norm/scale": "layer_norm2.weight",
    "mlp_norm/bias": "layer_norm2.bias",
    "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
}
_COMMON = {
    "text/tokens/embedding": "text_model.embeddings.token_embedding.weight",
    "text/positions": "text_model.embeddings.position_embedding.weight",
    "text/norm/scale": "text_model.final_layer_norm.weight",
    "text/norm/bias": "text_model.final_layer_norm.bias",
    "vision/positions": "vision_model.embeddings.position_embedding.weight",
    "vision/patches": "vision_model.embeddings.patch_embedding",
    "vision/norm/scale": "vision_model.post_layernorm.weight",
    "vision/norm/bias": "vision_model.post_layernorm.bias",
    "log_scale": "logit_scale",
}
_CLIP = {
    **_COMMON,
    "vision/class_token": "vision_model.embeddings.class_embedding",
    # Their spelling.
    "vision/input_norm/scale": "vision_model.pre_layrnorm.weight",
    "vision/input_norm/bias": "vision_model.pre_layrnorm.bias",
    "vision/projection": "visual_projection",
    "text/projection": "text_projection",
}
_SIGLIP = {
    **_COMMON,
    "vision/pool/probe": "vision_model.head.probe",
    "vision/pool/attention/out": "vision_model.head.attention.out_proj",
    "vision/pool/norm/scale": "vision_model.head.layernorm.weight",
    "vision/pool/norm/bias": "vision_model.head.layernorm.bias",
    "vision/pool/mlp/up": "vision_model.head.mlp.fc1",
    "vision/pool/mlp/down": "vision_model.head.mlp.fc2",
    "text/projection": "text_model.head",
    "logit_bias": "logit_bias",
}
_JOINT = ("query", "key", "value")
_BUFFERS = (".position_ids",)
"""Endings of tensors that are no parameters."""


def module_names(
    config: VisionTextConfig, path: str, shape: tuple[int, ...]
) -> tuple[str, ...]:
    """Names that Transformers gives the linear layers of a kernel.

    Args:
        config: CLIP's or SigLIP's.
        path: '/'-joined, of a kernel.
        shape: of the kernel; a stacked one has a name for each layer.

    Raises:
        ValueError: a kernel that is no linear layer of its own there.
    """
    names = _CLIP if _is_clip(config) else _SIGLIP
    parent = path.removesuffix("/kernel")
    if "/layers/" not in path and parent not in names:
        raise ValueError(f"{path} is no linear layer of its own in Transformers")
    place = _place(path, shape, names, config)
    if place.to_file is not None:
        raise ValueError(f"{path} is a convolution in Transformers")
    return tuple(name.removesuffix(".weight") for name in place.names)


def _is_clip(config: VisionTextConfig) -> bool:
    return config.class_token


def _places(
    config: VisionTextConfig, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, _Place]:
    """The place of each parameter; CLIP has none for the logit bias."""
    names = _CLIP if _is_clip(config) else _SIGLIP
    found = {}
    for path, shape in shapes.items():
        if path == "logit_bias" and path not in names:
            continue
        found[path] = _place(path, shape, names, config)
    return found


def _place(
    path: str,
    shape: tuple[int, ...],
    names: Mapping[str, str],
    config: VisionTextConfig,
) -> _Place:
    parent, _, leaf = path.rpartition("/")
    ending = {"kernel": ".weight", "bias": ".bias"}.get(leaf, "")
    is_kernel = leaf == "kernel"
    if "/layers/" in path:
        tower, _, inside = path.partition("/layers/")
        rest, _, _ = inside.rpartition("/")
        own = _BLOCK[inside] if inside in _BLOCK else _BLOCK[rest] + ending
        prefix = f"{tower}_model.encoder.layers"
        layers = tuple(f"{prefix}.{i}.{own}" for i in range(shape[0]))
        one = shape[1:]
        return _Place(layers, True, is_kernel, one[::-1] if is_kernel else one)
    if parent.startswith("vision/pool/attention/") and parent.split("/")[-1] in _JOINT:
        third = _JOINT.index(parent.split("/")[-1])
        name = (
            f"vision_model.head.attention.in_proj_{'weight' if is_kernel else 'bias'}"
        )
        whole = (3 * shape[-1], *shape[:-1])
        return _Place((name,), False, is_kernel, whole, third=third)
    name = names[path] if path in names else names[parent] + ending
    if path == "vision/patches/kernel":
        p, width = config.patch_size, shape[-1]
        return _Place(
            (name,),
            False,
            False,
            (width, 3, p, p),
            to_file=lambda x: x.reshape(p, p, 3, width).transpose(3, 2, 0, 1),
            from_file=lambda x: x.transpose(2, 3, 1, 0).reshape(3 * p * p, width),
        )
    if path == "vision/class_token":
        return _reshaped(name, shape, shape[1:])
    if path in ("log_scale", "logit_bias") and not _is_clip(config):
        return _reshaped(name, shape, (1,))
    return _Place((name,), False, is_kernel, shape[::-1] if is_kernel else shape)


def _reshaped(name: str, shape: tuple[int, ...], in_file: tuple[int, ...]) -> _Place:
    return _Place(
        (name,),
        False,
        False,
        in_file,
        to_file=lambda x: x.reshape(in_file),
        from_file=lambda x: x.reshape(shape),
    )


# Reading


class _Files:
    """The tensors of a folder by name, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        self._open: dict[str, Any] = {}
        self._where: dict[str, str] = {}
        index = folder / _INDEX
        if index.is_file():
            listed: dict[str, str] = _read_json(index)["weight_map"]
            files = sorted(set(listed.values()))
        else:
            listed, files = {}, [_SINGLE]
        absent = [name for name in files if not (folder / name).is_file()]
        if absent:
            lost = sorted(k for k, f in listed.items() if f in absent)
            raise ValueError(
                f"{folder} lacks {', '.join(absent)}"
                + (f", where {some(lost)} should be" if lost else "")
            )
        for name in files:
            try:
                opened = safe_open(folder / name, framework="np")
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{folder / name} is damaged or cut short ({error}); fetch it again"
                ) from None
            self._open[name] = opened
            self._where.update(dict.fromkeys(opened.keys(), name))
        if gone := sorted(set(listed) - set(self._where)):
            raise ValueError(f"{folder}: {index.name} lists {some(gone)}, not there")

    def names(self) -> set[str]:
        return set(self._where)

    def slice(self, name: str) -> Any:
        return self._open[self._where[name]].get_slice(name)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.slice(name).get_shape())


def load(
    folder: str | os.PathLike,
    shardings: Callable[[PyTree], PyTree] | None = None,
    **changes: Any,
) -> VisionText:
    """Reads a CLIP or SigLIP folder.

    Args:
        folder: with ``config.json`` and safetensors.
        shardings: from a nested dict of abstract parameters to their shardings, such as
            ``lambda p: parameter_shardings(rules, mesh, p)[0]``; None for the default
            device. No array is whole anywhere but where its sharding says so.
        **changes: fields of `VisionTextConfig` that leave the parameters as they are
            (``dtype``, ``param_dtype``, ``remat``), and ``image_size``, to which
            position embeddings are resized.

    Returns:
        The model.

    Raises:
        ValueError: a folder that is incomplete, damaged, or of another architecture
            than its ``config.json`` says; tensors are named.

    Example:
        model = load("siglip-base-patch16-224", dtype="bfloat16")
    """
    folder = Path(folder)
    written = read_config(folder)
    config = dataclasses.replace(written, **changes)
    files = _Files(folder)
    model = nnx.eval_shape(lambda: VisionText(config, rngs=nnx.Rngs(0)))
    abstract = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    params = by_path(model)
    placed = _flat(shardings(abstract)) if shardings else {}
    in_file = nnx.eval_shape(lambda: VisionText(written, rngs=nnx.Rngs(0)))
    shapes = {path: tuple(param.shape) for path, param in by_path(in_file).items()}
    places = _places(written, shapes)
    _check(files, places)
    for path, param in params.items():
        if path not in places:  # CLIP's logit bias
            value = jnp.full(param.shape, config.init_bias, param.dtype)
        else:
            place = places[path]
            if path == "vision/positions" and config.grid != written.grid:
                place = place._replace(
                    from_file=lambda x: np.asarray(
                        resize_positions(x, written.grid, config.grid)
                    )
                )
            default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            value = jax.make_array_from_callback(
                param.shape,
                placed.get(path, default),
                _reader(files, place, param.shape, param.dtype),
            )
        param.set_value(value)
    return model


def _reader(
    files: _Files, place: _Place, shape: tuple[int, ...], dtype: Any
) -> Callable[[Any], np.ndarray]:
    """A function from an index of the parameter to that part of it."""

    def one(name: str, index: tuple[slice, ...]) -> np.ndarray:
        tensor = files.slice(name)
        if place.from_file is not None:
            return place.from_file(np.asarray(tensor[...]))[index]
        if place.third is not None:
            width = place.shape[0] // 3
            first = slice(place.third * width, (place.third + 1) * width)
            part = np.asarray(tensor[first])
            return (part.T if place.transposed else part)[index]
        if not index:
            return np.asarray(tensor[...]).reshape(())
        if place.transposed:
            return np.asarray(tensor[index[::-1]]).T
        return np.asarray(tensor[index])

    def read(index: tuple[slice, ...]) -> np.ndarray:
        full = tuple(
            slice(*i.indices(n)[:2]) for i, n in zip(index, shape, strict=True)
        )
        if not place.stacked:
            return one(place.names[0], full).astype(dtype)
        layers, rest = place.names[full[0]], full[1:]
        # Filled layer by layer: twice the part is never held.
        part = np.empty([s.stop - s.start for s in full], dtype)
        for i, name in enumerate(layers):
            part[i] = one(name, rest)
        return part

    return read


def _check(files: _Files, places: Mapping[str, _Place]) -> None:
    """Raises ValueError naming tensors that are missing, unknown or of other shape."""
    wanted = {name: list(p.shape) for p in places.values() for name in p.names}
    there = [n for n in sorted(files.names()) if not n.endswith(_BUFFERS)]
    problems = mismatch({name: list(files.shape(name)) for name in there}, wanted)
    if problems:
        raise ValueError(
            f"{files.folder} is of another architecture than its config.json: "
            f"{problems}"
        )


# Writing


def check_writable(config: VisionTextConfig) -> None:
    """Raises ValueError unless `save` could write models of this architecture."""
    _write_config(config)


def save(
    folder: str | os.PathLike, model: VisionText, max_shard_bytes: int = 5 * 10**9
) -> None:
    """Writes a model the way Transformers reads it: what `load` takes, changed or not.

    Args:
        folder: created if needed.
        model: of CLIP's or SigLIP's architecture, without adapters.
        max_shard_bytes: files are no larger than this, or than one tensor.

    Raises:
        ValueError: an architecture that is neither; adapters; kernels in int8.
    """
    from safetensors.numpy import save_file

    folder, config = Path(folder), model.config
    settings = _write_config(config)
    params = exportable(model)
    places = _places(config, {k: tuple(v.shape) for k, v in params.items()})
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in _tensors(params, places):
        if size + tensor.nbytes > max_shard_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    names = [
        _SINGLE
        if len(shards) == 1
        else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        for i in range(1, len(shards) + 1)
    ]
    for name, shard in zip(names, shards, strict=True):
        with write_atomic(folder / name) as temporary:
            save_file(shard, temporary, metadata={"format": "pt"})
    if len(shards) > 1:
        index = {
            "metadata": {
                "total_size": sum(t.nbytes for s in shards for t in s.values())
            },
            "weight_map": {k: n for n, s in zip(names, shards, strict=True) for k in s},
        }
        _write_json(folder / _INDEX, index)
    _write_json(folder / "config.json", settings)
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor"
            if _is_clip(config)
            else "SiglipImageProcessor",
            "image_mean": list(config.image_mean),
            "image_std": list(config.image_std),
            "rescale_factor": 1 / 255,
            "size": {"height": config.image_size, "width": config.image_size},
        },
    )


def _tensors(
    params: Mapping[str, nnx.Param], places: Mapping[str, _Place]
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors of the files, one parameter at a time."""
    joint: dict[str, dict[int, np.ndarray]] = {}
    for path, place in places.items():
        array = np.asarray(params[path][...])
        layers = array if place.stacked else array[None]
        for name, x in zip(place.names, layers, strict=True):
            tensor = x.T if place.transposed else x
            tensor = place.to_file(tensor) if place.to_file else tensor
            if place.third is None:
                # In C order: safetensors writes the buffer as it lies.
                yield name, np.array(tensor, order="C")
                continue
            parts = joint.setdefault(name, {})
            parts[place.third] = tensor
            if len(parts) == 3:
                whole = np.concatenate([parts[i] for i in range(3)])
                yield name, np.array(whole, order="C")


def _write_config(config: VisionTextConfig) -> dict[str, Any]:
    """``config.json`` of an architecture.

    Raises:
        ValueError: if it is neither CLIP's nor SigLIP's.
    """
    clip = _is_clip(config)
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}

    def tower(tower: TowerConfig, kind: str) -> dict[str, Any]:
        return {
            "model_type": f"{'clip' if clip else 'siglip'}_{kind}_model",
            "hidden_size": tower.width,
            "intermediate_size": tower.mlp_width,
            "num_hidden_layers": tower.depth,
            "num_attention_heads": tower.heads,
            "hidden_act": activations[tower.activation],
            "layer_norm_eps": tower.norm_epsilon,
        }

    text = {
        **tower(config.text, "text"),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.text_length,
        "pad_token_id": config.pad_id,
    }
    text |= (
        {"eos_token_id": config.end_id, "projection_dim": config.embed_dim}
        if clip
        else {"projection_size": config.embed_dim}
    )
    vision = {
        **tower(config.vision, "vision"),
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
    }
    settings: dict[str, Any] = {
        "architectures": ["CLIPModel" if clip else "SiglipModel"],
        "model_type": "clip" if clip else "siglip",
        "text_config": text,
        "vision_config": vision,
        "dtype": config.param_dtype,
    }
    if clip:
        settings |= {"projection_dim": config.embed_dim}
    _check_writable(config, settings)
    return settings


def _check_writable(config: VisionTextConfig, settings: dict[str, Any]) -> None:
    """Raises ValueError unless the settings, read again, are the architecture."""
    free = {
        *("image_mean", "image_std", "init_scale", "init_bias", "pad_id"),
        *("dtype", "param_dtype", "remat", "scan_layers"),
    }
    try:
        back = dataclasses.asdict(_parse_config(settings, {}))
    except ValueError as error:
        why = str(error)
    else:
        ours = dataclasses.asdict(config).items()
        why = ", ".join(k for k, v in ours if k not in free and v != back[k])
    if why:
        raise ValueError(
            f"this architecture is neither CLIP's nor SigLIP's: {why}; "
            "`meta_opt.models.pretrained.save` writes any"
        )


def _flat(tree: PyTree) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}: not a model's folder")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with write_atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
