"""A process with all imports done, which forks a command for each request.

    python -m experiments.fault_trials.starter

Importing takes longer than a tiny run, and a kill during the imports tests nothing.
Each request is a line of JSON on stdin and is answered by one on stdout, see `main`.
`experiments.fault_trials.commands` starts this process.
"""

import importlib
import json
import os
import resource
import runpy
import sys
import time
from typing import Any

_PRELOADED = (
    *("jax", "flax.nnx", "optax", "orbax.checkpoint", "grain", "tensorboardX"),
    *("optuna", "sqlalchemy", "sqlite3", "matplotlib.pyplot", "safetensors.numpy"),
    *("tokenizers", "PIL.Image", "cmaes", "ml_collections.config_flags", "tqdm"),
    *("meta_opt.finetuning.runs", "meta_opt.finetuning.trial"),
    *("meta_opt.workloads.image_text", "meta_opt.workloads.multimodal"),
    *("meta_opt.workloads.video_text", "meta_opt.studies.progressive.phases"),
    *("meta_opt.studies.progressive.report", "meta_opt.reporting.decisions"),
    *("meta_opt.meta_training.outer_loop", "meta_opt.meta_training.direct_search"),
    *("meta_opt.tasks.families", "meta_opt.tuning.search", "meta_opt.tuning.injected"),
    *("orbax.checkpoint.checkpoint_managers", "sklearn.datasets"),
)
"""Modules to import before forking. None of them may initialise JAX's backend, which
does not survive a fork."""


def main() -> dict[str, Any] | None:
    """Answers requests until stdin ends.

    ``{"module": ..., "arguments": [...], "output": PATH, "limits": {...}, "clock":
    ...}`` forks a command and answers ``{"pid": ...}``; ``{"poll": PID}`` answers
    ``{"code": ...}``: the exit code as in `subprocess.Popen`, negative for a signal, or
    null while the command is running.

    Returns:
        In a forked process, its request; in this process, None at the end of stdin.
    """
    for name in _PRELOADED:
        importlib.import_module(name)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if pid else None
            print(json.dumps({"code": code}), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            return request
        print(json.dumps({"pid": pid}), flush=True)
    return None


def become(request: dict[str, Any]) -> None:
    """Runs the command of a request as if Python had been started with it."""
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(request.get("environment", {}))
    for name, value in request.get("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if request.get("clock"):
        _set_back(request["clock"])
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _set_back(seconds: float) -> None:
    """Makes the wall clock of this process go back each time it is read.

    It goes back by ``seconds`` per reading, which is worse than any real correction.
    """
    start, looks = time.time(), 0

    def looked() -> float:
        nonlocal looks
        looks += 1
        return start - seconds * looks

    time.time = looked
    time.time_ns = lambda: int(looked() * 1e9)


if __name__ == "__main__":
    wanted = main()
    if wanted is not None:
        become(wanted)
