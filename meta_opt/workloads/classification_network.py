"""The network of an image classifier: loaded, and split below its trained stages."""

import dataclasses
from typing import Any, NamedTuple

from flax import nnx

from meta_opt.data.catalog.encoder_weights import encoder_folder
from meta_opt.models.convnets import (
    ARCHITECTURES,
    Classifier,
    ConvNet,
    load_classifier,
    make_convnet,
)
from meta_opt.models.encoders import Divisible, EfficientNet, load_encoder
from meta_opt.types import check_name
from meta_opt.workloads.workload import SplitModule, split_module

ENCODER = "efficientnet_lite0"
NETWORKS = ("resnet50", "convnext_tiny", ENCODER)


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
    rngs = nnx.Rngs(seed)
    trained = config.trained_stages
    if config.name == ENCODER:
        whole, trained = _efficientnet(config, classes, root, rngs)
    elif config.weights:
        whole = _pretrained_convnet(config, classes, rngs)
    else:
        whole = _random_convnet(config, classes, rngs)
    assert isinstance(whole.trunk, Divisible)
    lower, top = whole.trunk.halves(trained)
    upper = nnx.clone(whole)
    upper.trunk = top  # type: ignore[assignment]
    return NetworkParts(whole, upper, lower, lower.__self__, trained)  # type: ignore


def _efficientnet(
    config: NetworkConfig, classes: int, root: Any, rngs: nnx.Rngs
) -> tuple[Classifier, int]:
    """Returns the prepared network, and the number of its trained blocks."""
    folder = encoder_folder(ENCODER, root)
    trunk: Any = load_encoder(ENCODER, folder, dtype=config.dtype)
    assert isinstance(trunk, EfficientNet)
    repeats = [stage.repeats for stage in trunk.config.stages]
    stages = config.trained_stages
    if not 1 <= stages <= len(repeats):
        raise ValueError(f"network.trained_stages={stages} must be 1 to {len(repeats)}")
    classifier = Classifier(trunk, classes, config.dropout, rngs=rngs)
    return classifier, sum(repeats[-stages:])


def _pretrained_convnet(
    config: NetworkConfig, classes: int, rngs: nnx.Rngs
) -> Classifier:
    found = load_classifier(
        config.weights, classes, config.dropout, rngs=rngs, **_changes(config)
    )
    wanted, given = ARCHITECTURES[config.name], found.trunk.config  # type: ignore
    if type(given) is not type(wanted):
        raise ValueError(
            f"network.weights={config.weights!r} are of a "
            f"{type(given).__name__.removesuffix('Config')}, not of "
            f"network.name={config.name!r}"
        )
    return found


def _random_convnet(config: NetworkConfig, classes: int, rngs: nnx.Rngs) -> Classifier:
    architecture = dataclasses.replace(ARCHITECTURES[config.name], **_changes(config))

    # Compiled as one program: dispatching each operation would be far slower.
    @nnx.jit
    def create(rngs: nnx.Rngs) -> Classifier:
        trunk = make_convnet(architecture, rngs=nnx.Rngs(0))
        return Classifier(trunk, classes, config.dropout, rngs=rngs)

    return create(rngs)


def _changes(config: NetworkConfig) -> dict[str, Any]:
    """Returns the fields of the architecture that the settings change."""
    drop_path = {"drop_path": config.drop_path} if config.drop_path else {}
    return {"dtype": config.dtype, **drop_path}


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
