"""A small multimodal task and small encoders, in the forms of the real ones."""

import hashlib
import json

import numpy as np
import safetensors.numpy
from flax import nnx
from tokenizers import Tokenizer, models, pre_tokenizers

from meta_opt.data import multimodal
from meta_opt.data.samples import KINDS, MultimodalTask, Samples
from meta_opt.models.encoders import registry
from meta_opt.models.encoders.efficientnet import (
    EfficientNet,
    EfficientNetConfig,
    Stage,
)
from meta_opt.models.encoders.minilm import MiniLM, MiniLMConfig
from meta_opt.models.encoders.whisper import WhisperConfig, WhisperEncoder
from meta_opt.models.fusion import FusionConfig
from meta_opt.workloads.multimodal_inputs import InputsConfig
from meta_opt.workloads.multimodal_model import (
    ADAPTED,
    LoRAConfig,
    MultimodalModelConfig,
)

WORDS = ("[PAD]", "red", "green", "blue", "large", "small", "a")
COLOURS = WORDS[1:4]
FUSION = FusionConfig(width=16, depth=1, heads=2, mlp_width=32, frames=4, remat="none")
MODEL = MultimodalModelConfig(FUSION, embed_dim=8, lora=LoRAConfig(ADAPTED, rank=2))


def _text():
    return MiniLM(
        MiniLMConfig(
            vocab_size=len(WORDS),
            text_length=8,
            width=12,
            depth=2,
            heads=2,
            mlp_width=24,
        ),
        rngs=nnx.Rngs(0),
    )


def _image():
    stages = (Stage(1, 3, 2, 1, 8), Stage(2, 3, 2, 2, 8))
    config = EfficientNetConfig(stem=8, stages=stages, head=16)
    return EfficientNet(config, rngs=nnx.Rngs(1))


def _audio():
    config = WhisperConfig(places=20, width=12, depth=2, heads=2, mlp_width=24)
    return WhisperEncoder(config, rngs=nnx.Rngs(2))


ENCODERS = {"text": _text, "image": _image, "audio": _audio}


def _build(make):
    return lambda tensors, changes: registry.filled(make, tensors)


def _folder(root, modality, make):
    """Writes an encoder as `meta_opt.data.encoder_weights` does, and registers it."""
    folder = root / "encoders" / f"toy_{modality}"
    folder.mkdir(parents=True)
    flat = nnx.to_flat_state(nnx.state(nnx.jit(make)()))
    data = safetensors.numpy.save(
        {"/".join(map(str, path)): np.asarray(v[...]) for path, v in flat}
    )
    (folder / "model.safetensors").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    (folder / "about.json").write_text(json.dumps({"sha256": digest}))
    if modality == "text":
        tokenizer = Tokenizer(
            models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="a")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
    if folder.name not in registry.names():
        registry.register(folder.name, _build(make))


def colour_samples(split, side, kind):
    """Pictures, words and tones of three colours; some samples lack some of them."""
    seed, count = {"train": (0, 48), "validation": (1, 24), "test": (2, 24)}[split]
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 3
    image = rng.integers(0, 80, (count, side, side, 3), np.uint8)
    image[np.arange(count), :, :, label] += 150
    texts = [f"a {COLOURS[n]}" for n in label]
    times = np.arange(1600) / 8000
    tones = [
        (8000 * np.sin(2 * np.pi * (300 + 500 * n) * times)).astype(np.int16)
        for n in label
    ]
    # Silence, nothing, and a text that is empty.
    tones[1], tones[4], texts[2] = np.zeros(1600, np.int16), np.zeros(0, np.int16), " "
    if kind == "classify":
        return Samples(
            image=image,
            text=texts,
            audio=tones,
            label=label.astype(np.int32),
            class_names=COLOURS,
        )
    if kind == "score":
        video = np.repeat(image[:, None], 3, axis=1)
        scores = np.array([-1.0, 0.1, 1.0], np.float32)[label]
        return Samples(video=video, text=texts, score=scores)
    if kind == "retrieve":
        return Samples(image=image, text=texts, caption=texts)
    return Samples(image=image, caption=[COLOURS[n] for n in label])


MODALITIES = {
    "classify": ("image", "text", "audio"),
    "score": ("video", "text"),
    "retrieve": ("image", "text"),
    "caption": ("image",),
}


def make_toys(root, patch):
    """Puts encoders below ``root`` and tasks ``toy_KIND`` among the tasks."""
    for modality, make in ENCODERS.items():
        _folder(root, modality, make)
    for kind in KINDS:
        task = MultimodalTask(
            kind,
            MODALITIES[kind],
            "toy",
            lambda split, data_dir, side, kind=kind: colour_samples(split, side, kind),
        )
        patch.setitem(multimodal.TASKS, f"toy_{kind}", task)


def inputs_config(root, kind="classify", **changes):
    return InputsConfig(
        changes.pop("task", f"toy_{kind}"),
        str(root),
        side=16,
        seconds=0.2,
        text_length=4,
        caption_length=6,
        encoders={m: f"toy_{m}" for m in ENCODERS},
        **{"trained": dict.fromkeys(ENCODERS, 1), **changes},
    )
