"""Files of the newest checkpoint, cut, flipped by a bit or missing, each in turn."""

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
"""By name."""


def damaged_checkpoints(place: Place, only: str = "*") -> dict[str, Any]:
    """Damages each file of a small run's newest checkpoint, and restores.

    What is restored has to be a whole checkpoint, the newest or the one before, to the
    bit, and what is not the newest has to be said.

    Args:
        place: where.
        only: pattern of the files that are damaged, as of `Path.match`.

    Returns:
        As JSON values: ``files``, ``tried``, how often each step was restored and
        ``wrong``, the file and damage after which something else came out.
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
            said: list[str] = []
            step = _restored_step(copy, said)
            restored[f"step {step}"] += 1
            if step not in (2, 3) or (step == 2 and not any("lost" in x for x in said)):
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
        place: where.
        damage: one of `DAMAGES`.

    Returns:
        As JSON values: ``outcome``, ``said`` and ``differing`` parts, of which there
        are none if the run is the undisturbed one again.
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
    """Files of a checkpoint and its manifest, from the folder of all."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and (name.parts[0] == str(step) or name.stem == str(step)):
            yield name


class _Listener(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


def _restored_step(folder: Path, said: list[str]) -> int | str:
    """Returns the restored step, after checking the state against what was saved."""
    listener, logger = _Listener(said), logging.getLogger("meta_opt.checkpoints")
    logger.addHandler(listener)
    # What is said is counted, and need not be read fifty times.
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
