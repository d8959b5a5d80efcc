"""All task families by name, each on real data; meta-data is split by data set.

`SPLIT_OF_DATASET` has the split of each data set. Names of families in
`meta_opt.tasks.style_families` begin with ``style_``, of `meta_opt.tasks.foreign` with
``validation_``, ``foreign_`` or ``demo_``.
"""

import dataclasses

from meta_opt.tasks.encoder_families import ENCODER_FAMILIES
from meta_opt.tasks.foreign import DEMO, FOREIGN, STYLE_VALIDATION
from meta_opt.tasks.plain_families import PLAIN_FAMILIES
from meta_opt.tasks.pretrained_layers import LAYER_FAMILIES
from meta_opt.tasks.style_families import STYLE_DATASETS, STYLE_FAMILIES
from meta_opt.tasks.style_families import STYLE_TRAIN as STYLE_TRAIN
from meta_opt.tasks.task import BuildTask, Task
from meta_opt.types import near_match

SPLIT_OF_DATASET = {
    "digits": "train",
    "cancer": "train",
    "glyphs": "train",
    "emoji": "train",
    "klettres": "train",
    "cldr": "train",
    "clipart": "validation",
    "asterisk": "validation",
    "tuxpaint": "test",
    "animated": "test",
    **dict.fromkeys(STYLE_DATASETS, "train"),
    # Data sets of independently written models, `meta_opt.tasks.foreign`.
    "currencies": "style_validation",
    "terrain": "style_validation",
    "source": "style_validation",
    "iris": "style_validation",
    # First words of family names that do not begin with a data set.
    "style": "train",
    **dict.fromkeys(("minilm", "whisper", "efficientnet"), "train"),
    "validation": "style_validation",
    "foreign": "foreign",
    **dict.fromkeys(("titles", "demo"), "demo"),
}
"""Split of the meta-data that a data set belongs to; no task uses data of two splits.

The exception are families of style validation, which may use data of ``validation``:
both splits select weights.
"""

FAMILIES: dict[str, BuildTask] = {
    **PLAIN_FAMILIES,
    **LAYER_FAMILIES,
    **ENCODER_FAMILIES,
    **STYLE_FAMILIES,
    **STYLE_VALIDATION,
    **FOREIGN,
    **DEMO,
}
"""Functions from a data folder to a task, by family name."""


def make_task(family: str, data_dir: str | None = None) -> Task:
    """Builds a task of a family.

    Args:
        family: name of the family, a key of `FAMILIES`.
        data_dir: folder of prepared datasets; None for the default.

    Returns:
        The task, with its data in memory.

    Raises:
        ValueError: an unknown family.
        MissingDataError: a dataset that is not prepared; the message has the command.
    """
    if family not in FAMILIES:
        raise ValueError(
            f"unknown task family {family!r}{near_match(family, FAMILIES)}; available: "
            f"{', '.join(FAMILIES)}"
        )
    return dataclasses.replace(FAMILIES[family](data_dir), name=family)
