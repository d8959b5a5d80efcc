"""Video-text models by family and task, their trained parts, and their losses."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from meta_opt.models.captioner import CaptionerConfig
from meta_opt.models.fusion import FusionConfig
from meta_opt.models.lora import LoRAConfig, add_lora
from meta_opt.models.token_pruning import PruningConfig
from meta_opt.models.video_text import VideoText, VideoTextHeads
from meta_opt.types import PyTree, check_name
from meta_opt.workloads.lower_features import EncoderParts
from meta_opt.workloads.multimodal_model import ADAPTED, split_multimodal
from meta_opt.workloads.video_text_data import ClipInputs
from meta_opt.workloads.video_text_losses import LOSSES
from meta_opt.workloads.video_text_outputs import Masking, MaskingConfig, Outputs
from meta_opt.workloads.workload import LossesFn, LossFn, SplitModule


@dataclasses.dataclass(frozen=True)
class VideoTextModelConfig:
    """Fusion and heads on the encoders, which part is trained, and masking.

    Attributes:
        fusion: width and depth of the temporal transformer and the cross encoder; its
            ``frames`` is the maximum number of frames of a clip.
        embed_dim: width of the dual encoder's embeddings.
        captioner: caption decoder, whose vocabulary is that of the training texts.
        masking: masking rates and margins of the losses.
        pruning: whether a clip's tokens are frames or patches, and which patches are
            kept.
        trainable: ``all``; or ``lora`` for adapters on the encoders, while fusion and
            heads are fully trained.
        lora: settings of the adapters if ``trainable`` is ``lora``.
    """

    fusion: FusionConfig = dataclasses.field(default_factory=FusionConfig)
    embed_dim: int = 64
    captioner: CaptionerConfig = dataclasses.field(default_factory=CaptionerConfig)
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    pruning: PruningConfig = dataclasses.field(default_factory=PruningConfig)
    trainable: str = "all"
    lora: LoRAConfig = dataclasses.field(default_factory=lambda: LoRAConfig(ADAPTED))

    def __post_init__(self) -> None:
        """Checks the name."""
        check_name("model.trainable", self.trainable, ("all", "lora"))


class TargetSizes(NamedTuple):
    """Sizes of the model's predictions.

    Attributes:
        words: K, size of the vocabulary of the texts.
        codes: K, number of visual tokens.
        frame: F, width of frame features.
        answers: K, number of answers to open-ended questions; 0 if there are none.
        end_id: id of the end token in the vocabulary.
        choices: 1 if there are multiple-choice questions, else 0.
    """

    words: int
    codes: int
    frame: int
    answers: int
    end_id: int
    choices: int = 0


def heads_for(
    losses: Sequence[str], config: VideoTextModelConfig, sizes: TargetSizes
) -> VideoTextHeads:
    """Returns the heads that these losses need."""

    def needed(size: int, *by: str) -> int:
        return size if set(by) & set(losses) else 0

    return VideoTextHeads(
        embed_dim=needed(config.embed_dim, "joint", "masked_joint", "contrastive"),
        match=needed(1, "align", "masked_align", "matching"),
        language=needed(sizes.words, "masked_language", "masked_text"),
        frame=needed(sizes.frame, "masked_frame"),
        visual=needed(sizes.codes, "masked_visual"),
        answers=needed(sizes.answers, "answer"),
        choice=needed(sizes.choices, "answer"),
        scores=needed(1, "sentiment"),
        captioner=dataclasses.replace(
            config.captioner,
            vocab_size=needed(sizes.words, "decoder", "masked_decoder"),
            pad_id=0,
            end_id=sizes.end_id,
        ),
    )


def model_factory(
    losses: Sequence[str], config: VideoTextModelConfig, inputs: ClipInputs
) -> Callable[[jax.Array], VideoText]:
    """Returns ``key -> model``; the key initialises everything but the encoders.

    Args:
        losses: names in `LOSSES` that the model is trained with.
        config: configuration of the model.
        inputs: inputs with the encoders and the codebook.
    """
    encoders = inputs.reader.encoders
    return factory_of(losses, config, sizes_of(inputs), encoders, inputs.codebook)


def sizes_of(inputs: ClipInputs) -> TargetSizes:
    """Returns the sizes of the predictions for a run's inputs."""
    return TargetSizes(
        words=len(inputs.vocabulary),
        codes=0 if inputs.codebook is None else len(inputs.codebook),
        frame=inputs.splits["train"]["targets"].shape[-1],
        answers=len(inputs.answers),
        end_id=inputs.end_id,
        choices=int("choices" in inputs.splits["train"]),
    )


def factory_of(
    losses: Sequence[str],
    config: VideoTextModelConfig,
    sizes: TargetSizes,
    encoders: Mapping[str, EncoderParts],
    codebook: np.ndarray | None,
) -> Callable[[jax.Array], VideoText]:
    """Returns `model_factory` from sizes instead of training inputs.

    Args:
        losses: names in `LOSSES` that the model is trained with.
        config: configuration of the model.
        sizes: sizes of the model's predictions.
        encoders: encoders ``image`` and ``text``, split into frozen and trained layers.
        codebook: centres of visual tokens [K, F]; None if no loss uses them.
    """
    heads = heads_for(losses, config, sizes)
    whole: dict[str, Any] = {m: parts.upper for m, parts in encoders.items()}
    if (lower := encoders["text"].lower) is not None:
        whole["text_lower"] = lower
    split: Any = nnx.split(nnx.Dict(whole))
    graph, arrays = split

    def create(key: jax.Array) -> VideoText:
        first, second = jax.random.split(key)
        # Creates variables in this trace's scope around the same arrays.
        parts = nnx.merge(graph, jax.tree.map(jnp.asarray, arrays))
        model = VideoText(
            config.fusion,
            parts,
            heads,
            text_lower=parts.get("text_lower"),
            codebook=codebook if heads.visual else None,
            pruning=config.pruning,
            rngs=nnx.Rngs(params=first),
        )
        if config.trainable == "lora":
            add_lora(model, config.lora, rngs=nnx.Rngs(params=second))
        return model

    return create


def split_video_text(model: VideoText, trainable: str) -> SplitModule:
    """Splits a model; `VideoTextModelConfig` documents which part is trained."""
    return split_multimodal(model, trainable, frozen="text_lower")


def masking_of(config: VideoTextModelConfig, inputs: ClipInputs) -> Masking:
    """Returns the masking of a model's batches."""
    tokenizer = inputs.reader.tokenizer
    assert tokenizer.mask_id is not None
    return Masking(
        config.masking,
        tokenizer.mask_id,
        (tokenizer.pad_id, *tokenizer.special_ids),
        tokenizer.vocab_size,
    )


def video_text_losses_fn(
    module: SplitModule, losses: Sequence[str], masking: Masking
) -> LossesFn:
    """Returns some of `LOSSES` as a function of the model's arrays.

    Args:
        module: the model; only its structure is used.
        losses: names of the T losses.
        masking: draws new masks at each step.
    """

    def losses_fn(
        params: PyTree, frozen: PyTree, batch: Mapping[str, Any], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        masks = masking.draw(rng, batch)
        model = module.merge(params, frozen)
        outputs = Outputs(model, batch, masks, masking.config.false_negatives)
        each = [LOSSES[name](outputs, batch, masking.config) for name in losses]
        return jnp.stack(each), {}

    return losses_fn


def primary_loss_fn(module: SplitModule, primary: str, masking: Masking) -> LossFn:
    """Returns a single loss as a function of the model's arrays."""
    losses_fn = video_text_losses_fn(module, (primary,), masking)

    def loss_fn(
        params: PyTree, frozen: PyTree, batch: Mapping[str, Any], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        losses, metrics = losses_fn(params, frozen, batch, rng)
        return losses[0], metrics

    return loss_fn
