"""The configuration of a run: a workload, its loop, optimizer and devices."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from jax.sharding import Mesh

from meta_opt.finetuning.balancing import BalancingConfig, check_balancing
from meta_opt.finetuning.ledger import Prices
from meta_opt.finetuning.length import with_length
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.privacy import PrivacyConfig
from meta_opt.meta_loss.settings import MetaLossConfig, read_meta_loss
from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.parallel import mesh as mesh_lib
from meta_opt.parallel.mesh import MeshConfig
from meta_opt.types import check_keys, check_mapping, from_config
from meta_opt.workloads.export import ExportConfig
from meta_opt.workloads.workload import WorkloadConfig

W = TypeVar("W", bound=WorkloadConfig)
_AT_THE_ROOT = ("num_steps", "batch_size", "seed")
"""Settings that several sections of a run share."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The configuration of a run; each section is documented at its class.

    Attributes:
        workload: model and data, a `WorkloadConfig` such as
            `meta_opt.workloads.image_text.ImageTextConfig`.
        loop: length, and intervals of logging, evaluation and checkpoints.
        optimizer: the optimizer; its length is the loop's.
        meta_loss: how the workload's losses are combined; None for its own loss.
        balancing: how its modalities or losses are balanced; None for no balancing.
        privacy: differentially private training; None for ordinary training.
        mesh: mesh of devices.
        export: path and format of the final weights.
        prices: prices of device hours, tokens and energy, for the ledger.
    """

    workload: Any
    loop: LoopConfig
    optimizer: OptimizerConfig
    meta_loss: MetaLossConfig | None = None
    balancing: BalancingConfig | None = None
    privacy: PrivacyConfig | None = None
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    export: ExportConfig = dataclasses.field(default_factory=ExportConfig)
    prices: Prices = dataclasses.field(default_factory=Prices)

    def __post_init__(self) -> None:
        """Checks that loop and optimizer have the same length and metric."""
        check_balancing(self.balancing, self.meta_loss, self.privacy)
        schedule = self.optimizer.schedule
        if schedule.name == "plateau":
            if not self.loop.feedback:
                raise ValueError(
                    "optimizer.schedule.name='plateau' follows the validation metric: "
                    "set loop.feedback=True, and loop.best_metric to its name"
                )
            if schedule.mode != self.loop.best_mode:
                raise ValueError(
                    f"optimizer.schedule.mode={schedule.mode!r} and loop.best_mode="
                    f"{self.loop.best_mode!r} differ"
                )
        if self.loop.num_steps != self.optimizer.num_steps:
            raise ValueError(
                f"loop.num_steps={self.loop.num_steps} and optimizer.num_steps="
                f"{self.optimizer.num_steps} differ"
            )

    def with_length(self, examples: int, mesh: Mesh) -> "RunConfig":
        """Fills in number of steps and batch size where they are 0.

        See `meta_opt.finetuning.length.with_length`.
        """
        unit = mesh_lib.batch_shards(mesh) * self.loop.accumulation_steps
        loop = with_length(self.loop, examples, unit)
        optimizer = dataclasses.replace(self.optimizer, num_steps=loop.num_steps)
        return dataclasses.replace(self, loop=loop, optimizer=optimizer)

    def settings(self) -> dict[str, Any]:
        """Returns all settings, of workload and run, as one nested mapping."""
        nested = dataclasses.asdict(self)
        # Prices do not affect a run; they are recorded in its ledger.
        del nested["prices"]
        return nested.pop("workload") | nested


def read_run_config(
    workload: type[W], settings: Mapping[str, Any], name: str = "config"
) -> RunConfig:
    """Builds the configuration of a run from one nested mapping.

    Args:
        workload: dataclass of the workload, whose fields are keys next to those of
            `RunConfig`.
        settings: mapping such as from a config file, of differences from the
            dataclasses' defaults, with ``num_steps``, ``batch_size`` and ``seed`` at
            the root.
        name: name of the mapping, for error messages.

    Raises:
        ValueError: a key is unknown (the message has the nearest known one); see also
            `from_config`.

    Example:
        >>> from meta_opt.workloads.image_text import ImageTextConfig
        >>> settings = {"num_steps": 10, "batch_size": 4, "loop": {"log_every": 5}}
        >>> config = read_run_config(ImageTextConfig, settings)
        >>> config.loop.num_steps, config.optimizer.num_steps, config.loop.log_every
        (10, 10, 5)
    """
    of_run = {field.name for field in dataclasses.fields(RunConfig)} - {"workload"}
    of_workload = {field.name for field in dataclasses.fields(workload)}  # type: ignore
    check_keys(name, settings, (*_AT_THE_ROOT, *sorted(of_run | of_workload)))
    for section in ("loop", "optimizer"):
        check_mapping(f"{name}.{section}", settings.get(section, {}))
        for key in set(_AT_THE_ROOT) & set(settings.get(section, {})):
            raise ValueError(f"{name}.{section}.{key}: give {name}.{key} instead")
    root = {key: settings[key] for key in _AT_THE_ROOT if key in settings}
    sections = {
        **settings,
        "loop": {**settings.get("loop", {}), **root},
        "optimizer": {
            **settings.get("optimizer", {}),
            "num_steps": root.get("num_steps", 0),
        },
    }
    made = from_config(
        workload, {k: sections[k] for k in of_workload & set(sections)}, name
    )
    if sections.get("meta_loss") is not None:
        meta_loss = read_meta_loss(sections["meta_loss"], f"{name}.meta_loss")
        sections["meta_loss"] = meta_loss
    of_classes = {"privacy": PrivacyConfig, "balancing": BalancingConfig}
    for section, made_of in of_classes.items():
        given = sections.get(section)
        if given is not None and not isinstance(given, made_of):
            sections[section] = from_config(made_of, given, f"{name}.{section}")
    of_run_given = {k: sections[k] for k in of_run & set(sections)}
    return from_config(RunConfig, {"workload": made, **of_run_given}, name)
