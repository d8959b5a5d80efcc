"""The command line: a user's mistake ends a command with one line."""

import pytest
from commands import run_command


def finetune(tmp_path, *arguments, **environment):
    settings = ("--config=configs/finetune.py:smoke", f"--workdir={tmp_path / 'run'}")
    return run_command("finetune", *settings, *arguments, **environment)


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
