"""Stages: ways of fine-tuning a task, each with one more part of the framework."""

import dataclasses
from collections.abc import Mapping, Sequence

from meta_opt.types import check_distinct, check_name, from_config

PLAIN, BEST, READOUT, FIT = "last state", "best checkpoint", "readout", "fit"
PARTS = (PLAIN, BEST, READOUT, FIT)
"""Parts in the order in which they are added: the parameters after the last step; the
parameters of the best evaluation instead; a start from the encoders' linear readout;
and everything else that `meta_opt.fit` chooses, such as input sizes and number of
steps."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A row of the table.

    Attributes:
        name: name in the table.
        optimizer: ``learned``, or the name of a baseline, run with tuned settings.
        part: the last part of the framework that is added, one of `PARTS`.
        trainable: ``all`` or ``lora``.
    """

    name: str
    optimizer: str = "learned"
    part: str = PLAIN
    trainable: str = "all"

    def __post_init__(self) -> None:
        """Checks the part."""
        check_name("stage.part", self.part, PARTS)
        if self.part == FIT and self.optimizer != "learned":
            raise ValueError(
                f"stage.optimizer={self.optimizer!r}: meta_opt.fit always uses the "
                "learned optimizer"
            )


def read_stages(settings: Sequence[Mapping[str, str]]) -> tuple[Stage, ...]:
    """Builds stages from settings.

    Args:
        settings: fields of each stage.

    Raises:
        ValueError: unknown fields or parts, or two stages with the same name.

    >>> read_stages([{"name": "plain"}])[0].part
    'last state'
    """
    stages = tuple(
        from_config(Stage, fields, f"config.stages[{i}]")
        for i, fields in enumerate(settings)
    )
    check_distinct("config.stages", (stage.name for stage in stages))
    return stages
