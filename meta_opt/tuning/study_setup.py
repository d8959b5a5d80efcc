"""The setup of a study, and checks of whether it can be resumed."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from meta_opt.error_messages import first_few
from meta_opt.text_files import plain_json

if TYPE_CHECKING:
    import optuna

_SETUP = "setup"
"""User attribute of the study."""
INTERRUPTED = "interrupted"
"""User attribute of the study: numbers of interrupted trials."""
PLACE = "place"
"""User attribute of a trial: its number in the search."""


def check_setup(study: "optuna.Study", setup: Mapping[str, Any], storage: str) -> None:
    """Stores the setup of a new study, or compares it with that of an existing one.

    Args:
        study: new or existing.
        setup: JSON values in sections.
        storage: name of the storage, for error messages.

    Raises:
        ValueError: another setup; the message names the settings that differ.
    """
    now = plain_json(setup, default=str)
    before = study.user_attrs.get(_SETUP)
    if before is None:
        study.set_user_attr(_SETUP, now)
    elif before != now:
        changed = [
            f"{key} ({first_few(names)})"
            for key in now
            if (names := _changed(before.get(key, {}), now[key]))
        ]
        raise ValueError(
            f"{storage} holds the study {study.study_name!r} made under another "
            f"{' and '.join(changed)}; restore these settings to resume, or use "
            "another file"
        )


def check_trials(study: "optuna.Study", maximize: bool) -> None:
    """Checks a study for edits and damage that Optuna does not detect.

    Args:
        study: study with any number of trials.
        maximize: whether its objective is maximised.

    Raises:
        ValueError: another direction, a complete trial without one finite value, or
            attributes that `search` did not write.
    """
    directions = [direction.name for direction in study.directions]
    expected = ["MAXIMIZE" if maximize else "MINIMIZE"]
    if directions != expected:
        raise ValueError(f"its directions are {directions} and must be {expected}")
    cut_off = study.user_attrs.get(INTERRUPTED, [])
    if not (isinstance(cut_off, list) and all(isinstance(n, int) for n in cut_off)):
        raise ValueError(f"{INTERRUPTED} is {cut_off!r} and must be a list of numbers")
    for trial in study.get_trials(deepcopy=False):
        place = trial.user_attrs.get(PLACE, 0)
        if not isinstance(place, int):
            raise ValueError(
                f"the {PLACE} of trial {trial.number} is {place!r} and must be a number"
            )
        if trial.state.name != "COMPLETE":
            continue
        values = trial.values
        if not (
            isinstance(values, list)
            and len(values) == 1
            and isinstance(values[0], int | float)
            and math.isfinite(values[0])
        ):
            raise ValueError(
                f"trial {trial.number} is complete and has the values {values!r}, "
                "which must be one finite number"
            )


def _changed(before: Any, now: Any, path: tuple[str, ...] = ()) -> list[str]:
    """Names the settings that differ, or are in one of two nested mappings only.

    >>> _changed({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 0, "c": 2}, "e": 3})
    ['a.b', 'd', 'e']
    """
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [".".join(path)] if before != now else []
    return [
        name
        for key in sorted({*before, *now})
        for name in _changed(before.get(key), now.get(key), (*path, key))
    ]
