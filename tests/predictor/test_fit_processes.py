"""Several processes fit one model, and are resumed after one of them was killed."""

import json
import signal

import numpy as np
import pytest
from own_data import write_folder
from own_data import write_pictures as write_captioned
from predictor_toy import write_samples
from several_processes import finish, free_port, start

PROGRAM = "tests/fixtures/predictor_program.py"


def run(samples, workdir, count, *arguments, extra=None):
    """The program in so many processes on two devices; (code, stdout, stderr)."""
    others = ("--coordinator", f"localhost:{free_port()}", "--processes", str(count))
    return finish(
        [
            start(
                (
                    PROGRAM,
                    str(samples),
                    str(workdir),
                    *arguments,
                    *((*others, "--process", str(i)) if count > 1 else ()),
                    *(extra or {}).get(i, ()),
                ),
                2 // count,
                PYTHONPATH="tests/fixtures:.",
            )
            for i in range(count)
        ]
    )


def probabilities(ended):
    for code, _, errors in ended:
        assert code == 0, errors
    return [np.array(json.loads(out.splitlines()[-1])) for _, out, _ in ended]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("samples"))


@pytest.mark.slow
def test_two_processes_fit_what_one_fits(samples, tmp_path):
    """To rounding of Gloo's sums, which grows over the steps."""
    first, second = probabilities(run(samples, tmp_path / "two", 2, "--steps=24"))
    np.testing.assert_array_equal(first, second)
    (one,) = probabilities(run(samples, tmp_path / "one", 1, "--steps=24"))
    np.testing.assert_allclose(first, one, atol=2e-3)
    (again,) = probabilities(run(samples, tmp_path / "two", 1, "--steps=24"))
    np.testing.assert_array_equal(again, first)  # A finished one is loaded.


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_killed_process_is_named_and_both_resume_to_the_same_bits(
    samples, tmp_path, who
):
    whole, _ = probabilities(run(samples, tmp_path / "whole", 2))
    killed = {who: ("--kill-at=40",)}
    ended = run(samples, tmp_path / "killed", 2, extra=killed)
    assert ended[who][0] == -signal.SIGKILL
    code, _, errors = ended[1 - who]
    assert code != 0 and f"process {who} of 2 " in errors
    first, second = probabilities(run(samples, tmp_path / "killed", 2))
    np.testing.assert_array_equal(first, whole)
    np.testing.assert_array_equal(second, whole)


@pytest.mark.slow
def test_a_time_limit_gives_all_the_same_number_of_steps(samples, tmp_path):
    """Also where the clock of one of them runs three times as fast."""
    limit = "--time-limit=120"
    hurried = {1: ("--hurry=3",)}
    ended = run(samples, tmp_path, 2, "--steps=100000", limit, extra=hurried)
    first, second = probabilities(ended)
    np.testing.assert_array_equal(first, second)
    steps = json.loads((tmp_path / "fit.json").read_text())["decided"]["length"]
    assert 20 <= steps["value"]["num_steps"] < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("what", ["data", "data, no workdir", "workdir"])
def test_processes_that_differ_are_told(samples, tmp_path, what):
    other = samples
    if what.startswith("data"):
        other = write_samples(tmp_path / "other", each=10)
    workdirs = [str(tmp_path / "work")] * 2
    if what.endswith("workdir"):
        workdirs = ["", "" if what.startswith("data") else workdirs[1]]
    address = f"localhost:{free_port()}"
    ended = finish(
        [
            start(
                (
                    *(PROGRAM, str(data), workdir),
                    *("--coordinator", address, "--processes=2", f"--process={i}"),
                ),
                1,
                PYTHONPATH="tests/fixtures:.",
            )
            for i, (data, workdir) in enumerate(
                zip((samples, other), workdirs, strict=True)
            )
        ]
    )
    for code, _, errors in ended:
        assert code == 1
        assert "the 2 processes have different arguments or data" in errors


@pytest.mark.slow
def test_the_command_fits_a_model_of_the_users_in_two_processes(tmp_path):
    siglip = write_folder(tmp_path / "siglip")
    pairs = write_captioned(tmp_path / "pictures")
    address = f"localhost:{free_port()}"
    out = tmp_path / "tuned"
    ended = finish(
        [
            start(
                (
                    *("-m", "meta_opt.predictor.command", "fit", str(pairs)),
                    *("--model", str(siglip), "--preset", "fast", "--out", str(out)),
                    *("--workdir", str(tmp_path / "work"), "--coordinator", address),
                    *("--processes", "2", "--process", str(i)),
                ),
                1,
            )
            for i in range(2)
        ]
    )
    for code, _, errors in ended:
        assert code == 0, errors
    # The plan is there before anything is compiled; the first process says it.
    errors = ended[0][2]
    assert errors.index("num_steps = ") < errors.index("compiling the step")
    assert "num_steps = " not in ended[1][2]
    assert f"written: {out}" in ended[0][1] and "devices = 2" in errors
    assert errors.index("compiling the step") < errors.index("best_step = ")
    assert "written" not in ended[1][1] and "devices" not in ended[1][1]
    predict = start(("-m", "meta_opt.predictor.command", "evaluate", out, pairs), 1)
    ((code, printed, errors),) = finish([predict])
    assert code == 0, errors
    assert json.loads(printed)["examples"] == 40
