"""Image classification with a pretrained ConvNet whose last stages are fine-tuned.

The baselines of progressive few-shot fine-tuning (Roumeliotis et al. 2025): ResNet-50
and ConvNeXt-T, and EfficientNet-Lite0, whose weights are among the prepared encoders.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from meta_opt.data import data_dir as default_data_dir
from meta_opt.data.catalog.encoder_weights import encoder_folder
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
    ARCHITECTURES,
    Classifier,
    ConvNet,
    load_classifier,
    make_convnet,
)
from meta_opt.models.encoders import Divisible, EfficientNet, load_encoder
from meta_opt.models.parameters import by_path
from meta_opt.types import PyTree, check_least, check_name
from meta_opt.workloads.classification_export import (
    with_trained_top,
    write_classifier,
)
from meta_opt.workloads.export import ExportConfig, check_model_format
from meta_opt.workloads.lower_features import Views, view_features
from meta_opt.workloads.workload import (
    Batches,
    LossFn,
    SplitModule,
    Workload,
    evaluate_splits,
    split_module,
)

ENCODER = "efficientnet_lite0"
NETWORKS = ("resnet50", "convnext_tiny", ENCODER)


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
class NetworkConfig:
    """The network, and which part of it is trained.

    Frozen stages and all batch norms run in inference mode with the running statistics
    of pre-training, because statistics of small batches would degrade the network. In
    trained stages the scale and bias of the norms are trained.

    Attributes:
        name: one of `NETWORKS`.
        weights: for ``resnet50`` and ``convnext_tiny`` a folder that
            `meta_opt.models.convnets.load_classifier` reads, or "" for random weights,
            which do not depend on the run's seed. ``efficientnet_lite0`` always has the
            prepared weights.
        trained_stages: number of last stages that are trained, besides the head.
        dropout: dropout rate of the pooled features.
        drop_path: for ``convnext_tiny``, rate of stochastic depth in the last block; it
            applies to trained stages only.
        dtype: dtype of the computation.
    """

    name: str = "resnet50"
    weights: str = ""
    trained_stages: int = 1
    dropout: float = 0.5
    drop_path: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Checks the name, and that all settings apply to this network."""
        check_name("network.name", self.name, NETWORKS)
        if self.weights and self.name == ENCODER:
            raise ValueError(
                f"network.weights={self.weights!r}: {ENCODER} has its prepared "
                "weights; leave it out"
            )
        if self.drop_path and self.name != "convnext_tiny":
            raise ValueError(
                f"network.drop_path={self.drop_path}: {self.name} has no stochastic "
                "depth; leave it out"
            )


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


class NetworkParts(NamedTuple):
    """A network, split into its frozen and its trained part.

    Attributes:
        whole: the network from images to logits.
        upper: the trained part, from outputs of the frozen stages to logits; it shares
            its head with ``whole``.
        lower: the frozen stages as a function from images to a feature grid.
        lower_module: the module that ``lower`` belongs to.
        trained: number of trained layers of the trunk of ``whole``: stages, or blocks
            for EfficientNet.
    """

    whole: Classifier
    upper: Classifier
    lower: Any
    lower_module: nnx.Module
    trained: int


def network_parts(
    config: NetworkConfig, classes: int, root: Any, seed: int = 0
) -> NetworkParts:
    """Loads a network and splits it below the trained stages.

    Args:
        config: the network.
        classes: K, number of classes.
        root: folder of datasets and encoders.
        seed: random seed of the head's initialisation.

    Raises:
        ValueError: the weights are of another network, or it has fewer stages.
        MissingDataError: the encoder is not prepared.
    """
    trained = config.trained_stages
    rngs = nnx.Rngs(seed)
    if config.name == ENCODER:
        trunk: Any = load_encoder(
            ENCODER, encoder_folder(ENCODER, root), dtype=config.dtype
        )
        assert isinstance(trunk, EfficientNet)
        repeats = [stage.repeats for stage in trunk.config.stages]
        if not 1 <= trained <= len(repeats):
            raise ValueError(
                f"network.trained_stages={trained} must be 1 to {len(repeats)}"
            )
        trained = sum(repeats[-trained:])
        whole = Classifier(trunk, classes, config.dropout, rngs=rngs)
    elif config.weights:
        changes: dict[str, Any] = {"dtype": config.dtype}
        if config.drop_path:
            changes["drop_path"] = config.drop_path
        whole = load_classifier(
            config.weights, classes, config.dropout, rngs=rngs, **changes
        )
        wanted, given = ARCHITECTURES[config.name], whole.trunk.config  # type: ignore
        if type(given) is not type(wanted):
            raise ValueError(
                f"network.weights={config.weights!r} are of a "
                f"{type(given).__name__.removesuffix('Config')}, not of "
                f"network.name={config.name!r}"
            )
    else:
        own: dict[str, Any] = (
            {"drop_path": config.drop_path} if config.drop_path else {}
        )
        architecture = dataclasses.replace(
            ARCHITECTURES[config.name], dtype=config.dtype, **own
        )

        # Compiled as one program: dispatching each operation would be far slower.
        @nnx.jit
        def create(rngs: nnx.Rngs) -> Classifier:
            trunk = make_convnet(architecture, rngs=nnx.Rngs(0))
            return Classifier(trunk, classes, config.dropout, rngs=rngs)

        whole = create(rngs)
    assert isinstance(whole.trunk, Divisible)
    lower, top = whole.trunk.halves(trained)
    upper = nnx.clone(whole)
    upper.trunk = top  # type: ignore[assignment]
    return NetworkParts(whole, upper, lower, lower.__self__, trained)  # type: ignore


def split_network(parts: NetworkParts, cut: bool) -> SplitModule:
    """Splits the model of a run into trained and frozen arrays.

    Args:
        parts: the network.
        cut: whether the model's input is the output of the frozen stages; else images.
    """
    if cut:
        return split_module(parts.upper)
    trunk: Any = parts.whole.trunk
    layers = "stages" if isinstance(trunk, ConvNet) else "blocks"
    first = len(getattr(trunk, layers)) - parts.trained

    def trains(path: Any, value: Any) -> bool:
        if not isinstance(value, nnx.Param):
            return False
        if path[0] != "trunk":
            return True
        if path[1] == layers:
            return path[2] >= first
        # EfficientNet's last convolution follows its blocks, its stem precedes them.
        return path[1] == "head"

    return split_module(parts.whole, trains)


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
