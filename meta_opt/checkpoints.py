"""Checkpoints of a run with Orbax: atomic, verified, restored to any sharding.

A checkpoint has two parts: ``state``, a pytree of arrays, and ``host``, a JSON value
(the data iterator's state, counters). Beside Orbax's own files stands a manifest with
the SHA-256 of every file, written before the checkpoint is committed: Orbax's format
has no checksum on array data, and a resumed run must not start from a flipped bit.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from meta_opt.error_messages import first_few
from meta_opt.parallel.processes import any_process, barrier
from meta_opt.text_files import plain_json, read_json, write_text
from meta_opt.tree_paths import leaves_by_path
from meta_opt.types import PyTree

_log = logging.getLogger(__name__)

_STATE, _HOST, _METRICS = "state", "host", "metrics"
_MANIFESTS, _DAMAGED = "manifests", "damaged"
_DESCRIPTION = "_CHECKPOINT_METADATA"
"""Orbax's metadata file of each checkpoint."""


class CheckpointMismatchError(ValueError):
    """The checkpoint is intact but holds another model or another optimizer."""


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; the message names the newest intact one."""


class Restored(NamedTuple):
    """What :meth:`Checkpoints.restore` returns."""

    step: int
    state: PyTree
    host: Any


class Checkpoints:
    """Saves and restores checkpoints in one directory.

    Opening the directory verifies what is in it. Damaged checkpoints are moved to
    ``damaged/`` with a warning; incomplete ones are removed.

    Args:
        directory: directory of the checkpoints, created if needed.
        keep_latest: number of newest checkpoints to keep; two or more provide a
            fallback.
        keep_best: number of best checkpoints by ``metric`` to keep in addition.
        mode: whether the best metric is the "min" or the "max".

    Raises:
        ValueError: if a count or the mode is out of range, or ``directory`` is a URL.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_latest: int = 2,
        keep_best: int = 1,
        mode: str = "min",
    ) -> None:
        if keep_latest < 1 or keep_best < 0:
            raise ValueError(
                f"keep_latest={keep_latest} must be at least 1 and "
                f"keep_best={keep_best} at least 0"
            )
        if mode not in ("min", "max"):
            raise ValueError(f"mode is 'min' or 'max', not {mode!r}")
        if url := re.match(r"[a-z0-9]+:/", str(directory)):
            raise ValueError(
                f"{directory}: checkpoints and logs go to a file system, not to "
                f"{url[0]}/; mount the bucket, and name the folder it is mounted on"
            )
        # Orbax takes a third of a second to import.
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

        self._ocp = ocp
        self._directory = Path(directory).absolute()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._sign = 1.0 if mode == "max" else -1.0
        self._saving_step: int | None = None
        if jax.process_index() == 0:
            self._set_damaged_aside()
            self._remove_damaged_descriptions()
        barrier()  # Other processes list checkpoints only after this.
        keep: list[Any] = [policy.LatestN(keep_latest)]
        if keep_best:
            keep.append(policy.BestN(get_metric_fn=self._score, n=keep_best))
        options = ocp.CheckpointManagerOptions(
            best_fn=self._score,
            preservation_policy=policy.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._write_manifest
            ),
        )
        self._manager = ocp.CheckpointManager(
            self._directory, item_names=(_STATE, _HOST), options=options
        )

    def steps(self) -> list[int]:
        """Returns the steps of the existing checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Returns the step with the best metric, or None if there is no metric."""
        metrics = {step: self._manager.metrics(step) for step in self.steps()}
        known = [step for step in metrics if (metrics[step] or {}).get("best")]
        return max(known, key=lambda step: self._score(metrics[step]), default=None)

    def save(
        self, step: int, state: PyTree, host: Any, *, metric: float | None = None
    ) -> None:
        """Saves a checkpoint; files are written asynchronously.

        The arrays are copied before this returns, so they may be donated.

        Args:
            step: step of the checkpoint; saving an existing step does nothing.
            state: pytree of arrays, possibly including typed PRNG keys.
            host: a JSON value.
            metric: metric for ``keep_best``; None ranks last.

        Raises:
            CheckpointWriteError: if this save or the previous one fails.
            TypeError: if ``host`` is not a JSON value.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        self._saving_step = step
        leaves = leaves_by_path(state)
        arrays = {key: leaf for key, leaf in leaves.items() if leaf.size}
        layout = {key: _describe(leaf) for key, leaf in leaves.items()}
        # A copy, since it is written later, when the caller's may have changed.
        host = plain_json(host)
        finite = metric is not None and math.isfinite(metric)
        with self._writing():
            self._manager.save(
                step,
                args=self._ocp.args.Composite(
                    state=self._ocp.args.PyTreeSave(arrays),
                    host=self._ocp.args.JsonSave({"layout": layout, "host": host}),
                ),
                metrics={"best": [metric] if finite else []},
            )

    def restore(self, template: PyTree, step: int | None = None) -> Restored | None:
        """Restores a checkpoint.

        An unreadable checkpoint is moved aside, and the previous one is used.

        Args:
            template: pytree of arrays or ``jax.ShapeDtypeStruct`` of the state; where
                a leaf has a sharding, the array is restored onto it.
            step: step to restore, without fallback; by default the newest.

        Returns:
            Step, state and host value; None if the directory has no checkpoint.

        Raises:
            CheckpointMismatchError: if the template has other leaves, shapes or dtypes
                than the checkpoint; names the first few.
            ValueError: if there is no checkpoint of ``step``.
        """
        self.wait()
        if step is not None and step not in self.steps():
            raise ValueError(f"no checkpoint of step {step}; available: {self.steps()}")
        for candidate in reversed(self.steps()) if step is None else [step]:
            restored, problem = None, "another process cannot read it"
            try:
                restored = self._restore(template, candidate)
            except CheckpointMismatchError:
                raise
            except Exception as error:
                if step is not None:
                    raise
                problem = f"{type(error).__name__}: {error}"
            if not any_process(restored is None):
                return restored
            if jax.process_index() == 0:
                self._set_aside(candidate, problem)
            barrier()  # Until it is gone.
            self._manager.reload()
        return None

    def _restore(self, template: PyTree, step: int) -> Restored:
        args = self._ocp.args
        # Host value first: it has the layout, and a mismatch must not count as damage.
        saved = self._manager.restore(
            step, args=args.Composite(host=args.JsonRestore())
        ).host
        leaves = leaves_by_path(template)
        _check_layout(saved["layout"], leaves, self._directory / str(step))
        wanted = {
            key: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)
            )
            for key, leaf in leaves.items()
            if leaf.size
        }
        arrays = self._manager.restore(
            step,
            args=args.Composite(
                state=args.PyTreeRestore(
                    item=wanted,
                    restore_args=self._ocp.checkpoint_utils.construct_restore_args(
                        wanted
                    ),
                )
            ),
        ).state
        restored = [
            arrays[key] if leaf.size else _empty(leaf) for key, leaf in leaves.items()
        ]
        state = jax.tree.unflatten(jax.tree.structure(template), restored)
        return Restored(step, state, saved["host"])

    def wait(self) -> None:
        """Blocks until the save in progress is committed.

        Raises:
            CheckpointWriteError: if it fails.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the save in progress and releases the threads.

        Raises:
            CheckpointWriteError: if the save fails.
        """
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Converts errors of a save to one that names step and folder."""
        try:
            yield
        except Exception as error:
            # Orbax and TensorStore raise many types, some of many lines, and have the
            # system's reason at their end.
            text = " ".join(str(error).split())
            code = re.search(r"os_error_code='(\d+)'", text)
            system = os.strerror(int(code[1])) if code else ""
            problem = system or text[:300] or type(error).__name__
            raise CheckpointWriteError(
                f"the checkpoint of step {self._saving_step} could not be written to "
                f"{self._directory} ({problem}); {_left(self._directory)}"
            ) from error

    def _score(self, metrics: Any) -> float:
        values = (metrics or {}).get("best")
        return self._sign * values[0] if values else -math.inf

    def _write_manifest(self) -> None:
        """Records the hashes of the checkpoint before it is committed."""
        step = self._saving_step
        if jax.process_index() != 0 or step is None:
            return
        # Until it is committed, the directory has its final name or a temporary one,
        # depending on the file system.
        folders = [
            folder
            for folder in self._directory.iterdir()
            if folder.name == str(step) or folder.name.startswith(f"{step}.")
        ]
        newest = max(folders, key=lambda folder: folder.stat().st_mtime_ns)
        manifests = self._directory / _MANIFESTS
        write_text(manifests / f"{step}.json", json.dumps(_hashes(newest)))
        for manifest in manifests.glob("[0-9]*.json"):
            if int(manifest.stem) not in {step, *self._manager.all_steps()}:
                manifest.unlink()

    def _set_damaged_aside(self) -> None:
        """Verifies every committed checkpoint against its manifest."""
        damaged = {}
        for step in _steps(self._directory):
            manifest = self._directory / _MANIFESTS / f"{step}.json"
            if not manifest.exists():
                continue  # Orbax decides whether it was committed.
            try:
                problem = _find_damage(self._directory / str(step), read_json(manifest))
            except ValueError as error:
                problem = str(error)
            if problem:
                damaged[step] = problem
        for step, problem in damaged.items():
            self._set_aside(step, problem, damaged)

    def _remove_damaged_descriptions(self) -> None:
        """Removes descriptions of checkpoints that Orbax would refuse to open.

        They hold the time of the commit and names of handlers; without one, a
        checkpoint is read all the same.
        """
        for step in _steps(self._directory):
            folder = self._directory / str(step)
            if not (folder / _DESCRIPTION).is_file():
                continue
            try:
                self._ocp.metadata.get_step_metadata(folder)
            except (ValueError, TypeError, RecursionError) as error:
                (folder / _DESCRIPTION).unlink()
                _log.warning(
                    "%s is damaged (%s); removed, since nothing needs it",
                    *(folder / _DESCRIPTION, str(error)[:200]),
                )

    def _set_aside(
        self, step: int, problem: str, damaged: Collection[int] = ()
    ) -> None:
        """Moves a damaged checkpoint aside and logs a warning."""
        target = self._directory / _DAMAGED / str(step)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        (self._directory / str(step)).rename(target)
        (self._directory / _MANIFESTS / f"{step}.json").unlink(missing_ok=True)
        _log.warning(
            "checkpoint %d of %s is damaged (%s) and moved to %s; %s",
            *(step, self._directory, problem, target),
            _left(self._directory, damaged),
        )


def _steps(directory: Path) -> list[int]:
    """Steps of the checkpoints that are there, ascending."""
    names = (folder.name for folder in directory.iterdir())
    return sorted(int(name) for name in names if name.isdigit())


def _left(directory: Path, damaged: Collection[int] = ()) -> str:
    """Describes which checkpoint a run can resume from."""
    steps = [step for step in _steps(directory) if step not in damaged]
    if not steps:
        return "there is no other one: the run starts from scratch"
    return f"the newest other one is of step {steps[-1]}, the steps after it are lost"


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _empty(leaf: Any) -> jax.Array:
    """Makes an array of no elements, which Orbax does not store."""
    array = jax.numpy.zeros(leaf.shape, leaf.dtype)
    sharding = getattr(leaf, "sharding", None)
    return array if sharding is None else jax.device_put(array, sharding)


def _check_layout(saved: dict[str, str], leaves: dict[str, Any], where: Path) -> None:
    """Compares the leaves of a checkpoint with those of the template."""
    wanted = {key: _describe(leaf) for key, leaf in leaves.items()}
    differences = [
        f"{key}: {saved.get(key, 'absent')} in the checkpoint, "
        f"{wanted.get(key, 'absent')} in this run"
        for key in [*saved, *(key for key in wanted if key not in saved)]
        if saved.get(key) != wanted.get(key)
    ]
    if differences:
        shown = first_few(differences, separator="; ")
        raise CheckpointMismatchError(
            f"{where} holds another model or optimizer; {len(differences)} of "
            f"{len(wanted)} leaves differ: {shown}. Use the settings it was made with, "
            "or another directory"
        )


def _hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of the files under a checkpoint's items."""
    hashes = {}
    for item in (_STATE, _HOST, _METRICS):
        for path in sorted((folder / item).rglob("*")):
            if path.is_file():
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                hashes[path.relative_to(folder).as_posix()] = digest
    return hashes


def _find_damage(folder: Path, expected: dict[str, str]) -> str | None:
    """Returns what is wrong with a checkpoint's files, or None."""
    found = _hashes(folder)
    for name, digest in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != digest:
            return f"{name} has other contents than were written"
    return None
