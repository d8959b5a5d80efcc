"""Formats of files from outside: a valid sample, its reader, and what it may raise."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.hostile_files import samples

Files = Mapping[str, bytes]
_NO_NAME = (OSError, ValueError)


@dataclasses.dataclass(frozen=True)
class Format:
    """A format and the contract of its reader.

    Attributes:
        files: makes a valid sample, contents by name below a folder.
        read: reads the folder; what it returns is not looked at.
        damage: by name of each file that is damaged, a kind of
            `experiments.hostile_files.mutations.KINDS`.
        errors: what the reader may raise.
        is_named: whether a message must name a file; readers of bytes know none.
        sealed: by name of a JSON file the file whose SHA-256 it has under ``sha256``:
            it is computed anew, as one who changes both files would.
        costly: whether a call takes a good part of a second.
    """

    files: Callable[[], Files]
    read: Callable[[Path], Any]
    damage: Mapping[str, str]
    errors: tuple[type[Exception], ...] = (ValueError, FileNotFoundError)
    is_named: bool = True
    sealed: tuple[str, str] | None = None
    costly: bool = False

    def seal(self, found: Files) -> Files:
        """The files with the right SHA-256 in the JSON, where it can be put there."""
        if self.sealed is None:
            return found
        about, data = self.sealed
        try:
            value = json.loads(found[about])
            value["sha256"] = hashlib.sha256(found[data]).hexdigest()
        except (ValueError, TypeError, RecursionError):
            return found
        return {**found, about: samples.dumped(value)}


def _of_bytes(name: str, data: Callable[[], bytes], read: Any, kind: str) -> Format:
    return Format(
        lambda: {name: data()},
        lambda folder: read((folder / name).read_bytes()),
        {name: kind},
        errors=_NO_NAME,
        is_named=False,
    )


def _of_file(name: str, data: Callable[[], bytes], read: Any, kind: str) -> Format:
    return Format(
        lambda: {name: data()}, lambda folder: read(folder / name), {name: kind}
    )


def _decode(data: bytes) -> Any:
    from meta_opt.data.preprocessing.images import decode

    return decode(data)


def _frames(data: bytes) -> Any:
    from meta_opt.data.preprocessing.images import count_frames, decode_frames

    return count_frames(data), decode_frames(data, 4)


def _svg(data: bytes) -> Any:
    from meta_opt.data.preprocessing.images import render_drawing
    from meta_opt.text_files import decode_text

    return render_drawing(decode_text(data), 64)


def _sound(path: Path) -> Any:
    from meta_opt.data.preprocessing.audio_files import read_clip

    return read_clip(path), read_clip(path.read_bytes(), 16_000, 30.0)


def _pictures(path: Path) -> Any:
    """Samples, and the pictures that they name."""
    from meta_opt.data.preprocessing.image_fit import ImageFit
    from meta_opt.data.preprocessing.pictures import Pictures, Unreadable
    from meta_opt.data.sources.image_text_rows import ImageTextRows

    return Pictures(ImageTextRows(path), ImageFit(16), Unreadable(0)).in_memory()


def _samples(path: Path) -> Any:
    """A task of several modalities, its media read."""
    from meta_opt.data.sources.sample_task import sample_task

    return sample_task(path, 0).read("train", None, 8)


def _predictions(path: Path) -> Any:
    from meta_opt.studies.stress.predictions import cells, read_predictions

    # Of values that disagree the message names the example.
    found = read_predictions([path])
    try:
        return cells(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _tensors(folder: Path) -> Any:
    from meta_opt.models.huggingface.files import Files as TensorFiles

    found = TensorFiles(folder)
    return {name: np.asarray(found.slice(name)[...]) for name in found.names()}


def _sharded() -> Files:
    import safetensors.numpy

    all_of_them = samples.tensors()
    parts = {"x.safetensors": ("a.weight", "a.bias"), "y.safetensors": ("b", "c")}
    found = {
        file: safetensors.numpy.save({k: all_of_them[k] for k in names})
        for file, names in parts.items()
    }
    weight_map = {k: file for file, names in parts.items() for k in names}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    return {**found, "model.safetensors.index.json": samples.dumped(index)}


def _single() -> Files:
    import safetensors.numpy

    return {"model.safetensors": safetensors.numpy.save(samples.tensors())}


def _clip_settings() -> dict[str, Any]:
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    text = {"vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 19}
    vision = {"image_size": 8, "patch_size": 4, "num_channels": 3}
    return {
        "model_type": "clip",
        "text_config": {**tower, **text},
        "vision_config": {**tower, **vision},
        "projection_dim": 16,
    }


def _processor() -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 8},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 8, "width": 8},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }


def _folder_settings() -> Files:
    return {
        "config.json": samples.dumped(_clip_settings()),
        "preprocessor_config.json": samples.dumped(_processor()),
    }


def _read_settings(folder: Path) -> Any:
    from meta_opt.data.preprocessing.image_fit import read_image_fit
    from meta_opt.models import huggingface

    return huggingface.read_config(folder), read_image_fit(folder, 8, "crop")


def _paligemma_settings() -> Files:
    text = {
        "model_type": "gemma",
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    vision = {
        **_clip_settings()["vision_config"],
        "model_type": "siglip_vision_model",
        "hidden_act": "gelu_pytorch_tanh",
    }
    about = {
        "model_type": "paligemma",
        "text_config": text,
        "vision_config": vision,
        "image_token_index": 31,
    }
    return {"config.json": samples.dumped(about)}


def _read_paligemma(folder: Path) -> Any:
    from meta_opt.models.huggingface.folders import read_generative_config

    return read_generative_config(folder)


def _convnet_settings() -> Files:
    about = {
        "model_type": "resnet",
        "depths": [1, 1],
        "hidden_sizes": [16, 32],
        "embedding_size": 8,
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "num_channels": 3,
    }
    return {"config.json": samples.dumped(about)}


def _timm_settings() -> Files:
    about = {
        "architecture": "convnext_tiny",
        "model_args": {"depths": [1, 1], "dims": [8, 16], "drop_path_rate": 0.1},
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    }
    return {"config.json": samples.dumped(about)}


def _read_convnet(folder: Path) -> Any:
    from meta_opt.models.convnets.folders import read_config

    return read_config(folder)


@functools.cache
def _model() -> Any:
    """A small CLIP model; what is put on it is put on a copy."""
    from flax import nnx

    from meta_opt.models.huggingface.contrastive import parse_config
    from meta_opt.models.vision_text import VisionText

    config = parse_config(_clip_settings())
    return nnx.split(nnx.jit(lambda: VisionText(config, rngs=nnx.Rngs(0)))())


def _copy() -> Any:
    from flax import nnx

    return nnx.merge(*_model(), copy=True)


def _written(write: Callable[[Path], Any]) -> Files:
    """What a function writes into a folder."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        return {
            path.relative_to(name).as_posix(): path.read_bytes()
            for path in sorted(Path(name).rglob("*"))
            if path.is_file()
        }


def _clip_folder() -> Files:
    from meta_opt.models import huggingface

    return _written(lambda folder: huggingface.save(folder, _copy()))


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

    return _written(lambda folder: save_adapters(folder, *_with_adapters()))


def _read_adapters(folder: Path) -> Any:
    from meta_opt.models.adapters import load_adapters

    return load_adapters(folder, _copy())


def _peft() -> Files:
    from meta_opt.models.adapters import save_peft

    return _written(lambda folder: save_peft(folder, *_with_adapters()))


def _read_peft(folder: Path) -> Any:
    from meta_opt.models.adapters import load_peft

    return load_peft(folder, _copy())


def _own_weights() -> Files:
    from meta_opt.models import pretrained

    return _written(lambda folder: pretrained.save(folder / "own", _copy()))


def _read_own(folder: Path) -> Any:
    from meta_opt.models import pretrained

    return pretrained.load(folder / "own")


def _theta() -> Files:
    import jax

    from meta_opt.optimizers.controller import ControllerConfig, init_theta
    from meta_opt.optimizers.weights import save_theta

    config = ControllerConfig(global_hidden=4, tensor_hidden=4)
    theta = init_theta(jax.random.key(0), config)
    return _written(lambda folder: save_theta(folder / "theta", theta, config))


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

    return _written(
        lambda folder: write_classifier(
            folder, nnx.jit(create)(), ("cat", "dog"), ImageFit(32)
        )
    )


def _read_classifier(folder: Path) -> Any:
    from meta_opt.workloads.classification_export import read_classifier

    return read_classifier(folder)


def _tokenizer() -> Files:
    from meta_opt.data.bundled import BUNDLED

    # As it ships: byte-pair merges, normalizers, pre-tokenizers, a decoder.
    value = json.loads((BUNDLED / "tokenizer.json").read_bytes())
    vocabulary = value["model"]["vocab"]
    kept = {token: i for token, i in vocabulary.items() if i < 120}
    value["model"]["vocab"] = kept
    value["model"]["merges"] = [
        pair
        for pair in value["model"]["merges"]
        if all(p in kept for p in _pair(pair)) and "".join(_pair(pair)) in kept
    ]
    settings = {"tokenizer_class": "CLIPTokenizer", "pad_token": "[PAD]"}
    return {
        "tokenizer.json": samples.dumped(value),
        "tokenizer_config.json": samples.dumped(settings),
    }


def _pair(merge: Any) -> Any:
    return merge.split(" ") if isinstance(merge, str) else merge


def _read_tokenizer(folder: Path) -> Any:
    from meta_opt.data.preprocessing.folder_tokenizer import FolderTokenizer
    from meta_opt.data.preprocessing.tokenizer import load_tokenizer

    rows = FolderTokenizer(folder, 0).encode(["a red cat!", "\0é😀"], 8)
    load_tokenizer.cache_clear()
    return rows, load_tokenizer(folder / "tokenizer.json").encode(["a cat"], 8)


def _features(path: Path) -> Any:
    from meta_opt.data.sources.video_annotations.clips import load_features

    return np.array(load_features(path)[:4])


def _msrvtt() -> Files:
    videos = [
        {"video_id": f"video{i}", "split": split, "category": i % 20, "url": "x"}
        for i, split in ((0, "train"), (6513, "validate"))
    ]
    texts = [{"caption": "a car", "video_id": v["video_id"]} for v in videos]
    return {
        "train_val_videodatainfo.json": samples.dumped(
            {"videos": videos, "sentences": texts}
        ),
        "media/video0.gif": samples.animation("GIF"),
    }


def _read_msrvtt(folder: Path) -> Any:
    from meta_opt.data.sources.video_annotations import read_annotations

    found = read_annotations("msrvtt", folder, split="train", media=folder / "media")
    assert found.clips is not None
    return found.clips.frames(found[0], 3, 8)


def _ctranslate2(path: Path) -> Any:
    from meta_opt.data.convert.ctranslate2 import read_ctranslate2

    return read_ctranslate2(path)


def _torch(path: Path) -> Any:
    from meta_opt.data.convert.torch_legacy import read_torch_legacy

    return read_torch_legacy(path)


def _wheel(folder: Path) -> Any:
    from meta_opt.data.catalog.packages import PypiPackage, unpack

    package = PypiPackage("a", "1", "", "a.whl", ("a",))
    unpack(package, folder / "a.whl", folder / "out")


def _npm(folder: Path) -> Any:
    from meta_opt.data.catalog.packages import NpmPackage, unpack

    package = NpmPackage("a", "1", "", "a.tgz", ("a",))
    # Compressed here, so that what is damaged is not the compression alone.
    import gzip

    (folder / "a.tgz").write_bytes(gzip.compress((folder / "a.tar").read_bytes(), 1))
    unpack(package, folder / "a.tgz", folder / "out")


def _package_format(name: str, data: Callable[[], bytes], read: Any, kind: str):
    from meta_opt.data.catalog.packages import PackageError

    return Format(lambda: {name: data()}, read, {name: kind}, errors=(PackageError,))


_MEMBERS = {"a/x.txt": b"first", "a/b/y.txt": b"second " * 50, "a/z": b""}


def _shard() -> Files:
    line = {
        "file": "0.png",
        "path": "animals/cat",
        "title": "cat",
        "keywords": ["pet"],
        "split": "train",
        "category": "animals",
    }
    data = samples.archive(
        {"0.png": samples.picture("PNG"), "metadata.jsonl": samples.lines(line)}
    )
    about = {"sha256": hashlib.sha256(data).hexdigest(), "class_names": ["animals"]}
    return {"openclipart64.zip": data, "openclipart64.json": samples.dumped(about)}


def _read_shard(folder: Path) -> Any:
    from meta_opt.data.sources.clipart import read_shard

    return read_shard(folder, "train").images()


def _few_shot() -> Files:
    about = {
        "classes": ["cat", "dog"],
        "settings": {"widths": [8, 16], "phases": 2, "prompt": "One of {categories}?"},
    }
    line = {"image": "a.png", "prompt": "?", "target": "cat", "label": "cat"}
    return {
        "dataset.json": samples.dumped(about),
        "8/phase_1.jsonl": samples.lines(line),
        "8/train.jsonl": samples.lines(line),
        "8/a.png": samples.picture("PNG"),
    }


def _read_few_shot(folder: Path) -> Any:
    from meta_opt.data.sources.few_shot.stored import open_few_shot

    found = open_few_shot(folder, 0)
    return found.prompt, found.digest(found.train(1)), found.classes


def _run() -> Files:
    loop = {"num_steps": 4, "batch_size": 2, "seed": 0}
    steps = [{"step": i, "train/loss": 1.0 / (i + 1)} for i in range(4)]
    return {
        "result.json": samples.dumped(
            {"test": {"accuracy": 0.5}, "train_seconds": 1.0, "trainable": 10}
        ),
        "config.json": samples.dumped({"loop": loop}),
        "environment.json": samples.dumped([{"step": 0, "git": None}]),
        "metrics.jsonl": samples.lines(*steps),
        "timing.jsonl": samples.lines({"step": 3, "train_seconds": 2.0}),
    }


def _read_run(folder: Path) -> Any:
    from meta_opt.reporting.runs import read_run

    found = read_run(folder, "a")
    return found.curve("train/loss"), found.seconds([0, 3]), found.final("train/loss")


def _ledger() -> Files:
    from meta_opt.finetuning.ledger import Amounts, Ledger, Prices

    ledger = Ledger(Prices("USD", device_hour=2.0)).add("a", "training", Amounts(1.0))
    return {"ledger.json": samples.dumped(ledger.record())}


def _read_ledger(folder: Path) -> Any:
    from meta_opt.finetuning.ledger import read_ledger

    return read_ledger(folder).record()


def _meta_test() -> bytes:
    run = {
        "budget": 1.0,
        "num_steps": 10,
        **{
            f"{split}_{what}": [0.5, None]
            for split in ("validation", "test")
            for what in ("loss", "error")
        },
        "seconds": 1.0,
    }
    return samples.dumped(
        {
            "format": 1,
            "task": "a",
            "optimizer": "adam",
            "fingerprint": {"a": [1.0]},
            "setup": {"seed": 0},
            "settings": {"learning_rate": 0.1},
            "trials": [],
            "runs": [run],
            "tuning_seconds": 0.0,
            "compile_seconds": 0.0,
            "environment": {},
        }
    )


def _read_meta_test(path: Path) -> Any:
    from meta_opt.studies.meta_test.records import read_record

    found = read_record(path)
    return found.full.mean_test_loss, found.full.test_accuracy


def _tuned() -> bytes:
    return samples.dumped(
        {"best": {"number": 0, "params": {"rate": 0.1}}, "trials": []}
    )


def _read_tuned(path: Path) -> Any:
    from meta_opt.tuning.results import read_results

    return read_results(path)


def _study() -> Files:
    return _written(lambda folder: _search(folder, 2))


def _search(folder: Path, trials: int) -> Any:
    from meta_opt.tuning.search import SearchConfig, search
    from meta_opt.tuning.space import Setting

    config = SearchConfig(num_trials=trials, seed=1, startup_trials=9, progress=False)
    space = {"rate": Setting("linear", low=0.0, high=1.0)}
    return search(
        config,
        space,
        lambda params, report: params["rate"],
        storage=folder / "study.sqlite3",
        name="s",
    )


def _checkpoint() -> Files:
    def write(folder: Path) -> None:
        from meta_opt.checkpoints import Checkpoints

        found = Checkpoints(folder)
        found.save(1, {"w": np.arange(6.0)}, {"seen": 3}, metric=0.5)
        found.close()

    return _written(write)


def _read_checkpoint(folder: Path) -> Any:
    from meta_opt.checkpoints import Checkpoints

    found = Checkpoints(folder)
    try:
        return found.restore({"w": np.arange(6.0)}), found.best_step()
    finally:
        found.close()


def _tar_of_pairs() -> bytes:
    return samples.tar(
        {
            "a.png": samples.picture("PNG"),
            "a.txt": b"a cat",
            "b.jpg": samples.picture("JPEG"),
            "b.json": samples.dumped({"text": "a dog", "split": "train"}),
        }
    )


def _captions() -> Files:
    first = {"image": "a.png", "text": ["a cat", "cats"], "split": "train", "id": 1}
    return {
        "pairs.jsonl": samples.lines(first, {"image": "b/a.png", "text": "a dog"}),
        "a.png": samples.picture("PNG"),
        "b/a.png": samples.picture("PNG", "LA"),
    }


def _multimodal() -> Files:
    first = {"image": "a.png", "audio": "a.wav", "label": "cat", "split": "train"}
    second = {"video": "a.gif", "text": "b", "label": 1, "split": "train"}
    return {
        "samples.jsonl": samples.lines(first, second),
        "a.png": samples.picture("PNG"),
        "a.wav": samples.sound("WAV"),
        "a.gif": samples.animation("GIF", 9),
    }


def _stress() -> bytes:
    return samples.lines(
        *(
            {
                "example": f"{i}.png",
                "label": "ship",
                "prediction": prediction,
                "confidence": 0.75,
                "model": "resnet50",
                "condition": {"corruption": "contrast", "severity": 3},
            }
            for i, prediction in enumerate(("ship", "bird", "ship"))
        )
    )


def _images() -> dict[str, Format]:
    made: dict[str, tuple[Callable[[], bytes], str]] = {
        "png": (functools.partial(samples.picture, "PNG"), "png"),
        "png_palette": (functools.partial(samples.picture, "PNG", "P"), "png"),
        "jpeg": (functools.partial(samples.picture, "JPEG"), "bytes"),
        "webp": (functools.partial(samples.picture, "WEBP", lossless=True), "bytes"),
        "gif": (functools.partial(samples.picture, "GIF"), "bytes"),
        "bmp": (functools.partial(samples.picture, "BMP"), "bytes"),
        "tiff": (
            functools.partial(samples.picture, "TIFF", compression="tiff_lzw"),
            "bytes",
        ),
        "tiff_grey": (functools.partial(samples.grey16, "TIFF"), "bytes"),
    }
    clips = {
        form: _of_bytes(
            f"a.{form}", functools.partial(samples.animation, pillow), _frames, kind
        )
        for form, pillow, kind in (
            ("gif_frames", "GIF", "bytes"),
            ("webp_frames", "WEBP", "bytes"),
            ("apng_frames", "PNG", "png"),
        )
    }
    pictures = {
        name: _of_bytes(f"a.{name}", make, _decode, kind)
        for name, (make, kind) in made.items()
    }
    return {
        **pictures,
        **clips,
        "svg": _of_bytes("a.svg", lambda: samples.SVG, _svg, "svg"),
    }


def _sounds() -> dict[str, Format]:
    made = {
        "wav": ("WAV", "PCM_16"),
        "wav_float": ("WAV", "FLOAT"),
        "ogg": ("OGG", "VORBIS"),
        "flac": ("FLAC", "PCM_16"),
        "mp3": ("MP3", None),
    }
    return {
        name: dataclasses.replace(
            _of_file(
                f"a.{name}", functools.partial(samples.sound, *how), _sound, "bytes"
            ),
            errors=(OSError,),
            is_named=False,
        )
        for name, how in made.items()
    }


def _all() -> dict[str, Format]:
    sealed = functools.partial(Format, costly=True)
    return {
        **_images(),
        **_sounds(),
        "captions_jsonl": Format(
            _captions,
            lambda folder: _pictures(folder / "pairs.jsonl"),
            {"pairs.jsonl": "json_lines", "a.png": "png"},
        ),
        "multimodal_jsonl": Format(
            _multimodal,
            lambda folder: _samples(folder / "samples.jsonl"),
            {"samples.jsonl": "json_lines", "a.wav": "bytes", "a.gif": "bytes"},
        ),
        "webdataset_tar": _of_file("a.tar", _tar_of_pairs, _pictures, "tar"),
        "stress_predictions": _of_file("p.jsonl", _stress, _predictions, "json_lines"),
        "safetensors": Format(_single, _tensors, {"model.safetensors": "safetensors"}),
        "safetensors_index": Format(
            _sharded,
            _tensors,
            {"model.safetensors.index.json": "json", "x.safetensors": "safetensors"},
        ),
        "clip_settings": Format(
            _folder_settings,
            _read_settings,
            {"config.json": "json", "preprocessor_config.json": "json"},
        ),
        "paligemma_settings": Format(
            _paligemma_settings, _read_paligemma, {"config.json": "json"}
        ),
        "resnet_settings": Format(
            _convnet_settings, _read_convnet, {"config.json": "json"}
        ),
        "timm_settings": Format(_timm_settings, _read_convnet, {"config.json": "json"}),
        "tokenizer_json": Format(
            _tokenizer,
            _read_tokenizer,
            {"tokenizer.json": "json", "tokenizer_config.json": "json"},
        ),
        "npy_features": _of_file(
            "a.npy",
            lambda: samples.npy(np.ones((5, 3), np.float32)),
            _features,
            "bytes",
        ),
        "msrvtt": Format(
            _msrvtt,
            _read_msrvtt,
            {"train_val_videodatainfo.json": "json", "media/video0.gif": "bytes"},
        ),
        "ctranslate2": _of_file(
            "model.bin", samples.ctranslate2, _ctranslate2, "bytes"
        ),
        "torch_legacy": _of_file("a.pth", samples.torch_legacy, _torch, "bytes"),
        "wheel_zip": _package_format(
            "a.whl", lambda: samples.archive(_MEMBERS), _wheel, "zip"
        ),
        "npm_tar": _package_format("a.tar", lambda: samples.tar(_MEMBERS), _npm, "tar"),
        "bundled_zip": Format(
            _shard,
            _read_shard,
            {"openclipart64.zip": "zip", "openclipart64.json": "json"},
            sealed=("openclipart64.json", "openclipart64.zip"),
        ),
        "few_shot": Format(_few_shot, _read_few_shot, {"dataset.json": "json"}),
        "run_folder": Format(
            _run,
            _read_run,
            {
                **dict.fromkeys(
                    ("result.json", "config.json", "environment.json"), "json"
                ),
                **dict.fromkeys(("metrics.jsonl", "timing.jsonl"), "json_lines"),
            },
        ),
        "ledger": Format(_ledger, _read_ledger, {"ledger.json": "json"}),
        "meta_test_record": _of_file("a.json", _meta_test, _read_meta_test, "json"),
        "search_result": _of_file("a.json", _tuned, _read_tuned, "json"),
        "clip_folder": sealed(
            _clip_folder,
            _read_clip,
            {"config.json": "json", "model.safetensors": "safetensors"},
        ),
        "adapters": sealed(
            _adapters,
            _read_adapters,
            {"adapters.json": "json", "adapters.safetensors": "safetensors"},
            sealed=("adapters.json", "adapters.safetensors"),
        ),
        "peft": sealed(
            _peft,
            _read_peft,
            {"adapter_config.json": "json", "adapter_model.safetensors": "safetensors"},
        ),
        "own_weights": sealed(
            _own_weights,
            _read_own,
            {"own.json": "json", "own.safetensors": "safetensors"},
            sealed=("own.json", "own.safetensors"),
        ),
        "controller_weights": sealed(
            _theta,
            _read_theta,
            {"theta.json": "json", "theta.safetensors": "safetensors"},
            sealed=("theta.json", "theta.safetensors"),
        ),
        "classifier": sealed(
            _classifier,
            _read_classifier,
            {"classifier.json": "json", "model.safetensors": "safetensors"},
            sealed=("classifier.json", "model.safetensors"),
        ),
        "optuna_study": sealed(
            _study, lambda folder: _search(folder, 2), {"study.sqlite3": "bytes"}
        ),
        "checkpoint": sealed(_checkpoint, _read_checkpoint, {"*": "bytes"}),
    }


FORMATS: Mapping[str, Format] = _all()
"""Formats by name."""
