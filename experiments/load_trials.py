"""Long runs, many checkpoints and much data: memory, open files, seconds, bytes.

Each function is measured in a process of its own, so that its memory is its own.
"""

import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_SIDE, _DISTINCT = 16, 100
_BATCH_SIZE = 64


def long_run(steps: int) -> dict[str, Any]:
    """Returns a run of the small network that records each step.

    Args:
        steps: how many; a tenth of them is the first measurement.

    Returns:
        As JSON values: ``mib``, resident memory, and ``files``, open descriptors, after
        a tenth and at the end; ``bytes`` of each log; ``seconds``.
    """
    from experiments.fault_trials.small_network import small_run

    found: dict[str, list[float]] = {"mib": [], "files": []}

    def note() -> bool:
        found["mib"].append(round(_resident_mib(), 1))
        found["files"].append(len(os.listdir("/proc/self/fd")))
        return False

    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        small_run(folder, steps, every=steps // 10, stop_when=note)
        seconds = time.monotonic() - began
        logs = ("metrics.jsonl", "timing.jsonl", "tensorboard")
        sizes = {name: _bytes(Path(folder) / name) for name in logs}
    measured = {name: [values[0], values[-1]] for name, values in found.items()}
    return {**measured, "bytes": sizes, "seconds": round(seconds, 1)}


def many_checkpoints(saves: int) -> dict[str, Any]:
    """Returns a folder that so many checkpoints were saved to, one after the other.

    Args:
        saves: how many.

    Returns:
        As JSON values: ``kept`` steps, ``entries`` in the folder, ``seconds_each`` of
        the first and the last tenth of the saves, and ``seconds`` to open the folder
        and to restore the newest.
    """
    import jax.numpy as jnp

    from meta_opt.checkpoints import Checkpoints

    def state(step: int) -> dict[str, Any]:
        return {"w": jnp.full(1000, step, jnp.float32), "step": jnp.int32(step)}

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder)
        times = []
        for step in range(1, saves + 1):
            began = time.monotonic()
            checkpoints.save(step, state(step), {"step": step}, metric=1.0)
            checkpoints.wait()
            times.append(time.monotonic() - began)
        checkpoints.close()
        entries = sum(1 for _ in Path(folder).rglob("*"))
        began = time.monotonic()
        again = Checkpoints(folder)
        kept = again.steps()
        restored = again.restore(state(0))
        seconds = time.monotonic() - began
        again.close()
    assert restored is not None and int(restored.state["step"]) == saves
    tenth = max(1, saves // 10)
    return {
        "kept": kept,
        "entries": entries,
        "seconds_each": [
            round(float(np.median(part)), 3) for part in (times[:tenth], times[-tenth:])
        ],
        "seconds": round(seconds, 2),
    }


def jsonl_lines(lines: int) -> dict[str, Any]:
    """A user's captions, so many lines on a hundred images, to the first batch."""
    return _captions(lines, _DISTINCT)


def picture_files(pictures: int) -> dict[str, Any]:
    """So many images with a caption each, to the first batch."""
    return _captions(pictures, pictures)


def _captions(lines: int, pictures: int) -> dict[str, Any]:
    """Opens the data of image-text fine-tuning.

    Returns:
        As JSON values: ``seconds`` and ``processor_seconds`` until the data are opened,
        the held-out splits read, and the first batch made with its state for a
        checkpoint; ``batch_seconds`` of one later batch; ``mib`` of memory at most,
        and what it was before.
    """
    from meta_opt.data.pipeline import PipelineConfig, make_iterator
    from meta_opt.data.preprocessing.image_fit import ImageFit
    from meta_opt.data.preprocessing.tokenizer import load_tokenizer
    from meta_opt.workloads.image_text_data import CountedBatches, DataConfig, Splits

    with tempfile.TemporaryDirectory() as folder:
        file = _write_captions(Path(folder), lines, pictures)
        before = _peak_mib()
        began, worked = time.monotonic(), time.process_time()
        splits = Splits(DataConfig(name=str(file)), ImageFit(_SIDE))
        source = splits.train()
        splits.warn_of_repeated_captions()
        for split in ("validation", "test"):
            splits.held_out(split)
        iterator = make_iterator(
            source, load_tokenizer(), PipelineConfig(), _BATCH_SIZE
        )
        batches = CountedBatches(
            iterator, splits.unreadable, len(source), splits.digest
        )
        next(batches)
        batches.get_state()
        seconds, worked = time.monotonic() - began, time.process_time() - worked
        began = time.monotonic()
        next(batches)
        later = time.monotonic() - began
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(worked, 1),
        "batch_seconds": round(later, 3),
        "mib": [round(before), round(_peak_mib())],
    }


def _write_captions(folder: Path, lines: int, pictures: int) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(_DISTINCT):
        pixels = rng.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    for i in range(_DISTINCT, pictures):
        # Files of their own to whoever reads them, and quickly made.
        os.link(folder / f"{i % _DISTINCT}.png", folder / f"{i}.png")
    file = folder / "captions.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for i in range(lines):
            line = {"image": f"{i % pictures}.png", "text": f"drawing number {i}"}
            stream.write(json.dumps(line) + "\n")
    return file


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


TRIALS: dict[str, Callable[[int], dict[str, Any]]] = {
    "steps": long_run,
    "checkpoints": many_checkpoints,
    "lines": jsonl_lines,
    "pictures": picture_files,
}
"""By name; each of a number."""
