"""Outcomes of finished runs, and differences between them."""

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.run_log import read_records
from meta_opt.text_files import read_json_value

_CHECKPOINTS = "checkpoints"
_IGNORED = re.compile(
    # Left out: timings, compiled programs, images and locks. The trials of a study
    # are compared through the result files.
    r"^data/|(^|/)(tensorboard|compiled|damaged|manifests|.*\.locks|\.[^/]+)(/|$)"
    r"|(timing|environment|ledger|config)\.jsonl?$|\.(png|md|html|txt|csv|sqlite3)$"
)
_MEASURED = re.compile(
    r"second|millisecond|environment|started|ledger|energy|prices|command|git$|path$"
)
"""Keys of values that differ between any two runs: times, and costs of each start."""

_TEMPORARY = re.compile(r"^\..+\.[a-z0-9_]{8}$|orbax-checkpoint-tmp")


def outcome(folder: Path) -> dict[str, Any]:
    """Returns everything in a run's folder that is the same for each run of a command.

    This includes parameters and optimizer state of the newest checkpoints, lines of
    ``metrics.jsonl`` and other JSONL files, values of JSON files except measurements of
    the machine, and the bytes of all other files, such as exported weights.

    Args:
        folder: folder of the run.

    Returns:
        Contents by path; arrays of a checkpoint by path and name.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == _CHECKPOINTS and path.is_dir():
            found |= {f"{name}/{k}": v for k, v in _newest(path).items()}
        if not path.is_file() or f"{_CHECKPOINTS}/" in name or _IGNORED.search(name):
            continue
        if path.suffix == ".json":
            found[name] = _without_measures(read_json_value(path), str(folder))
        elif path.name == "metrics.jsonl":
            found[name] = read_records(path)
        elif path.suffix != ".log":
            found[name] = path.read_bytes()
    return found


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Returns the names of values that differ or that only one outcome has."""
    names = [*expected, *(name for name in found if name not in expected)]
    return [
        name if name in found and name in expected else f"{name} (absent)"
        for name in names
        if name not in found
        or name not in expected
        or not _equal(found[name], expected[name])
    ]


def largest_difference(
    found: list[dict[str, Any]], expected: list[dict[str, Any]]
) -> float:
    """Returns the largest relative difference of two runs' metrics.

    Args:
        found: records of a run.
        expected: records of another.

    Returns:
        The difference; NaN if the steps or the names of metrics differ.

    >>> largest_difference([{"step": 1, "loss": 4.0}], [{"step": 1, "loss": 5.0}])
    0.2
    >>> largest_difference([{"step": 1, "loss": 4.0}], [])
    nan
    """
    if [list(x) for x in found] != [list(x) for x in expected]:
        return math.nan
    pairs = [
        (one[key], other[key])
        for one, other in zip(found, expected, strict=True)
        for key in one
    ]
    return max((abs(a - b) / abs(b) for a, b in pairs if a != b and b), default=0.0)


def temporary_files(folder: Path) -> list[str]:
    """Returns the half-written files that a kill left; no run reads them."""
    return [
        path.relative_to(folder).as_posix()
        for path in entries(folder)
        if _TEMPORARY.search(path.name)
    ]


def newest_step(folder: Path) -> int:
    """Returns the largest step of a checkpoint in a folder; 0 without any."""
    steps = [
        int(path.name)
        for path in entries(folder)
        if path.parent.name == _CHECKPOINTS and path.name.isdigit()
    ]
    return max(steps, default=0)


def entries(folder: Path) -> Iterator[Path]:
    """Yields the files and folders below a folder, while a run may delete some.

    `Path.rglob` would raise for a folder that is deleted meanwhile.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(place, name)


def _newest(checkpoints: Path) -> dict[str, Any]:
    import jax
    import orbax.checkpoint as ocp

    step = max(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit())
    # Restored by the checkpoint's own structure, onto a local device.
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.PyTreeCheckpointer() as checkpointer:
        state = checkpoints / str(step) / "state"
        tree = checkpointer.metadata(state).item_metadata.tree
        restore = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=device), tree)
        arrays = checkpointer.restore(state, restore_args=restore)
    flat = {"step": np.asarray(step)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        flat[jax.tree_util.keystr(path, simple=True)] = np.asarray(leaf)
    return flat


def _without_measures(value: Any, folder: str) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_measures(x, folder)
            for key, x in value.items()
            if not _MEASURED.search(key)
        }
    if isinstance(value, list):
        return [_without_measures(x, folder) for x in value]
    return value.replace(folder, "") if isinstance(value, str) else value


def _equal(one: Any, other: Any) -> bool:
    """Whether two values are bitwise equal; NaN equals NaN."""
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        )
    if isinstance(one, dict | list):
        return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    both = isinstance(one, float) and isinstance(other, float)
    return one == other or (both and math.isnan(one) and math.isnan(other))
