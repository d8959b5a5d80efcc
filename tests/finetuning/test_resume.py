"""A run that is killed or interrupted ends in the same bits as one that is not."""

import dataclasses
import logging
import os
import pickle
import random
import signal

import jax
import jax.numpy as jnp
import pytest
from commands import run_program
from finetuning_toy import CONFIG, SignallingBatches, digest, make_batches, make_data
from finetuning_toy import train as toy_train
from paths import FIXTURES

from meta_opt.interruption import Interrupted
from meta_opt.run_log import read_records

PROGRAM = FIXTURES / "finetuning_toy.py"


# Every run compiles the same step; once is enough.
CACHE = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="module", autouse=True)
def compilation_cache(tmp_path_factory):
    from jax.experimental.compilation_cache import compilation_cache

    folder = str(tmp_path_factory.mktemp("compiled"))
    before = {name: getattr(jax.config, name) for name in CACHE}
    CACHE["jax_compilation_cache_dir"] = folder
    for name, value in CACHE.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def run_toy(workdir, *args):
    cache = {name.upper(): str(value) for name, value in CACHE.items()}
    return run_program(PROGRAM, workdir, *args, seconds=120, **cache)


def outcome(workdir):
    return (
        (workdir / "params.sha256").read_text(),
        (workdir / "metrics.jsonl").read_bytes(),
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    finished = run_toy(workdir)
    assert finished.returncode == 0, finished.stderr
    return outcome(workdir)


@pytest.mark.parametrize(
    "trial", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 8))]
)
def test_kill_9_then_resume_ends_in_the_same_bits(tmp_path, unbroken, trial):
    chance = random.Random(trial)
    at, delay = chance.randint(14, 29), chance.choice([0.0, 0.02])
    killed = run_toy(
        tmp_path, "--signal", "SIGKILL", "--at", str(at), "--delay", str(delay)
    )
    assert killed.returncode == -signal.SIGKILL, (at, delay, killed.stderr)
    assert not (tmp_path / "params.sha256").exists()
    resumed = run_toy(tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming" in resumed.stderr
    assert outcome(tmp_path) == unbroken, (at, delay)


def test_sigterm_saves_exits_non_zero_and_resumes_exactly(tmp_path, unbroken):
    stopped = run_toy(tmp_path, "--signal", "SIGTERM", "--at", "11")
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert "SIGTERM" in stopped.stderr
    resumed = run_toy(tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "from step 11" in resumed.stderr
    assert outcome(tmp_path) == unbroken


@pytest.fixture(scope="module")
def unbroken_here(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    result = toy_train(workdir)
    return digest(result.state.params), (workdir / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    "at",
    [
        6,
        *(
            pytest.param(at, marks=pytest.mark.slow)
            for at in (1, 7, 8, CONFIG.num_steps)
        ),
    ],
)
def test_sigint_in_process(tmp_path, unbroken_here, at):
    batches = make_batches(make_data(), CONFIG.batch_size)
    batches = SignallingBatches(batches, signal.SIGINT, at)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=f"SIGINT at step {at}") as interrupted:
        toy_train(tmp_path, batches=batches)
    assert interrupted.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    result = toy_train(tmp_path)
    found = digest(result.state.params), (tmp_path / "metrics.jsonl").read_bytes()
    assert found == unbroken_here
    assert result.history == read_records(tmp_path / "metrics.jsonl")


def test_damaged_newest_checkpoint_resumes_from_the_one_before(
    tmp_path, unbroken_here, caplog
):
    with pytest.raises(Interrupted):
        batches = make_batches(make_data(), CONFIG.batch_size)
        toy_train(tmp_path, batches=SignallingBatches(batches, signal.SIGINT, 20))
    data = tmp_path / "checkpoints" / "20" / "state"
    largest = max(data.rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    os.truncate(largest, largest.stat().st_size // 2)
    caplog.set_level(logging.INFO)
    result = toy_train(tmp_path)
    assert "checkpoint 20" in caplog.text and "damaged" in caplog.text
    assert "from step 18" in caplog.text
    found = digest(result.state.params), (tmp_path / "metrics.jsonl").read_bytes()
    assert found == unbroken_here


def test_finished_run_is_not_run_again(tmp_path):
    first = toy_train(tmp_path)
    again = toy_train(tmp_path, evaluate=None)
    assert digest(again.state.params) == digest(first.state.params)
    assert again.history == first.history
    assert again.train_seconds == first.train_seconds


def test_resume_under_other_settings_is_an_error(tmp_path):
    toy_train(tmp_path, resolved_config={"optimizer": {"learning_rate": 1e-3}})
    with pytest.raises(ValueError, match=r"optimizer.learning_rate: 0.001 -> 0.1"):
        toy_train(tmp_path, resolved_config={"optimizer": {"learning_rate": 0.1}})


def test_settings_that_do_not_alter_the_result_may_change(tmp_path, unbroken_here):
    def settings(config):
        return {"loop": dataclasses.asdict(config)}

    batches = make_batches(make_data(), CONFIG.batch_size)
    batches = SignallingBatches(batches, signal.SIGTERM, 15)
    with pytest.raises(Interrupted):
        toy_train(tmp_path, batches=batches, resolved_config=settings(CONFIG))
    changed = dataclasses.replace(
        CONFIG, log_every=6, checkpoint_every=10, keep_latest=1, keep_best=0
    )
    for other in ({"seed": 4}, {"eval_every": 6}):
        config = dataclasses.replace(changed, **other)
        name = next(iter(other))
        with pytest.raises(ValueError, match=rf"other settings \(loop.{name}: [^;]*\)"):
            toy_train(tmp_path, config, resolved_config=settings(config))
    result = toy_train(tmp_path, changed, resolved_config=settings(changed))
    assert digest(result.state.params) == unbroken_here[0]


def test_resume_with_other_frozen_parameters_is_an_error(tmp_path):
    toy_train(tmp_path)
    with pytest.raises(ValueError, match="other frozen parameters"):
        toy_train(tmp_path, frozen={"noise": jnp.float32(0.2)})


def test_an_interruption_passes_from_process_to_process():
    found = pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM, 7)))
    assert (found.signum, found.step, found.exit_code) == (15, 7, 143)
    assert str(found) == "SIGTERM at step 7"
