"""Video-text tasks with auxiliary losses.

The setting of MELTR (Ko et al. 2023, arXiv:2303.13009): a video-text model of the
family UniVL, VIOLET or All-in-one is fine-tuned for retrieval, captioning, question
answering or sentiment, with the losses of its pre-training as auxiliary losses.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.array_batches import array_batches
from meta_opt.data.token_counts import TokenCounter, count_tokens
from meta_opt.evaluators.video_text import (
    Evaluation,
    captioning_evaluation,
    question_evaluation,
    retrieval_evaluation,
    sentiment_evaluation,
)
from meta_opt.types import PyTree
from meta_opt.workloads.counted_texts import counted_texts
from meta_opt.workloads.export import ExportConfig, check_model_format
from meta_opt.workloads.modality_groups import modality_groups
from meta_opt.workloads.video_text_data import (
    META_VALIDATION,
    ClipInputs,
    ClipsConfig,
    patches_of,
    read_clip_inputs,
)
from meta_opt.workloads.video_text_export import (
    VideoTextSettings,
    encoder_digests,
    write_video_text,
)
from meta_opt.workloads.video_text_losses import PER_EXAMPLE, losses_of
from meta_opt.workloads.video_text_model import (
    VideoTextModelConfig,
    masking_of,
    model_factory,
    primary_loss_fn,
    sizes_of,
    split_video_text,
    video_text_losses_fn,
)
from meta_opt.workloads.video_text_outputs import MaskingConfig
from meta_opt.workloads.workload import Losses, Workload, evaluate_splits


@dataclasses.dataclass(frozen=True)
class VideoTextConfig:
    """A model family, a task, its clips and the model.

    Attributes:
        family: model family whose losses are combined, one of
            `meta_opt.workloads.video_text_losses.FAMILIES`.
        task: one of `meta_opt.workloads.video_text_losses.TASKS`.
        clips: the clips, and how they become arrays.
        model: fusion and heads on the encoders, and which part is trained.
    """

    family: str = "univl"
    task: str = "retrieval"
    clips: ClipsConfig = dataclasses.field(default_factory=ClipsConfig)
    model: VideoTextModelConfig = dataclasses.field(
        default_factory=VideoTextModelConfig
    )

    def __post_init__(self) -> None:
        """Checks that family and clips support the task."""
        losses_of(self.family, self.task)
        self.clips.check_task(self.task)
        if self.clips.frames > self.model.fusion.frames:
            raise ValueError(
                f"clips.frames={self.clips.frames} is more than model.fusion.frames="
                f"{self.model.fusion.frames}"
            )

    def build(
        self,
        seed: int = 0,
        mesh: Mesh | None = None,
        export: ExportConfig = ExportConfig(),  # noqa: B008
    ) -> Workload:
        """Reads the clips, and initialises fusion and heads.

        Args:
            seed: random seed of initialised parameters.
            mesh: ignored; the encoders are small.
            export: path of the exported model.

        Raises:
            ValueError: the export format is not ``model``; see also
                `read_clip_inputs`.
            MissingDataError: a dataset or encoder is not prepared.
        """
        check_model_format(export, "video-text model")
        names, primary = losses_of(self.family, self.task)
        inputs = read_clip_inputs(self.clips, self.task, "masked_visual" in names)
        tokens = TokenCounter()
        evaluations = {
            split: evaluation_on(
                inputs, split, primary, self.model.masking, tokens=tokens
            )
            for split in ("validation", "test")
        }
        masking = masking_of(self.model, inputs)
        # One program, compiled once for all seeds.
        create: Callable[[jax.Array], Any] = nnx.jit(
            model_factory(names, self.model, inputs)
        )
        batches = {
            split: counted_texts(
                functools.partial(array_batches, inputs.splits[split]),
                functools.partial(count_text_tokens, inputs),
                tokens,
            )
            for split in ("train", META_VALIDATION)
        }

        def describe() -> dict[str, Any]:
            found: dict[str, Any] = {
                "examples": {s: len(x["present"]) for s, x in inputs.splits.items()},
                "shorter_clips": inputs.short,
                "vocabulary": len(inputs.vocabulary),
                "losses": list(names),
                "primary": primary,
            }
            if (pruning := self.model.pruning).tokens == "patches":
                patches = self.clips.frames * patches_of(inputs)
                found["visual_tokens"] = pruning.kept(patches)
            if {s: len(x) for s, x in inputs.clips.items()} != found["examples"]:
                found["clips"] = {s: len(x) for s, x in inputs.clips.items()}
            if inputs.questions:
                found["answers"] = len(inputs.answers)
            if inputs.about:
                found["source"] = inputs.about
            return found

        def with_seed(seed: int) -> Workload:
            module = split_video_text(
                create(jax.random.key(seed)), self.model.trainable
            )

            def write(params: PyTree, frozen: PyTree) -> None:
                trained: Any = module.merge(params, frozen)
                write_video_text(export.path, trained, self._settings(inputs))

            return Workload(
                params=module.params,
                frozen=module.frozen,
                loss_fn=primary_loss_fn(module, primary, masking),
                losses=Losses(
                    names, primary, video_text_losses_fn(module, names, masking)
                ),
                train_batches=batches["train"],
                meta_batches=batches[META_VALIDATION],
                groups=modality_groups(module.params),
                evaluate=evaluate_splits(module, evaluations),
                write=write if export.path else None,
                describe=describe,
                name=f"video_text, family={self.family!r}, task={self.task!r},",
                per_example=primary in PER_EXAMPLE,
                tokens=tokens,
                reseeded=with_seed,
            )

        return with_seed(seed)

    def _settings(self, inputs: ClipInputs) -> VideoTextSettings:
        """Returns the settings to export with the arrays."""
        reader = inputs.reader.config
        root = self.clips.data_dir or default_data_dir()
        return VideoTextSettings(
            family=self.family,
            task=self.task,
            reader=reader,
            model=self.model,
            sizes=sizes_of(inputs),
            vocabulary=tuple(map(int, inputs.vocabulary)),
            answers=inputs.answers,
            encoders=encoder_digests(reader, root),
        )


def evaluation_on(
    inputs: ClipInputs,
    split: str,
    primary: str,
    masking: MaskingConfig,
    batch_size: int = 128,
    tokens: TokenCounter | None = None,
) -> Evaluation:
    """Returns ``model -> metrics`` on a split, for the task of this primary loss.

    Args:
        inputs: inputs with the split.
        split: name of the split, such as ``test``.
        primary: name of the primary loss.
        masking: settings of the ranking losses.
        batch_size: number of samples per evaluation batch.
        tokens: counter of the tokens that are read and generated.
    """
    evaluation = _evaluation_on(inputs, split, primary, masking, batch_size, tokens)
    if tokens is None:
        return evaluation
    names = ("question", "choices") if primary == "answer" else ("text",)
    read = count_text_tokens(inputs, inputs.splits[split], names)

    def evaluate(model: Any) -> dict[str, float]:
        tokens.add(read=read)
        return evaluation(model)

    return evaluate


def count_text_tokens(
    inputs: ClipInputs,
    arrays: Mapping[str, PyTree],
    names: tuple[str, ...] = ("text", "question", "choices"),
) -> int:
    """Returns the number of tokens of texts, without padding.

    Args:
        inputs: inputs with the tokenizer.
        arrays: a split or a batch, on the host.
        names: names of the arrays to count; those that are not there count 0.
    """
    pad_id = inputs.reader.tokenizer.pad_id
    return sum(count_tokens(arrays[name], pad_id) for name in names if name in arrays)


def _evaluation_on(
    inputs: ClipInputs,
    split: str,
    primary: str,
    masking: MaskingConfig,
    batch_size: int,
    tokens: TokenCounter | None,
) -> Evaluation:
    arrays = inputs.splits[split]
    if primary == "decoder":
        captions = inputs.clips[split].captions
        return captioning_evaluation(
            arrays, captions, inputs.decode, batch_size, tokens
        )
    if primary == "answer":
        questions = inputs.questions[split]
        return question_evaluation(arrays, questions, inputs.answers, batch_size)
    if primary == "sentiment":
        return sentiment_evaluation(arrays, batch_size)
    return retrieval_evaluation(
        *(arrays, primary, masking.margin, batch_size),
        false_negatives=masking.false_negatives,
    )
