"""Log files of a run: metrics, resolved configuration, environment.

Layout of a run's directory:

- ``metrics.jsonl``: one JSON object per line, ``{"step": 10, "train/loss": ...}``. Only
  values that a rerun reproduces, so that an interrupted and resumed run leaves the same
  bytes as an unbroken one.
- ``timing.jsonl``: the same for timings.
- ``actions.jsonl``: recovery actions, ``{"step": 10, "action": "roll back",
  "reason": ...}``.
- ``tensorboard/``: metrics and timings, as TensorBoard scalars.
- ``ledger.json``: cost of training and test, one entry per start
  (`meta_opt.finetuning.ledger`).
- ``config.json``: the resolved configuration.
- ``environment.json``: a list with one entry per start: git revision, versions,
  devices.
"""

import hashlib
import json
import logging
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from meta_opt.scalar_events import ScalarEvents
from meta_opt.text_files import (
    parse_json,
    read_json,
    read_json_value,
    write_json,
    write_text,
)

_log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
ACTIONS = "actions.jsonl"
_PACKAGES = ("meta-opt", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


class RunLog:
    """Appends the metrics of a run to files and keeps them in memory.

    Args:
        workdir: the run's directory, created if needed; None keeps everything in
            memory only.
        resume_step: step that the run resumes from. Lines of later steps, and an
            incomplete last line, are dropped; None starts a new log.

    Attributes:
        history: the records of ``metrics.jsonl``, those before a resume included.
        timing: the records of ``timing.jsonl``, those before a resume included.
        actions: the records of ``actions.jsonl``, those before a resume included.
    """

    def __init__(
        self, workdir: str | Path | None, *, resume_step: int | None = None
    ) -> None:
        import jax

        self.history: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []
        self.actions: list[dict[str, Any]] = []
        self._files: dict[str, Any] = {}
        self._tensorboard: ScalarEvents | None = None
        self._workdir = None if workdir is None else Path(workdir)
        if self._workdir is None:
            return
        if resume_step is not None:
            self.history = _up_to(self._workdir / METRICS, resume_step)
            self.timing = _up_to(self._workdir / TIMING, resume_step)
            self.actions = _up_to(self._workdir / ACTIONS, resume_step)
        if jax.process_index() != 0:
            return
        for name, records in (
            (METRICS, self.history),
            (TIMING, self.timing),
            (ACTIONS, self.actions),
        ):
            path = self._workdir / name
            write_text(path, "".join(map(_line, records)))
            self._files[name] = open(path, "a", encoding="utf-8")
        first_step = 0 if resume_step is None else resume_step + 1
        self._tensorboard = ScalarEvents(self._workdir / "tensorboard", first_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records reproducible metrics (losses, scores, counts) of a step."""
        self._append(METRICS, self.history, step, metrics)

    def write_timing(self, step: int, seconds: Mapping[str, float]) -> None:
        """Records measurements of the machine (seconds, steps per second) at a step."""
        self._append(TIMING, self.timing, step, seconds)

    def write_action(self, step: int, action: str, reason: str) -> None:
        """Records a recovery action at a step, and its reason."""
        record = {"step": step, "action": action, "reason": reason}
        self.actions.append(record)
        if ACTIONS in self._files:
            self._files[ACTIONS].write(_line(record))
            self._files[ACTIONS].flush()

    def _append(
        self,
        name: str,
        records: list[dict[str, Any]],
        step: int,
        values: Mapping[str, float],
    ) -> None:
        record = {"step": step, **{key: float(v) for key, v in values.items()}}
        records.append(record)
        if name in self._files:
            self._files[name].write(_line(record))
            self._files[name].flush()
        if self._tensorboard is not None:
            self._tensorboard.write(step, values)

    def close(self) -> None:
        """Flushes and closes the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Reads a ``.jsonl`` file of a run.

    Args:
        path: ``metrics.jsonl`` or ``timing.jsonl``.

    Returns:
        The records in order; null (a non-finite value) becomes NaN. An incomplete last
        line is skipped.

    Raises:
        ValueError: if another line is not JSON or has no step; the message names it.
    """
    *complete, torn = Path(path).read_bytes().split(b"\n")
    if torn:
        _log.warning("%s: the last line is incomplete and left out", path)
    records = []
    for number, line in enumerate(complete, start=1):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        step = record.get("step") if isinstance(record, dict) else None
        if not isinstance(step, int):
            raise ValueError(
                f"{path}, line {number}: not an object with an integer `step`"
            )
        records.append({k: math.nan if v is None else v for k, v in record.items()})
    return records


def _up_to(path: Path, step: int) -> list[dict[str, Any]]:
    """Returns the records of a file up to and including ``step``."""
    if not path.exists():
        return []
    return [record for record in read_records(path) if record["step"] <= step]


def _line(record: Mapping[str, Any]) -> str:
    """Formats a record; non-finite values become null, as JSON has none."""
    finite = {
        key: None if isinstance(v, float) and not math.isfinite(v) else v
        for key, v in record.items()
    }
    return json.dumps(finite) + "\n"


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A hash of settings, 16 hexadecimal digits, independent of the order of keys.

    Args:
        settings: nested mapping of JSON values; other values are converted to text.

    >>> settings_digest({"a": 1, "b": 2}) == settings_digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changed_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], may_change: Sequence[str] = ()
) -> list[str]:
    """Lists settings that differ, with both values.

    Args:
        before: nested mapping of JSON values.
        now: another.
        may_change: settings or sections that are not compared.

    >>> changed_settings({"loop": {"seed": 0}}, {"loop": {"seed": 1}, "mesh": 2})
    ['loop.seed: 0 -> 1', 'mesh: (absent) -> 2']
    >>> changed_settings({"loop": {"seed": 0}, "mesh": 1}, {}, ("loop.seed", "mesh"))
    []
    """
    old, new, nothing = _flatten(before), _flatten(now), object()
    return [
        f"{key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, nothing) != new.get(key, nothing)
        and not any(key == one or key.startswith(f"{one}.") for one in may_change)
    ]


def write_config(
    workdir: str | Path,
    config: Mapping[str, Any],
    *,
    resuming: bool,
    may_change: Sequence[str] = (),
) -> None:
    """Writes the resolved configuration, or checks on resume that it is the same.

    In multi-process runs process 0 writes.

    Args:
        workdir: the run's directory.
        config: nested mapping of JSON values.
        resuming: whether the directory holds a checkpoint that the run resumes from.
        may_change: settings, such as ``loop.log_every``, and sections that may differ
            on resume. The file keeps their original values.

    Raises:
        ValueError: if settings have changed since the start; the message has both
            values.
    """
    import jax

    path = Path(workdir) / "config.json"
    text = json.dumps(config, indent=2, sort_keys=True, default=str)
    if resuming and path.exists():
        before = read_json(path)
        if changed := changed_settings(before, json.loads(text), may_change):
            raise ValueError(
                f"{workdir} holds a run with other settings ({'; '.join(changed)}); "
                "restore these settings to resume, or use another --workdir"
            )
        return
    if jax.process_index() != 0:
        return
    write_text(path, text + "\n")


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings to dotted keys."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def describe_environment() -> dict[str, Any]:
    """Git revision (None outside a checkout), versions, machine and XLA's flags."""
    import jax

    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "git": _git_revision(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": versions,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
    }


def _processor() -> str:
    """The processor's model as reported by Linux, otherwise by Python."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def write_environment(workdir: str | Path, step: int) -> None:
    """Adds an entry for this start of the run, at ``step``, to environment.json."""
    path = Path(workdir) / "environment.json"
    starts = read_starts(workdir)
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    starts.append({"step": step, "started": started, **describe_environment()})
    write_json(path, starts)


def read_starts(workdir: str | Path) -> list[dict[str, Any]]:
    """The entries of a run's environment.json; empty if there is no file.

    Raises:
        ValueError: a damaged file; the message names it.
    """
    path = Path(workdir) / "environment.json"
    starts = read_json_value(path) if path.exists() else []
    if not isinstance(starts, list) or not all(isinstance(x, dict) for x in starts):
        raise ValueError(f"{path} is damaged: it has no list of JSON objects")
    return starts


def _git_revision(folder: Path) -> str | None:
    """Returns the commit of a checkout, '+' appended if files differ, or None."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        return revision + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def progress_bar(
    total: int, *, start: int = 0, label: str = "", show: bool = True
) -> Any:
    """Returns a tqdm bar on stderr, disabled if stderr is not a terminal.

    Args:
        total: number of steps of the whole run.
        start: step that a resumed run continues from.
        label: text before the bar.
        show: whether to show the bar.
    """
    from tqdm import tqdm

    # With None, tqdm detects whether stderr is a terminal.
    quiet = None if show else True
    return tqdm(total=total, initial=start, desc=label, disable=quiet, unit="step")
