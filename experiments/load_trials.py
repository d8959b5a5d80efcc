"""Long runs, many checkpoints and much data: memory, open files, seconds, bytes.

Each function is run in a separate process, so that its memory use can be measured.
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
    """Measures a long run of the small network that logs each step.

    Args:
        steps: number of steps; the first measurement is after a tenth of them.

    Returns:
        JSON values: ``mib``, resident memory, and ``files``, open descriptors, each
        after a tenth of the steps and at the end; ``bytes`` of each log; ``seconds``.
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
    """Measures many successive saves of checkpoints to one folder.

    Args:
        saves: number of checkpoints.

    Returns:
        JSON values: ``kept``, the steps of the remaining checkpoints; ``entries``, the
        number of files and folders; ``seconds_each``, median time of the first and the
        last tenth of the saves; and ``seconds`` to open the folder and restore the
        newest checkpoint.
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
    """Measures the time to the first batch of many captions on a hundred images."""
    return _captions(lines, _DISTINCT)


def picture_files(pictures: int) -> dict[str, Any]:
    """Measures the time to the first batch of many images with a caption each."""
    return _captions(pictures, pictures)


def _captions(lines: int, pictures: int) -> dict[str, Any]:
    """Opens image-text data for fine-tuning.

    Returns:
        JSON values: ``seconds`` and ``processor_seconds`` (CPU time) to open the data,
        read the held-out splits, and make the first batch and its iterator state;
        ``batch_seconds`` of a later batch; ``mib``, peak memory before and after.
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
        # Hard links are fast to create, and readers see separate files.
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
"""Trials by name; each takes a count of steps, saves, lines or images."""
