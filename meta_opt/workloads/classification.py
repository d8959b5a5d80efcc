"""Image classification with a pretrained ConvNet whose last stages are fine-tuned.

The baselines of progressive few-shot fine-tuning (Roumeliotis et al. 2025): ResNet-50
and ConvNeXt-T, and EfficientNet-Lite0, whose weights are among the prepared encoders.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.preprocessing.augment import AugmentConfig
from meta_opt.data.preprocessing.image_fit import ImageFit
from meta_opt.data.records import SPLITS
from meta_opt.data.samples import Samples
from meta_opt.data.sources.multimodal import find_task, read_split
from meta_opt.data.token_counts import TokenCounter
from meta_opt.data.view_batches import fresh_views, stored_views, view_batches
from meta_opt.evaluators.pictures import picture_evaluation
from meta_opt.losses.classification import classification_loss
from meta_opt.models.convnets import (
    Classifier,
)
from meta_opt.models.parameters import by_path
from meta_opt.types import PyTree, check_least
from meta_opt.workloads.classification_export import (
    with_trained_top,
    write_classifier,
)
from meta_opt.workloads.classification_network import (
    NetworkConfig,
    NetworkParts,
    network_parts,
    split_network,
)
from meta_opt.workloads.export import ExportConfig, check_model_format
from meta_opt.workloads.lower_features import Views, view_features
from meta_opt.workloads.workload import (
    Batches,
    LossFn,
    SplitModule,
    Workload,
    evaluate_splits,
)


@dataclasses.dataclass(frozen=True)
class PicturesConfig:
    """Labelled images and their augmentation.

    Attributes:
        task: a classification task on images in
            `meta_opt.data.sources.multimodal.TASKS`, such as ``emoji_pictures`` or
            ``clipart_category``, or the path of samples with ``image`` and ``label``;
            see `meta_opt.data.sources.jsonl_samples`. Other modalities are not read.
        data_dir: the folder of datasets and encoders; "" for $META_OPT_DATA_DIR, else
            ``data``.
        image_size: side length in pixels; images are fitted into a white square.
        max_examples: maximum number of images per split; 0 for all of them.
        max_unreadable: number of the user's files that may be skipped as unreadable.
        augment: augmentation of the training images.
        augmented_views: V, number of augmented views of each training image that are
            run through the frozen stages in advance; each epoch then uses one of them.
            With few views for the number of epochs augmentation is weaker and a run
            overfits sooner. 0 augments images at each step and runs the frozen stages
            in every step.
        views_seed: random seed of the precomputed views, which is independent of the
            run's seed so that runs share them.
        feature_cache_dir: folder for the outputs of the frozen stages; "" computes them
            for each run and keeps them in memory.
    """

    task: str
    data_dir: str = ""
    image_size: int = 100
    max_examples: int = 0
    max_unreadable: int = 100
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    augmented_views: int = 8
    views_seed: int = 0
    feature_cache_dir: str = ""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        check_least("pictures", self, image_size=32, max_examples=0, max_unreadable=0)
        check_least("pictures", self, augmented_views=0, views_seed=0)


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
    """A network and its images; each section is documented at its class.

    Attributes:
        pictures: training, validation and test data.
        network: the network.
    """

    pictures: PicturesConfig
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)

    def build(
        self,
        seed: int = 0,
        mesh: Mesh | None = None,
        export: ExportConfig = ExportConfig(),  # noqa: B008
    ) -> Workload:
        """Reads the images and runs the frozen stages on them.

        Args:
            seed: random seed of the head's initialisation.
            mesh: ignored; the networks are small.
            export: path and format of the exported classifier.

        Raises:
            ValueError: settings, images or weights do not fit together.
            MissingDataError: a dataset or encoder is not prepared.
        """
        check_model_format(export, "picture classifier")
        config = self.pictures
        root = config.data_dir or default_data_dir()
        samples = read_pictures(config)
        class_names = samples["train"].class_names
        classes = len(class_names)
        labels = {split: x.label for split, x in samples.items()}
        examples = {split: len(x) for split, x in samples.items()}
        images = {split: np.asarray(x.image) for split, x in samples.items()}
        parts = network_parts(self.network, classes, root, seed)
        inputs = images
        if config.augmented_views:
            weights = {
                path: np.asarray(x[...])
                for path, x in by_path(parts.lower_module, nnx.Variable).items()
            }
            train = Views(config.augmented_views, config.augment, config.views_seed)
            inputs = {
                split: view_features(
                    images[split],
                    train if split == "train" else Views(),
                    parts.lower,
                    weights,
                    config.feature_cache_dir,
                    f"{self.network.name}-{config.image_size}-{split}",
                )
                for split in SPLITS
            }
            take = stored_views(inputs["train"])
        else:
            take = fresh_views(images["train"], config.augment)

        def train_batches(
            batch_size: int, seed: int = 0, rows: np.ndarray | None = None
        ) -> Batches:
            return view_batches(take, labels["train"], batch_size, seed, rows)

        evaluations = {
            split: picture_evaluation(
                inputs[split][:, 0] if config.augmented_views else inputs[split],
                labels[split],
            )
            for split in ("validation", "test")
        }

        def with_parts(parts: NetworkParts) -> Workload:
            cut = bool(config.augmented_views)
            module = split_network(parts, cut)

            def write(params: PyTree, frozen: PyTree) -> None:
                model: Classifier = module.merge(params, frozen)
                if cut:
                    model = with_trained_top(parts.whole, model)
                fit = ImageFit(config.image_size)
                write_classifier(export.path, model, class_names, fit)

            return Workload(
                params=module.params,
                frozen=module.frozen,
                loss_fn=picture_loss(module),
                train_batches=train_batches,
                evaluate=evaluate_splits(module, evaluations),
                write=write if export.path else None,
                describe=lambda: {
                    "examples": examples,
                    "classes": classes,
                    "skipped": {split: x.skipped for split, x in samples.items()},
                },
                tokens=TokenCounter(),  # There are no texts.
                reseeded=with_seed,
            )

        def with_seed(seed: int) -> Workload:
            return with_parts(network_parts(self.network, classes, root, seed))

        return with_parts(parts)


def read_pictures(config: PicturesConfig) -> dict[str, Samples]:
    """Reads the labelled images of each split.

    Raises:
        ValueError: the task is not image classification, or a sample has no image.
        MissingDataError: the dataset is not prepared.
    """
    root = config.data_dir or default_data_dir()
    task = find_task(config.task, config.max_unreadable)
    if task.kind != "classify" or "image" not in task.modalities:
        raise ValueError(
            f"pictures.task={config.task!r} is of kind {task.kind!r} with "
            f"{', '.join(task.modalities)}; it must be a classification with images"
        )
    found = {}
    for split in SPLITS:
        samples = read_split(task, config.task, split, root, config.image_size)
        if lacking := int(np.sum(~samples.present()["image"])):
            raise ValueError(
                f"{config.task}: {lacking} samples of {split} have no image; give "
                "each an `image`"
            )
        found[split] = samples.at_most(config.max_examples)
    return found


def picture_loss(module: SplitModule) -> LossFn:
    """Returns cross-entropy with dropout and stochastic depth, and the error rate.

    Args:
        module: the model; only its structure is used.
    """

    def loss_fn(
        params: PyTree, frozen: PyTree, batch: dict[str, Any], rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = module.merge(params, frozen)(batch["inputs"], rng)
        loss, wrong = classification_loss(logits, batch["label"])
        return loss, {"error": wrong}

    return loss_fn
