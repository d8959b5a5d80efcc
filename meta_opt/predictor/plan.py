"""Chooses encoders, input sizes, trained layers and the length of training."""

import dataclasses
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.catalog.encoder_weights import encoder_folder
from meta_opt.data.preprocessing.audio_files import read_clip
from meta_opt.data.preprocessing.folder_tokenizer import FolderTokenizer
from meta_opt.data.preprocessing.images import TooManyPixelsError, size_of
from meta_opt.data.preprocessing.tokenizer import load_tokenizer
from meta_opt.data.preprocessing.whisper_mel import RATE
from meta_opt.data.sources.sample_schema import Media, Sample
from meta_opt.finetuning.length import with_length
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.recovery import RecoveryConfig
from meta_opt.models.fusion import FusionConfig
from meta_opt.models.lora import LoRAConfig
from meta_opt.parallel.mesh import MeshConfig
from meta_opt.predictor.decision import Decisions
from meta_opt.predictor.fitting import Fitting
from meta_opt.predictor.presets import Preset
from meta_opt.types import check_keys
from meta_opt.workloads.multimodal_inputs import InputsConfig
from meta_opt.workloads.multimodal_model import ADAPTED, MultimodalModelConfig
from meta_opt.workloads.readout import READ_OUT

ENCODERS = {"image": "efficientnet_lite0", "text": "minilm", "audio": "whisper_tiny"}
"""Default encoders by modality; videos use the image encoder."""
METRICS = {
    "classify": ("accuracy", "max"),
    "score": ("loss", "min"),
    "retrieve": ("accuracy", "max"),
    "caption": ("loss", "min"),
}
"""By task, the validation metric that selects the parameters, and ``min`` or ``max``,
whichever is better."""
_MAX_OPENED = 64
"""Maximum number of files and texts that are opened to choose input sizes."""
_NOT_TRUNCATED = 0.95
"""Minimum fraction of texts and audio clips that are not truncated."""
_LEAST_SIDE, _SIDE_STEP = 160, 32
"""Smallest image side, unless a limit is lower, and increment, in pixels. Smaller
images are enlarged, since the encoders were trained on sides of 224 pixels."""
_IMAGE_BYTES = 2e9
"""Maximum size of all decoded images together, in bytes."""
_MIN_TO_UNFREEZE = 60
"""Number of training samples below which the encoders are frozen."""
_ADAPTERS = 2000
_MIN_TO_TRAIN_ENCODERS = 50_000
"""Number of training samples from which adapters, or all parameters, of the encoders
are trained on an accelerator. On CPUs, steps through whole encoders take too long."""


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """The length of training, and the metric that selects the parameters.

    Attributes:
        loop: number of steps, batch size and intervals.
        metric: validation metric that selects the parameters.
        mode: ``min`` or ``max``, whichever is better.
        mesh: mesh of devices; not recorded, a resuming call chooses it again.
    """

    loop: LoopConfig
    metric: str
    mode: str
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig, kw_only=True)


@dataclasses.dataclass(frozen=True)
class MultimodalPlan(TrainingPlan):
    """Training plan with the preprocessing of samples and the model.

    Attributes:
        inputs: settings that convert samples to arrays.
        model: fusion and head on top of the encoders, and the trained parts.
    """

    inputs: InputsConfig
    model: MultimodalModelConfig


def encoders_of(
    given: Mapping[str, str] | None, model: str | os.PathLike | None
) -> dict[str, str]:
    """Returns the encoders by modality: the given ones, with defaults for the others.

    Args:
        given: the argument ``encoders`` of `meta_opt.fit`.
        model: the model that is trained instead of the encoders, if any.

    Raises:
        ValueError: an unknown modality, or encoders together with ``model``.

    >>> encoders_of({"text": "mine"}, None)["text"]
    'mine'
    """
    check_keys("encoders", given or {}, ENCODERS)
    if model is not None and given:
        raise ValueError(f"model={str(model)!r} has its own encoders; leave them out")
    return {**ENCODERS, **(given or {})}


def make_plan(
    fitting: Fitting, encoders: Mapping[str, str], data_dir: str = ""
) -> tuple[MultimodalPlan, Decisions]:
    """Chooses the sizes of inputs, the trained layers, and the length of training.

    Args:
        fitting: the input of the fit.
        encoders: names of `meta_opt.models.encoders`, by modality.
        data_dir: folder of encoders, see `InputsConfig.data_dir`.

    Raises:
        MissingDataError: an encoder that is not prepared.
    """
    kind, modalities = fitting.columns.kind, fitting.columns.modalities
    examples, preset = len(fitting.parts["train"]), fitting.call.preset
    decisions = Decisions()
    needed = {"image" if m == "video" else m for m in modalities}
    used = {m: name for m, name in encoders.items() if m in needed}
    decisions.choose("encoders", used, f"for {', '.join(modalities)}")
    root = data_dir or default_data_dir()
    texts = encoder_folder(used["text"], root) if "text" in used else None
    sizes = _sizes(fitting, texts, decisions)
    loop = choose_loop(examples, preset, fitting.seed, decisions)
    trainable, layers = _trainable(examples, jax.default_backend(), decisions)
    metric, mode = METRICS[kind]
    decisions.choose("metric", metric, f"on validation data, for the task {kind!r}")
    inputs = InputsConfig(
        task="samples.jsonl",
        data_dir=data_dir,
        encoders=used,
        trainable_layers=dict.fromkeys(used, layers) if layers else {},
        # Averages four frames of 20 ms each, below the layers that train.
        pool_size={"audio": 4} if layers and "audio" in used else {},
        **sizes,
    )
    model = MultimodalModelConfig(
        FusionConfig(
            width=preset.fusion_width,
            mlp_width=4 * preset.fusion_width,
            remat="none",
        ),
        trainable=trainable,
        lora=LoRAConfig(ADAPTED, alpha=8.0),
        readout=kind in READ_OUT,
    )
    if model.readout:
        decisions.choose(
            "start",
            "linear readout",
            "a regression on the encoders' mean features; the fusion learns what it "
            "lacks",
        )
    return MultimodalPlan(loop, metric, mode, inputs, model), decisions


def choose_loop(
    examples: int, preset: Preset, seed: int, decisions: Decisions
) -> LoopConfig:
    """Chooses batch size and number of steps.

    With several processes the batch is a multiple of their devices.

    Args:
        examples: number of training samples.
        preset: number of epochs, minimum and maximum number of steps.
        seed: random seed of the run.
        decisions: list that the choices are appended to.
    """
    unit = jax.device_count() if jax.process_count() > 1 else 1
    batch_size = with_length(LoopConfig(), examples, unit).batch_size
    reason = f"{examples} training samples"
    if unit > 1:
        reason += f" on {unit} devices, of which each takes as many"
    decisions.choose("batch_size", batch_size, reason)
    least, most = preset.steps
    wanted = math.ceil(preset.epochs * examples / batch_size)
    num_steps = min(max(wanted, least), most)
    reason = f"{preset.epochs} passes over {examples} samples"
    if num_steps != wanted:
        reason += f" would be {wanted} steps; the preset allows {least} to {most}"
    decisions.choose("num_steps", num_steps, reason)
    return loop_of(num_steps, batch_size, preset, seed)


def loop_of(num_steps: int, batch_size: int, preset: Preset, seed: int) -> LoopConfig:
    """Returns the settings of a loop of ``num_steps`` steps, evaluated per preset."""
    every = max(1, math.ceil(num_steps / preset.evaluations))
    return LoopConfig(
        num_steps,
        batch_size,
        seed=seed,
        eval_every=every,
        log_every=every,
        checkpoint_every=num_steps,
        keep_latest=1,
        keep_best=0,
        recovery=RecoveryConfig(enabled=True),
    )


def _trainable(examples: int, backend: str, decisions: Decisions) -> tuple[str, int]:
    """Returns which parameters train, and how many last layers of encoders (0: all)."""
    on = f"{examples} training samples on {backend}"
    if examples < _MIN_TO_UNFREEZE:
        decisions.choose(
            "trained",
            "head",
            f"{on}, fewer than {_MIN_TO_UNFREEZE}: only projections, fusion and head",
        )
        return "head", 1
    if backend == "cpu" or examples < _ADAPTERS:
        decisions.choose(
            "trained",
            "last layers",
            f"{on}: the last layer of each encoder, fusion and head; the output of the "
            "layers below them is computed once per sample",
        )
        return "all", 1
    if examples < _MIN_TO_TRAIN_ENCODERS:
        reason = f"{on}, at least {_ADAPTERS}: adapters on all layers"
        decisions.choose("trained", "lora", reason)
        return "lora", 0
    decisions.choose(
        "trained", "all", f"{on}, at least {_MIN_TO_TRAIN_ENCODERS}: all parameters"
    )
    return "all", 0


def _sizes(
    fitting: Fitting, text_encoder: Path | None, decisions: Decisions
) -> dict[str, Any]:
    """Returns sizes of images, texts and audio, as fields of `InputsConfig`."""
    train, preset = fitting.parts["train"], fitting.call.preset
    modalities = fitting.columns.modalities
    found: dict[str, Any] = {}
    if {"image", "video"} & set(modalities):
        count = sum(
            len(x.media.keys() & {"image"}) + 8 * len(x.media.keys() & {"video"})
            for part in fitting.parts.values()
            for x in part
        )
        found["image_size"] = _image_size(train, count, preset, decisions)
    if text_encoder is not None:
        texts = _spread([x.fields.reads for x in train if x.fields.reads])
        lengths = [len(ids) for ids in FolderTokenizer(text_encoder, 0).pieces(texts)]
        # Includes the special tokens at the start and end of a text.
        found["text_length"] = _length(
            "text_length", [n + 2 for n in lengths], preset.text_length, decisions
        )
    if "audio" in modalities:
        seconds = _seconds([x.media["audio"] for x in train if "audio" in x.media])
        longest = _quantile(seconds) if seconds else 1.0
        # A multiple of 0.8 s, which is a whole number of the 80 ms frames.
        chosen = math.ceil(min(max(longest, 0.8), preset.audio_seconds) / 0.8) * 0.8
        found["audio_seconds"] = round(min(chosen, 29.6), 1)
        decisions.choose(
            "audio_seconds",
            found["audio_seconds"],
            f"{_NOT_TRUNCATED:.0%} of {len(seconds)} audio clips are at most "
            f"{longest:.1f} s long; the limit of the preset is "
            f"{preset.audio_seconds:g} s",
        )
    if fitting.columns.kind == "caption":
        tokenizer = load_tokenizer()
        targets = _spread([x.fields.target[0] for x in train])
        tokens = [int((row != 0).sum()) for row in tokenizer.encode(targets, 64)]
        found["caption_length"] = _length("caption_length", tokens, 64, decisions)
    return found


def _length(name: str, lengths: Sequence[int], most: int, decisions: Decisions) -> int:
    needed = math.ceil(_quantile(lengths)) if lengths else 8
    chosen = min(max(8, 8 * math.ceil(needed / 8)), most)
    decisions.choose(
        name,
        chosen,
        f"{_NOT_TRUNCATED:.0%} of {len(lengths)} texts have at most {needed} tokens; "
        f"the limit is {most}",
    )
    return chosen


def _image_size(
    train: Sequence[Sample], count: int, preset: Preset, decisions: Decisions
) -> int:
    media = [x.media[m] for x in train for m in ("image", "video") if m in x.media]
    sides = []
    for one in _spread(media):
        try:
            sides.append(max(size_of(one.read())))
        except (OSError, TooManyPixelsError):  # Counted when all samples are read.
            continue
    median = statistics.median(sides) if sides else preset.image_size
    memory = math.floor(math.sqrt(_IMAGE_BYTES / (3 * max(count, 1))))
    wanted = min(max(median, _LEAST_SIDE), preset.image_size, memory)
    size = max(_SIDE_STEP, int(wanted) // _SIDE_STEP * _SIDE_STEP)
    decisions.choose(
        "image_size",
        size,
        f"the longer sides of {len(sides)} images have a median of {median:.0f} "
        f"pixels; the limits are {preset.image_size} (preset) and {memory} (memory "
        f"for {count} images)",
    )
    return size


def _seconds(media: Sequence[Media]) -> list[float]:
    found = []
    for one in _spread(media):
        try:
            found.append(len(read_clip(one.read(), RATE, 30.0)) / RATE)
        except OSError:  # Counted when all samples are read.
            continue
    return found


def _spread(items: Sequence) -> list:
    """Returns at most `_MAX_OPENED` of the items, evenly spaced."""
    step = max(1, math.ceil(len(items) / _MAX_OPENED))
    return list(items[::step])


def _quantile(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(_NOT_TRUNCATED * len(values)))]
