"""Metrics and best parameters of a run, stored so that the run can be resumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from meta_opt.predictor.snapshots import Snapshot, Snapshots
from meta_opt.tensor_files import read_tensors, write_tensors
from meta_opt.text_files import read_json, write_json
from meta_opt.types import PyTree

_FILE = "evaluations.json"
_BEST = "best-"
"""Prefix of the file of the best parameters."""
_SEPARATOR = ":"
"""Separator of a tensor's index and dtype; the dtype is written for bfloat16 only."""


class Evaluations:
    """Metrics by step, and snapshots of the best parameters.

    With a folder, each evaluation is written before the run continues. The files may be
    ahead of the last checkpoint; a resumed run repeats those steps bit for bit and uses
    the recorded evaluations. With several processes only the first one writes.

    Args:
        keep: maximum number of snapshots to average; 1 for no averaging.
        metric: validation metric that selects snapshots.
        mode: ``min`` or ``max``, whichever is better.
        like: pytree of parameters with the structure to restore.
        folder: folder of the files; None keeps everything in memory.

    Attributes:
        metrics: validation metrics by step.
        snapshots: the best parameters.
        ended: step and reason if the run stopped early, else None.

    Raises:
        ValueError: damaged files.
    """

    def __init__(
        self, keep: int, metric: str, mode: str, like: PyTree, folder: Path | None
    ) -> None:
        self.metrics: dict[int, dict[str, float]] = {}
        self.snapshots = Snapshots(keep, metric, mode)
        self.ended: tuple[int, str] | None = None
        self._metric, self._folder = metric, folder
        self._structure = jax.tree.structure(like)
        if folder is not None and (folder / _FILE).is_file():
            self._read(folder)

    def show(self, step: int, params: PyTree, metrics: Mapping[str, float]) -> None:
        """Records an evaluation, unless the step has been recorded already."""
        if step in self.metrics:
            return
        self.metrics[step] = dict(metrics)
        self.snapshots.show(step, params, metrics)
        self._write()

    def end(self, step: int, reason: str) -> None:
        """Records that the run stops early, and why."""
        self.ended = step, reason
        self._write()

    def values(self, until: int) -> list[float]:
        """Returns the selecting metric at each evaluation up to a step."""
        return [m[self._metric] for step, m in self.metrics.items() if step <= until]

    def _stored(self) -> dict[str, Snapshot]:
        kept = {f"averaged-{one.step}": one for one in self.snapshots.ranked()}
        best = self.snapshots.best
        return kept if best is None else {f"{_BEST}{best.step}": best, **kept}

    def _write(self) -> None:
        """Writes new parameter files, then their list, then deletes unlisted files.

        In this order all listed files exist even if the process is killed in between.
        """
        folder = self._folder
        if folder is None or jax.process_index() != 0:
            return
        folder.mkdir(parents=True, exist_ok=True)
        before = read_json(folder / _FILE) if (folder / _FILE).is_file() else {}
        files = {}
        for name, one in self._stored().items():
            known = before.get("files", {}).get(name)
            if known is None:
                leaves = enumerate(jax.tree.leaves(one.params))
                arrays = dict(_named(i, x) for i, x in leaves)
                known = write_tensors(folder / f"{name}.safetensors", arrays)
            files[name] = known
        about = {
            "metrics": list(self.metrics.items()),
            "ended": self.ended,
            "files": files,
        }
        write_json(folder / _FILE, about)
        for file in folder.glob("*.safetensors"):
            if file.stem not in files:
                file.unlink()

    def _read(self, folder: Path) -> None:
        about = read_json(folder / _FILE)
        self.metrics = {step: metrics for step, metrics in about["metrics"]}
        self.ended = None if about["ended"] is None else tuple(about["ended"])
        found: dict[str, Snapshot] = {}
        for name, expected in about["files"].items():
            step = int(name.partition("-")[2])
            params = self._params(folder / f"{name}.safetensors", expected)
            found[name] = Snapshot(step, self.metrics[step][self._metric], params)
        averaged = [one for name, one in found.items() if not name.startswith(_BEST)]
        (best,) = (one for name, one in found.items() if name.startswith(_BEST))
        self.snapshots.restore(best, averaged, self.metrics)

    def _params(self, file: Path, expected: str) -> Any:
        remedy = "start again in another workdir"
        leaves = {}
        for name, x in read_tensors(file, expected, _FILE, remedy).items():
            number, _, half = name.partition(_SEPARATOR)
            leaves[int(number)] = x.view(ml_dtypes.bfloat16) if half else x
        return jax.tree.unflatten(self._structure, [leaves[i] for i in sorted(leaves)])


def _named(number: int, x: Any) -> tuple[str, np.ndarray]:
    """Returns name and array of a leaf for safetensors; bfloat16 as integers.

    The NumPy interface of safetensors does not support bfloat16.
    """
    x = np.ascontiguousarray(x)
    if x.dtype == ml_dtypes.bfloat16:
        return f"{number}{_SEPARATOR}bfloat16", x.view(np.uint16)
    return str(number), x
