"""Cases of the throughput study: a model, its losses, and how it is measured."""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from meta_opt.meta_loss.hypergradients import HypergradientConfig
from meta_opt.meta_loss.settings import MetaLossConfig, published
from meta_opt.studies.meltr_throughput.subjects import make_subject
from meta_opt.types import check_name

LEVELS = ("traced", "compiled", "timed")
"""Levels of measurement; each includes those before it."""


class Method(NamedTuple):
    """A method of taking a meta-step.

    Attributes:
        hypergradient: see `meta_opt.meta_loss.hypergradients`.
        same_batch: whether a meta-step uses one batch in place of two.
        batch_divisor: ratio of the training batch size to the meta-batch size.
    """

    hypergradient: HypergradientConfig
    same_batch: bool = False
    batch_divisor: int = 1


_JVP = HypergradientConfig("jvp")
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "jvp_shared": Method(_JVP),
        "jvp": Method(HypergradientConfig("jvp", share_forward=False)),
        "same_batch": Method(_JVP, same_batch=True),
        "half_batch": Method(_JVP, batch_divisor=2),
        "same_half_batch": Method(_JVP, same_batch=True, batch_divisor=2),
        "quarter_batch": Method(_JVP, batch_divisor=4),
        "double_backward": Method(HypergradientConfig("double_backward")),
        "neumann": Method(HypergradientConfig("neumann", terms=3)),
        "finite_differences": Method(HypergradientConfig("finite_differences")),
        "sama": Method(HypergradientConfig("sama")),
    }
)
"""Methods of taking a meta-step, by name."""
DEFAULT_METHOD = "jvp_shared"
"""Method that a training run uses by default."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A measured case.

    Attributes:
        model: name in `meta_opt.studies.meltr_throughput.subjects.MODELS`.
        num_losses: T; the first T losses of the model are used.
        batch_size: B, over all devices.
        trainable: ``all`` or ``lora``.
        method: one of `METHODS`.
        devices: number of local devices that the work is sharded over; 1 with a
            topology.
        topology: TPU topology to compile for, using all of its devices, such as
            ``v5e:2x2``; "" for local devices.
        level: one of `LEVELS`. Counting operations needs no compilation, which takes a
            minute per program.
        rounds: number of timing rounds.
        intervals: values of K for timed loops of steps with meta-steps.
    """

    model: str
    num_losses: int
    batch_size: int = 8
    trainable: str = "all"
    method: str = DEFAULT_METHOD
    devices: int = 1
    topology: str = ""
    level: str = "compiled"
    rounds: int = 10
    intervals: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        make_subject(self.model, self.num_losses, self.trainable)
        check_name("method", self.method, METHODS)
        check_name("level", self.level, LEVELS)
        for name in ("devices", "batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        divisor = METHODS[self.method].batch_divisor
        if self.batch_size % divisor:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of {divisor} for "
                f"method={self.method!r}"
            )
        if self.topology and (self.level == "timed" or self.devices > 1):
            raise ValueError(
                f"topology={self.topology!r} can only be compiled for: set "
                "level='compiled' and devices=1"
            )
        if self.intervals and (self.level != "timed" or min(self.intervals) < 1):
            raise ValueError(
                f"intervals={self.intervals} must be at least 1, and need level='timed'"
            )

    @property
    def count(self) -> int:
        """Number of devices: local ones, or the chips of the topology.

        >>> Case("nano", 1, topology="v5e:4x4").count
        16
        """
        if not self.topology:
            return self.devices
        return math.prod(map(int, self.topology.partition(":")[2].split("x")))

    @property
    def label(self) -> str:
        """Label in tables, without settings that have their usual values.

        >>> Case("nano", 2, trainable="lora", devices=4).label
        'nano, T=2, LoRA, 4 devices'
        """
        parts = [f"{self.model}, T={self.num_losses}"]
        parts += ["LoRA"] * (self.trainable == "lora")
        parts += [self.method] * (self.method != DEFAULT_METHOD)
        parts += [f"{self.devices} devices"] * (self.devices > 1)
        parts += [self.topology] * bool(self.topology)
        return ", ".join(parts)

    @property
    def meta_batch_size(self) -> int:
        """Number of examples in each batch of a meta-step."""
        return self.batch_size // METHODS[self.method].batch_divisor

    def meta_loss(self, combiner: str) -> MetaLossConfig:
        """Returns UniVL's published settings for T losses, with this case's method."""
        method = METHODS[self.method]
        return dataclasses.replace(
            published("univl", self.num_losses),
            combiner=combiner,
            hypergradient=method.hypergradient,
            same_batch=method.same_batch,
            batch_size=self.meta_batch_size,
        )
