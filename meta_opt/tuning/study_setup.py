"""What a study was made under, and whether it may be gone on with."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

_SETUP = "setup"
"""User attribute of the study."""
_NAMED = 5
"""Differing settings that an error names."""


def check_setup(study: "optuna.Study", setup: Mapping[str, Any], storage: str) -> None:
    """Stores the setup of a new study; that of an older one must be the same.

    Args:
        study: new or older.
        setup: JSON values in sections.
        storage: its name in the error.

    Raises:
        ValueError: another setup; the message names the settings that differ.
    """
    now = json.loads(json.dumps(setup, default=str))
    before = study.user_attrs.get(_SETUP)
    if before is None:
        study.set_user_attr(_SETUP, now)
    elif before != now:
        changed = [
            f"{key} ({', '.join(names[:_NAMED])}{', ...' * (len(names) > _NAMED)})"
            for key in now
            if (names := _changed(before.get(key, {}), now[key]))
        ]
        raise ValueError(
            f"{storage} holds the study {study.study_name!r} made under another "
            f"{' and '.join(changed)}; take those again to go on with it, or another "
            "file"
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
