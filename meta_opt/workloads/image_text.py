"""Workloads that train vision-text models on images with captions or answers.

Pre-training, full fine-tuning and LoRA of contrastive and generative models differ only
in settings.
"""

import dataclasses
from typing import Any

import numpy as np
from jax.sharding import Mesh

from meta_opt.data.pipeline import PipelineConfig, make_iterator
from meta_opt.data.preprocessing.answers import AnswerTokenizer
from meta_opt.data.records import Source
from meta_opt.data.token_counts import TokenCounter
from meta_opt.types import Batch, PyTree
from meta_opt.workloads import image_text_export
from meta_opt.workloads.cached_features import FeatureSource, tower_features
from meta_opt.workloads.captioning import captioning_evaluation, captioning_loss
from meta_opt.workloads.contrastive import (
    contrastive_evaluation,
    contrastive_loss,
    count_texts,
)
from meta_opt.workloads.counted_texts import counted_texts
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.image_text_architecture import (
    ModelConfig,
    architecture,
    kind_of,
)
from meta_opt.workloads.image_text_data import CountedBatches, DataConfig, Splits
from meta_opt.workloads.image_text_model import build_model
from meta_opt.workloads.image_text_preprocessing import (
    Preprocessing,
    read_preprocessing,
)
from meta_opt.workloads.workload import (
    Batches,
    LossFn,
    SplitModule,
    Workload,
    evaluate_splits,
)


@dataclasses.dataclass(frozen=True)
class ImageTextConfig:
    """A vision-text model and its data; each section is documented at its class.

    Attributes:
        model: the model.
        data: training, validation and test data.
        pipeline: batching, text lengths and augmentation.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    pipeline: PipelineConfig = dataclasses.field(default_factory=PipelineConfig)

    def __post_init__(self) -> None:
        """Raises ValueError if features are cached although images are augmented."""
        changed = self.pipeline.flip or self.pipeline.crop_pixels
        if self.model.cache_features and changed:
            raise ValueError(
                f"model.cache_features=True with pipeline.flip={self.pipeline.flip} "
                f"and pipeline.crop_pixels={self.pipeline.crop_pixels}: images that "
                "change cannot be read once; leave these out"
            )

    def preprocessing(self) -> Preprocessing:
        """Returns the preprocessing of images and texts, without reading weights."""
        return read_preprocessing(
            self.model,
            self.pipeline.text_length,
            self.pipeline.prompt_length,
            self.data.prompt,
        )

    def build(
        self,
        seed: int = 0,
        mesh: Mesh | None = None,
        export: ExportConfig = ExportConfig(),  # noqa: B008
    ) -> Workload:
        """Opens the data, then loads or initialises the model.

        Args:
            seed: random seed of initialised parameters.
            mesh: mesh whose shards the tensors of a folder are read into; None for the
                default device.
            export: path and format of the exported model.

        Raises:
            ValueError: see `build_model`, `Splits` and
                `meta_opt.workloads.image_text_export`.
        """
        # Quick checks first: loading a large model takes minutes.
        image_text_export.check_settings(export, self.model)
        preprocessing = self.preprocessing()
        splits = Splits(self.data, preprocessing.fit)
        source = splits.train()
        if self.model.loss != "captioning":
            splits.warn_of_repeated_captions()
        pipeline = dataclasses.replace(
            self.pipeline, text_length=preprocessing.text_length
        )
        held_out = {s: splits.held_out(s) for s in ("validation", "test")}
        tokens = TokenCounter()
        evaluations = {
            split: self._evaluation(data, preprocessing, tokens)
            for split, data in held_out.items()
        }
        examples = {"train": len(source)} | {s: len(x) for s, x in held_out.items()}

        def count(batch: Batch) -> int:
            texts = [batch[name] for name in ("text", "prompt") if name in batch]
            return sum(count_texts(x, preprocessing.tokenizer) for x in texts)

        def batches_of(
            pictures: Source, batch_size: int, seed: int, rows: np.ndarray | None
        ) -> Batches:
            iterator = make_iterator(
                pictures,
                preprocessing.tokenizer,
                pipeline,
                batch_size,
                seed,
                rows,
                preprocessing.prompts,
            )
            return CountedBatches(
                iterator, splits.unreadable, len(source), splits.digest
            )

        def with_seed(seed: int) -> Workload:
            module = build_model(self.model, preprocessing, mesh, seed)
            pictures: Source = source
            if self.model.cache_features:
                pictures = FeatureSource(source, tower_features(module))

            def train_batches(
                batch_size: int, seed: int = 0, rows: np.ndarray | None = None
            ) -> Batches:
                return batches_of(pictures, batch_size, seed, rows)

            image_text_export.check_model(
                export, module.merge(module.params, module.frozen)
            )

            def write(params: PyTree, frozen: PyTree) -> None:
                trained = module.merge(params, frozen)
                image_text_export.write(export, trained, self.model)

            return Workload(
                params=module.params,
                frozen=module.frozen,
                loss_fn=image_text_loss(module, self.model.loss),
                train_batches=counted_texts(train_batches, count, tokens),
                evaluate=evaluate_splits(module, evaluations),
                rules=kind_of(architecture(self.model)).rules,
                write=write if export.path else None,
                describe=lambda: {
                    "examples": examples,
                    "unreadable": len(splits.unreadable.reasons),
                    "unreadable_pictures": dict(splits.unreadable.reasons),
                },
                name=f"image_text, model.loss={self.model.loss!r},",
                per_example=self.model.loss == "captioning",
                tokens=tokens,
                reseeded=with_seed,
            )

        return with_seed(seed)

    def _evaluation(
        self, source: Any, preprocessing: Preprocessing, tokens: TokenCounter
    ) -> Any:
        tokenizer, length = preprocessing.tokenizer, preprocessing.text_length
        size = self.data.eval_batch_size
        if isinstance(tokenizer, AnswerTokenizer):
            return captioning_evaluation(source, tokenizer, length, size, tokens)
        loss = self.model.loss
        return contrastive_evaluation(source, tokenizer, length, loss, size, tokens)


def image_text_loss(module: SplitModule, loss: str = "clip") -> LossFn:
    """Returns the loss of a batch as a function of the model's arrays.

    Args:
        module: the model; only its structure is used.
        loss: ``clip`` or ``siglip``; ``captioning`` for a generative model.
    """
    if loss == "captioning":
        return captioning_loss(module)
    return contrastive_loss(module, loss)
