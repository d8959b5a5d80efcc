"""Settings of learned combinations of losses, including the published ones."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import optax

from meta_opt.meta_loss.balancers import COMBINERS, Combiner, make_combiner
from meta_opt.meta_loss.combiner import CombinerConfig
from meta_opt.meta_loss.hypergradients import HypergradientConfig
from meta_opt.types import check_least, check_mapping, check_name, from_config

COMBINATIONS = ("primary", *COMBINERS, "gradnorm", "pcgrad")
"""Loss combination methods; those not in `COMBINERS` need per-loss gradients or that of
the primary loss alone."""

META_OPTIMIZERS = ("adam", "adamw")
"""Optimizers of the combiner."""


@dataclasses.dataclass(frozen=True)
class MetaLossConfig:
    """How losses are combined and how the combiner is trained.

    Attributes:
        combiner: one of `COMBINATIONS`.
        network: shape of the transformer; ``num_losses`` is taken from the workload.
        batch_size: B, size of each of the two batches of a meta-step; 0 for that of
            training.
        weights: weights [T] of the combiners ``fixed`` and ``linear``; None for ones.
        interval: training steps between two meta-steps.
        meta_optimizer: one of `META_OPTIMIZERS`.
        learning_rate: learning rate of the meta-optimizer.
        weight_decay: weight decay of the meta-optimizer, as L2 regularisation in
            ``adam`` and decoupled in ``adamw``.
        clip_norm: maximum norm of the hypergradient.
        gamma: weight of the regulariser.
        direct_term: see `meta_opt.meta_loss.meta_gradient.meta_gradient`.
        hypergradient: hypergradient method and its settings.
        same_batch: whether a meta-step uses the same batch for B1 and B2, which saves a
            pass over the model
            (`meta_opt.meta_loss.meta_gradient.same_batch_meta_gradient`). Requires the
            method ``jvp`` with ``share_forward``.
    """

    combiner: str = "meltr"
    network: CombinerConfig = dataclasses.field(
        default_factory=lambda: CombinerConfig(num_losses=1)
    )
    batch_size: int = 0
    weights: tuple[float, ...] | None = None
    interval: int = 3
    meta_optimizer: str = "adam"
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    clip_norm: float = 12.0
    gamma: float = 0.1
    direct_term: bool = False
    hypergradient: HypergradientConfig = dataclasses.field(
        default_factory=HypergradientConfig
    )
    same_batch: bool = False

    def __post_init__(self) -> None:
        """Checks the names and ranges."""
        check_name("meta_loss.combiner", self.combiner, COMBINATIONS)
        check_name("meta_loss.meta_optimizer", self.meta_optimizer, META_OPTIMIZERS)
        check_least("meta_loss", self, interval=1, batch_size=0)
        # An infinite clip_norm turns clipping off.
        if not (0 < self.learning_rate < math.inf and self.clip_norm > 0):
            raise ValueError(
                f"meta_loss: learning_rate={self.learning_rate} and "
                f"clip_norm={self.clip_norm} must be positive numbers"
            )
        if not all(0 <= x < math.inf for x in (self.weight_decay, self.gamma)):
            raise ValueError(
                f"meta_loss: weight_decay={self.weight_decay} and gamma={self.gamma} "
                "must be finite and not negative"
            )
        if not all(map(math.isfinite, self.weights or ())):
            raise ValueError(f"meta_loss: weights={self.weights} must be finite")
        method = self.hypergradient
        if self.same_batch and not (method.kind == "jvp" and method.share_forward):
            raise ValueError(
                f"same_batch=True shares the pass of hypergradient.kind='jvp' with "
                f"share_forward=True, and these are {method.kind!r} and "
                f"{method.share_forward}; set same_batch=False"
            )

    def make_combiner(self, num_losses: int) -> Combiner:
        """Builds the combiner of T losses.

        Raises:
            ValueError: weights do not fit, or the method is not in `COMBINERS`.
        """
        network = dataclasses.replace(self.network, num_losses=num_losses)
        return make_combiner(self.combiner, network, self.weights)

    def make_meta_optimizer(self) -> optax.GradientTransformation:
        """Builds the optimizer of the combiner: clipping, then Adam or AdamW."""
        clip = optax.clip_by_global_norm(self.clip_norm)
        if self.meta_optimizer == "adamw":
            return optax.chain(
                clip,
                optax.adamw(self.learning_rate, weight_decay=self.weight_decay),
            )
        return optax.chain(
            clip,
            optax.add_decayed_weights(self.weight_decay),
            optax.adam(self.learning_rate),
        )


PUBLISHED: dict[str, MetaLossConfig] = {
    "univl": MetaLossConfig(
        network=CombinerConfig(num_losses=8, hidden_size=128, width=256, ffn_size=512),
        interval=3,
        meta_optimizer="adam",
        learning_rate=1e-3,
        weight_decay=3e-5,
        clip_norm=50.0,
        gamma=0.1,
    ),
    "violet_retrieval": MetaLossConfig(
        network=CombinerConfig(num_losses=3, hidden_size=256, width=512, ffn_size=512),
        interval=3,
        meta_optimizer="adamw",
        learning_rate=3e-6,
        weight_decay=1e-3,
        clip_norm=12.0,
        gamma=0.1,
    ),
    "violet_qa": MetaLossConfig(
        network=CombinerConfig(num_losses=4, hidden_size=128, width=256, ffn_size=256),
        interval=3,
        meta_optimizer="adamw",
        learning_rate=1e-4,
        weight_decay=1e-4,
        clip_norm=12.0,
        gamma=0.1,
    ),
    "all_in_one": MetaLossConfig(
        network=CombinerConfig(num_losses=2, hidden_size=128, width=128, ffn_size=128),
        interval=5,
        meta_optimizer="adam",
        learning_rate=1e-4,
        weight_decay=3e-5,
        clip_norm=1.0,
        gamma=0.1,
    ),
}
"""The four configurations of MELTR (Ko et al. 2023, arXiv:2303.13009) by model. UniVL's
gamma is the paper's; its released code has the regulariser off unless asked for."""


def read_meta_loss(
    settings: Mapping[str, Any], name: str = "meta_loss"
) -> MetaLossConfig:
    """Builds the configuration from a mapping such as a config file's section.

    Args:
        settings: fields of `MetaLossConfig`, and optionally ``published``, a key of
            `PUBLISHED` whose settings the other fields override.
        name: name of the mapping, for error messages.

    Raises:
        ValueError: see `from_config`; or ``published`` is unknown.

    >>> config = read_meta_loss({"published": "univl", "network": {"dropout": 0.0}})
    >>> config.network.ffn_size, config.network.dropout, config.interval
    (512, 0.0, 3)
    """
    check_mapping(name, settings)
    given = dict(settings)
    check_mapping(f"{name}.network", given.get("network", {}))
    start: dict[str, Any] = {}
    if preset := given.pop("published", ""):
        check_name(f"{name}.published", preset, PUBLISHED)
        start = dataclasses.asdict(PUBLISHED[preset])
    for key, value in given.items():
        nested = isinstance(value, Mapping) and isinstance(start.get(key), Mapping)
        start[key] = {**start[key], **value} if nested else value
    network = {"num_losses": 1, **start.get("network", {})}
    return from_config(MetaLossConfig, {**start, "network": network}, name)


def published(name: str, num_losses: int | None = None) -> MetaLossConfig:
    """Returns a published configuration.

    Args:
        name: a key of `PUBLISHED`.
        num_losses: T; None for the published number.

    Raises:
        ValueError: the name is unknown.

    >>> config = published("all_in_one", num_losses=3)
    >>> config.interval, config.network.num_losses
    (5, 3)
    """
    check_name("meta-loss configuration", name, PUBLISHED)
    config = PUBLISHED[name]
    if num_losses is None:
        return config
    network = dataclasses.replace(config.network, num_losses=num_losses)
    return dataclasses.replace(config, network=network)
