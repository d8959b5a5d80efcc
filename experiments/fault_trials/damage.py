"""Damage to checkpoint files: each is truncated, has a bit flipped, or is deleted."""

import collections
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.fault_trials.kills import Place, finish
from experiments.fault_trials.outcomes import differences, outcome
from experiments.fault_trials.surroundings import KIND
from meta_opt.checkpoints import Checkpoints


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": _cut,
    "flipped": _flip,
    "missing": Path.unlink,
}
"""Kinds of damage to a file, by name."""


def damaged_checkpoints(place: Place, only: str = "*") -> dict[str, Any]:
    """Damages each file of a small newest checkpoint in turn, and restores.

    The restored state must be bitwise that of the newest checkpoint or of the one
    before it; in the latter case a warning must say so.

    Args:
        place: folder and starter of the trials.
        only: glob pattern of the files to damage, see `Path.match`.

    Returns:
        JSON values: ``files`` and ``tried``, the numbers of files and of trials;
        ``restored``, how often each step was restored; and ``wrong``, file and damage
        of each trial that restored anything else, or gave no warning.
    """
    folder = place.folder("damage")
    source = folder / "run" / "source"
    _write(source)
    files = sorted(file for file in _files(source, 3) if file.match(only))
    restored: collections.Counter[str] = collections.Counter()
    wrong = []
    for file in files:
        for name, damage in DAMAGES.items():
            copy = folder / "run" / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(source, copy)
            damage(copy / file)
            messages: list[str] = []
            step = _restored_step(copy, messages)
            restored[f"step {step}"] += 1
            warned = any("lost" in x for x in messages)
            if step not in (2, 3) or (step == 2 and not warned):
                wrong.append(f"{file}, {name}")
    shutil.rmtree(folder)
    tried = sum(restored.values())
    return {
        "files": len(files),
        "tried": tried,
        "restored": dict(restored),
        "wrong": wrong,
    }


def damaged_run(place: Place, damage: str) -> dict[str, Any]:
    """Damages the largest file of a finished run's newest checkpoint, and resumes it.

    Args:
        place: folder and starter of the trials.
        damage: one of `DAMAGES`.

    Returns:
        JSON values: ``outcome``; ``said``, the warning; and ``differing``, the parts
        that differ from the undisturbed run.
    """
    reference, _ = place.unbroken(KIND)
    folder = place.folder(f"damage-{damage}")
    shutil.rmtree(folder)
    shutil.copytree(reference, folder, symlinks=True)
    checkpoints = folder / "run" / "checkpoints"
    newest = max(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit())
    files = (p for p in (checkpoints / str(newest)).rglob("*") if p.is_file())
    DAMAGES[damage](max(files, key=lambda path: path.stat().st_size))
    printed = finish(place.start(place.command(KIND, folder), folder))
    said = [line for line in printed.splitlines() if " is damaged " in line]
    found = {
        "outcome": "survived",
        "code": 0,
        "said": said[0].rpartition("] ")[2].replace(str(place.root), "")
        if said
        else "",
        "traceback": "Traceback" in printed,
        "differing": differences(outcome(folder), outcome(reference)),
    }
    shutil.rmtree(folder)
    return found


def _state(step: int) -> dict[str, Any]:
    """Returns a small train state: several dtypes, a scalar, a key, an empty array."""
    rng = np.random.default_rng(step)
    return {
        "params": {
            "kernel": jax.numpy.asarray(rng.normal(size=(16, 8)), "float32"),
            "half": jax.numpy.asarray(rng.normal(size=5), "bfloat16"),
        },
        "empty": jax.numpy.zeros((0, 3)),
        "rng": jax.random.key(step),
        "step": jax.numpy.int32(step),
    }


def _write(folder: Path) -> None:
    checkpoints = Checkpoints(folder)
    for step in (1, 2, 3):
        checkpoints.save(step, _state(step), {"next": step}, metric=1.0 / step)
    checkpoints.close()


def _files(folder: Path, step: int) -> Iterator[Path]:
    """Yields the files of a step's checkpoint and its manifest, relative to folder."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and (name.parts[0] == str(step) or name.stem == str(step)):
            yield name


class _Listener(logging.Handler):
    """Appends log messages to a list."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


def _restored_step(folder: Path, messages: list[str]) -> int | str:
    """Returns the restored step, or a description of what went wrong.

    Args:
        folder: folder of the checkpoints.
        messages: the log messages are appended to it.
    """
    listener, logger = _Listener(messages), logging.getLogger("meta_opt.checkpoints")
    logger.addHandler(listener)
    # The messages are collected; showing them in every trial would flood the terminal.
    logger.propagate = False
    try:
        checkpoints = Checkpoints(folder)
        restored = checkpoints.restore(_state(0))
        checkpoints.close()
    except (ValueError, OSError) as error:
        return f"error: {str(error)[:100]}"
    finally:
        logger.propagate = True
        logger.removeHandler(listener)
    if restored is None:
        return "none"

    def bits(x: Any) -> bytes:
        key = jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if key else x).tobytes()

    leaves = jax.tree.leaves(restored.state)
    wanted = jax.tree.leaves(_state(restored.step))
    same = all(bits(a) == bits(b) for a, b in zip(leaves, wanted, strict=True))
    same = same and restored.host == {"next": restored.step}
    return restored.step if same else f"step {restored.step} with other contents"
