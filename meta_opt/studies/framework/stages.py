"""Stages of fine-tuning, each of which adds one part of the framework."""

import dataclasses
from collections.abc import Mapping, Sequence

from meta_opt.types import check_name, from_config

PLAIN, BEST, READOUT, FIT = "last state", "best checkpoint", "readout", "fit"
PARTS = (PLAIN, BEST, READOUT, FIT)
"""In the order in which they are added: the parameters after the last step; those of
the best evaluation; a start from the encoders' linear readout; all that `meta_opt.fit`
chooses, such as sizes of inputs and number of steps."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage, which is a row of the table.

    Attributes:
        name: name in the table.
        optimizer: ``learned``, or the name of a tuned baseline.
        part: last part of the framework that is added, one of `PARTS`.
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
                f"stage.optimizer={self.optimizer!r}: fit has the learned optimizer"
            )


def read_stages(settings: Sequence[Mapping[str, str]]) -> tuple[Stage, ...]:
    """Builds stages from settings.

    Args:
        settings: fields of each stage.

    Raises:
        ValueError: fields or parts are unknown, or two stages have the same name.

    >>> read_stages([{"name": "plain"}])[0].part
    'last state'
    """
    stages = tuple(
        from_config(Stage, fields, f"config.stages[{i}]")
        for i, fields in enumerate(settings)
    )
    names = [stage.name for stage in stages]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"config.stages has several of the name {', '.join(twice)}")
    return stages
