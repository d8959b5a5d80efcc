"""The command line: a user's mistake ends a command with one line."""

import pytest
from commands import run_command

from experiments.cli import names_containing


def finetune(tmp_path, *arguments, **environment):
    settings = ("--config=configs/finetune.py:smoke", f"--workdir={tmp_path / 'run'}")
    return run_command("finetune", *settings, *arguments, **environment)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (
            ["--config.pipeline.txt_length=None"],
            {},
            "finetune: config.pipeline has no setting 'txt_length'; did you mean "
            "'text_length'?",
        ),
        (
            ["--config.xyz.abc=1"],
            {},
            "finetune: config has no setting 'xyz' (settings: ",
        ),
        (
            ["--config.balancing.methd=pcgrad"],
            {},
            "finetune: config.balancing has no setting 'methd'; did you mean 'method'?",
        ),
        (["--config.xyz=1"], {}, "finetune: config has no setting 'xyz' (settings: "),
        (
            ["--config.pipeline.text_length=0.5"],
            {},
            "finetune: config.pipeline.text_length=0.5 must be int or None",
        ),
        (
            ["--config.data.prompt=12"],
            {},
            "finetune: config.data.prompt=12 must be a string, in quotes: '\"12\"'",
        ),
        (["--config.seed=x"], {}, "finetune: flag --config.seed=x: invalid literal"),
        (
            ["--config.pipeline=x"],
            {},
            "finetune: --config.pipeline is a section; set one of its settings",
        ),
        (
            ["--config=configs/finetune.py:smok"],
            {},
            "finetune: flag --config=configs/f",
        ),
        (["--config=configs/no.py"], {}, "finetune: --config: [Errno 2] No such file"),
        (["--wrkdir=3"], {}, "finetune: no flag --wrkdir; did you mean 'workdir'?"),
        (
            ["--config.loop.num_steps=3"],
            {},
            "finetune: config.loop.num_steps: give config.num_steps instead",
        ),
        (
            # None is taken; the batch is what is wrong.
            ["--config.pipeline.text_length=None", "--config.batch_size=4096"],
            {},
            "finetune: a batch of 4096 needs as many records and the source has 1546: "
            "lower batch_size or use a larger split",
        ),
        (
            [],
            {"JAX_PLATFORMS": "cuda"},
            "finetune: JAX finds no device for JAX_PLATFORMS='cuda'",
        ),
    ],
    ids=[
        *("misspelt", "section", "in_new_section", "unknown", "type", "text", "number"),
        *("whole_section", "variant", "file", "flag", "root", "batch", "platform"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, environment, message):
    finished = finetune(tmp_path, *arguments, **environment)
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1].startswith(message), finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_benchmark_that_there_is_not_is_named():
    finished = run_command("benchmark", "--only=steps")
    assert finished.returncode == 1
    message = "benchmark: --only: unknown benchmark 'steps'; did you mean 'step'?"
    assert finished.stderr.splitlines()[-1].startswith(message), finished.stderr


def test_a_part_of_a_name_chooses_and_a_typo_is_named():
    names = ["foreign/a", "table1/b"]
    assert names_containing(names, ["table1"]) == {"table1/b"}
    assert names_containing(names, ["a", "b"]) == names_containing(names, [])
    assert names_containing(iter(names), []) == set(names)
    with pytest.raises(ValueError, match="--only=tabel: none of 2 names"):
        names_containing(names, ["table1", "tabel"])


def test_a_typo_in_only_measures_nothing(tmp_path):
    folder = f"--config.results={tmp_path}"
    finished = run_command("load", "--config=configs/load.py:smoke", folder, "--only=x")
    assert finished.returncode == 1
    assert finished.stderr.startswith("load: --only=x: none of")
    assert not list(tmp_path.iterdir())
