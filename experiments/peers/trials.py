"""Runs one library on one task, in a separate process that is measured."""

import ast
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.stored_results import StoredResult
from meta_opt.metrics.classification import classification_metrics
from meta_opt.text_files import read_json_value
from meta_opt.types import check_name

SCRIPTS = (
    *("with_meta_opt", "with_autogluon", "with_trainer"),
    *("images_with_autogluon", "images_with_trainer"),
)
_OURS = "with_meta_opt"
_PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "lightning", "timm"),
    *("autogluon.multimodal", "jax", "optax", "flax"),
)
_VERSIONS = """
import importlib.metadata as found, json, sys
installed = {p.metadata["Name"].lower(): p.version for p in found.distributions()}
print(json.dumps({name: installed[name] for name in sys.argv[1:] if name in installed}))
"""


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library with a setting.

    Attributes:
        name: name in the table.
        script: name of a script in this folder, without suffix.
        setting: fourth argument of the script.
    """

    name: str
    script: str
    setting: str

    def __post_init__(self) -> None:
        """Checks the script's name."""
        check_name("config.peers.script", self.script, SCRIPTS)

    @property
    def path(self) -> Path:
        """Path of the script."""
        return Path(__file__).parent / f"{self.script}.py"


@dataclasses.dataclass(frozen=True, eq=False)
class PeerCell(StoredResult):
    """A run of a library on a task with one seed, and its stored result."""

    task: str
    peer: Peer
    seed: int

    @property
    def name(self) -> str:
        """Name for progress bars and messages."""
        return f"{self.task}, {self.peer.name}, seed {self.seed}"


def peer_cells(config: Mapping[str, Any], peers: Sequence[Peer]) -> list[PeerCell]:
    """Returns all cells; those with the first seed come first."""
    found = []
    for seed in config["seeds"]:
        for task, counts in config["tasks"].items():
            for peer in peers:
                file = f"{peer.script}-{peer.setting}-{seed}.json"
                setup = {
                    "task": [task, *counts],
                    "peer": [peer.script, peer.setting],
                    "seed": seed,
                }
                path = Path(config["results"]) / task / file
                found.append(PeerCell(path, setup, task, peer, seed))
    return found


def run_peer(
    cell: PeerCell,
    python: str,
    folder: Path,
    scratch: Path,
    labels: Sequence[str],
    data_dir: Path,
) -> dict[str, Any]:
    """Runs a script in an empty folder and evaluates its predictions.

    Args:
        cell: the cell.
        python: Python of the peers' environment; `meta_opt` runs in the current one.
        folder: folder of the task's files.
        scratch: working folder of the script, which is emptied first.
        labels: correct classes of the test split.
        data_dir: folder of the data that `meta_opt.data.prepare` wrote.

    Returns:
        ``test`` metrics; ``seconds`` and ``processor_seconds`` of the whole process;
        its ``peak_mib``; and the ``versions`` of the packages.

    Raises:
        FileNotFoundError: the peers' environment does not exist.
        RuntimeError: the script failed; the message has the end of its log.
    """
    python = (
        sys.executable if cell.peer.script == _OURS else str(Path(python).absolute())
    )
    if not Path(python).is_file():
        raise FileNotFoundError(
            f"{python} does not exist: make the environment of "
            "experiments/peers/requirements.txt, or set --config.python"
        )
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    out, log = scratch / "predictions.json", scratch / "log.txt"
    command = [python, str(cell.peer.path), str(folder), str(cell.seed), str(out)]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        # Compilation is part of the measured time, so each run has an empty cache.
        "META_OPT_CACHE_DIR": str(scratch / "compiled"),
        "META_OPT_DATA_DIR": str(data_dir.absolute()),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    start = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, cell.peer.setting],
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not out.is_file():
        end = log.read_text("utf-8", "replace")[-2000:]
        raise RuntimeError(
            f"{cell.name}: exit code {process.returncode}; {log}:\n{end}"
        )
    predictions = [str(x) for x in read_json_value(out)]
    _, codes = np.unique([*labels, *predictions], return_inverse=True)
    found = classification_metrics(codes[: len(labels)], codes[len(labels) :])
    shutil.rmtree(scratch)
    return {
        "test": found,
        "seconds": round(seconds, 2),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_mib": round(used.ru_maxrss / 1024),
        "versions": _versions(python),
    }


def user_lines(peer: Peer) -> int:
    """Counts lines of the script's ``predict`` without blank lines and docstrings."""
    source = peer.path.read_text(encoding="utf-8")
    (function,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "predict"
    )
    first = function.body[1].lineno
    lines = source.splitlines()[first - 1 : function.end_lineno]
    return sum(bool(line.strip()) for line in lines)


def _versions(python: str) -> dict[str, str]:
    """Returns the versions of the relevant packages in an environment."""
    printed = subprocess.run(
        [python, "-c", _VERSIONS, *_PACKAGES], check=True, capture_output=True
    )
    return json.loads(printed.stdout)
