"""Settings of a study of fine-tuning in phases: data, run, optimizers and policies."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from meta_opt.finetuning.run_config import RunConfig, read_run_config
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.studies.progressive.policy import PhasePolicy
from meta_opt.types import check_least, check_mapping, check_name, from_config
from meta_opt.workloads.export import FORMATS
from meta_opt.workloads.image_text import ImageTextConfig

MODES = ("continue", "cumulative")
ZERO_SHOT = "zero_shot"
"""Folder of the model before fine-tuning, which is therefore not a valid track name."""


@dataclasses.dataclass(frozen=True)
class PhasesConfig:
    """The data and the phases.

    Attributes:
        folder: few-shot data written by ``experiments/few_shot_data.py``.
        width: width of the images in pixels, one of the widths in the folder.
        variant: variant of ``configs/few_shot_data.py`` that writes the folder, for
            error messages.
        mode: ``continue``: each phase starts from the weights of the previous one and
            trains on its own examples; ``cumulative``: each phase starts from the
            initial model and trains on the examples of all phases so far.
        phases: number of phases to run; 0 for all.
        epochs: passes over the examples of a phase.
        answer_tokens: maximum number of tokens of an answer; 0 for twice that of the
            longest correct answer.
        export: format in which each phase exports its model to ``model`` in its folder,
            see `meta_opt.workloads.export.ExportConfig`; "" for no export.
    """

    folder: str
    width: int = 100
    variant: str = "openclipart"
    mode: str = "continue"
    phases: int = 0
    epochs: int = 3
    answer_tokens: int = 0
    export: str = ""

    def __post_init__(self) -> None:
        """Checks names and ranges."""
        check_name("study.mode", self.mode, MODES)
        if self.export:
            check_name("study.export", self.export, FORMATS)
        if not self.folder.strip():
            raise ValueError("study.folder is empty: name a folder of few-shot data")
        check_least("study", self, width=1, phases=0, epochs=1, answer_tokens=0)


@dataclasses.dataclass(frozen=True)
class Study:
    """A study of several optimizers and policies.

    Attributes:
        config: settings of data and phases.
        run: settings of a phase's run; length, data and optimizer are filled in.
        optimizers: settings of optimizers by name, which is also a folder's name.
        policies: policies by name; each is run with every optimizer, in addition to the
            fixed phases.
    """

    config: PhasesConfig
    run: RunConfig
    optimizers: Mapping[str, OptimizerConfig]
    policies: Mapping[str, PhasePolicy] = dataclasses.field(default_factory=dict)

    def tracks(self) -> dict[str, tuple[str, PhasePolicy | None]]:
        """Returns optimizer and policy of each track by name, fixed phases first."""
        found: dict[str, tuple[str, PhasePolicy | None]] = {
            name: (name, None) for name in self.optimizers
        }
        for optimizer in self.optimizers:
            for label, policy in self.policies.items():
                found[f"{optimizer}_{label}"] = optimizer, policy
        return found


def read_study(settings: Mapping[str, Any], name: str = "config") -> Study:
    """Builds a study from one nested mapping.

    Args:
        settings: ``study``, fields of `PhasesConfig`; ``optimizers``, fields of
            `OptimizerConfig` by name; ``policies``, fields of `PhasePolicy` by name;
            and the settings of a run on images with texts, see `read_run_config`.
        name: name of the mapping, for error messages.

    Raises:
        ValueError: unknown keys, values out of range, settings that the phases
            determine, or a model that is not generative.

    Example:
        >>> study = read_study({
        ...     "study": {"folder": "data/few_shot/mine"},
        ...     "optimizers": {"adamw": {"name": "adamw"}},
        ...     "batch_size": 1,
        ...     "model": {
        ...         "size": "nano-generative", "weights": "", "loss": "captioning",
        ...     },
        ... })
        >>> study.config.epochs, study.run.loop.batch_size
        (3, 1)
    """
    own = ("study", "optimizers", "policies")
    of_run = {k: v for k, v in settings.items() if k not in own}
    for key, why in (
        ("num_steps", "the phases' examples and study.epochs decide it"),
        ("optimizer", f"give {name}.optimizers, settings by name"),
        ("export", "give study.export, a format"),
        ("meta_loss", "answers have one loss"),
        ("balancing", "answers have one loss"),
    ):
        if of_run.get(key):
            raise ValueError(f"{name}.{key}: {why}")
    for section in ("data", "optimizers", "policies"):
        check_mapping(f"{name}.{section}", settings.get(section, {}))
    for key in ("name", "validation", "test"):
        if key in of_run.get("data", {}):
            raise ValueError(
                f"{name}.data.{key}: study.folder determines the data; leave it out"
            )
    run = read_run_config(ImageTextConfig, of_run, name)
    if run.loop.batch_size < 1:
        raise ValueError(f"{name}.batch_size={run.loop.batch_size} must be at least 1")
    if run.workload.model.loss != "captioning":
        raise ValueError(
            f"{name}.model.loss={run.workload.model.loss!r}: a model that writes "
            "answers is trained with 'captioning'"
        )
    optimizers = {}
    for label, given in settings.get("optimizers", {}).items():
        where = f"{name}.optimizers.{label}"
        _check_label(label, where)
        check_mapping(where, given)
        if "num_steps" in given:
            raise ValueError(
                f"{where}.num_steps: the phases determine it; leave it out"
            )
        optimizers[label] = from_config(OptimizerConfig, given, where)
        # Raises for a misspelt name before the first phase.
        make_optimizer(dataclasses.replace(optimizers[label], num_steps=1))
    # The untuned optimizers, the subject of the study, come first in tables.
    order = sorted(optimizers, key=lambda label: optimizers[label].name != "learned")
    optimizers = {label: optimizers[label] for label in order}
    if not optimizers:
        raise ValueError(f"{name}.optimizers: name one or more")
    config = from_config(PhasesConfig, settings.get("study", {}), f"{name}.study")
    policies = {}
    for label, given in settings.get("policies", {}).items():
        where = f"{name}.policies.{label}"
        _check_label(label, where)
        policies[label] = from_config(PhasePolicy, given, where)
        if policies[label].point_value and run.prices.empty:
            raise ValueError(
                f"{where}.point_value is compared with costs; give "
                f"{name}.prices.device_hour and {name}.prices.currency"
            )
    study = Study(config, run, optimizers, policies)
    if len(study.tracks()) < len(optimizers) * (1 + len(policies)):
        raise ValueError(
            f"{name}.policies: an optimizer has the name of another one with a policy: "
            f"{', '.join(study.tracks())}"
        )
    return study


def _check_label(label: str, where: str) -> None:
    if label == ZERO_SHOT or not label.replace("_", "").isalnum():
        raise ValueError(f"{where}: use a name of letters, digits and _")
