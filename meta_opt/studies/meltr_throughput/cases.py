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
    """How a meta-step is taken.

    Attributes:
        hypergradient: see `meta_opt.meta_loss.hypergradients`.
        same_batch: whether one batch serves for both of a meta-step's.
        batch_divisor: examples of a training batch over those of a meta-step's.
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
"""Ways to take a meta-step by name."""
DEFAULT_METHOD = "jvp_shared"
"""That of a run."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A measured case.

    Attributes:
        model: one of `meta_opt.studies.meltr_throughput.subjects.MODELS`.
        num_losses: T; the model's first losses.
        batch_size: B, over all devices.
        trainable: ``all`` or ``lora``.
        method: one of `METHODS`.
        devices: number of local devices that the work is sharded over; 1 for a
            topology.
        topology: a TPU topology to compile for with all of its devices, such as
            ``v5e:2x2``; "" for local devices.
        level: one of `LEVELS`. Operations do not need compilation, which takes a
            minute per program.
        rounds: rounds of timing.
        intervals: K of timed loops of steps with meta-steps.
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
                f"topology={self.topology!r} is compiled for and not there: set "
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
        """What sets the case apart, for tables.

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
        """Examples of each batch of a meta-step."""
        return self.batch_size // METHODS[self.method].batch_divisor

    def meta_loss(self, combiner: str) -> MetaLossConfig:
        """UniVL's published settings for T losses, with this case's method."""
        method = METHODS[self.method]
        return dataclasses.replace(
            published("univl", self.num_losses),
            combiner=combiner,
            hypergradient=method.hypergradient,
            same_batch=method.same_batch,
            batch_size=self.meta_batch_size,
        )
