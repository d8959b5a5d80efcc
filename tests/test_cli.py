"""The command line: a user's mistake ends a command with one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def finetune(tmp_path, *arguments, **environment):
    return subprocess.run(
        [
            *(sys.executable, "-m", "experiments.finetune"),
            "--config=configs/finetune.py:smoke",
            f"--workdir={tmp_path / 'run'}",
            *arguments,
        ],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (
            ["--config.pipeline.txt_length=None"],
            {},
            "finetune: --config.pipeline.txt_length=None: no setting 'txt_length'; did "
            "you mean 'text_length'?",
        ),
        (
            # None is taken; the batch is what is wrong.
            ["--config.pipeline.text_length=None", "--config.loop.batch_size=4096"],
            {},
            "finetune: a batch of 4096 needs as many records and the source has 1546: "
            "lower batch_size or take a larger split",
        ),
        (
            [],
            {"JAX_PLATFORMS": "cuda"},
            "start-up: JAX finds no device for JAX_PLATFORMS='cuda'",
        ),
    ],
    ids=["misspelt", "batch", "platform"],
)
def test_a_mistake_is_one_line(tmp_path, arguments, environment, message):
    finished = finetune(tmp_path, *arguments, **environment)
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1].startswith(message), finished.stderr
    assert "Traceback" not in finished.stderr
