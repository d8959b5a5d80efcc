"""A call that is cut off and repeated gives what it would have given."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_data import write_folder
from own_data import write_pictures as write_captioned
from paths import FIXTURES, ROOT
from predictor_toy import NAMES, SMALL, write_samples

import meta_opt
from meta_opt.data.array_batches import array_batches
from meta_opt.predictor.call_record import CallRecord, fingerprint
from meta_opt.predictor.evaluations import Evaluations
from meta_opt.predictor.fitting import Clock, FitCall
from meta_opt.predictor.plan import TrainingPlan, loop_of
from meta_opt.predictor.presets import Preset
from meta_opt.predictor.table import read_table
from meta_opt.predictor.training import train
from meta_opt.workloads.workload import Workload

PRESET = Preset(1, (1, 100), 32, 8, 1.0, evaluations=6, patience=3, snapshots=3)


class Killed(BaseException):
    """What stands for the end of the process."""


def workload(dies_at=None):
    """A regression, and its evaluations so far; it dies at one of them."""
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    data = {"x": x, "y": x @ np.float32([1.0, -2.0])}
    shown = []

    def loss_fn(params, frozen, batch, rng):
        return jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2), {}

    def evaluate(params, frozen, split):
        shown.append(params)
        if len(shown) == dies_at:
            raise Killed
        return {"loss": float(loss_fn(params, frozen, data, None)[0])}

    def batches(batch_size, seed=0, rows=None):
        return array_batches(data, batch_size, seed, rows)

    made = Workload(
        {"w": jnp.zeros(2)},
        loss_fn,
        batches,
        evaluate=evaluate,
        describe=lambda: {"examples": {"train": 64}},
    )
    return made, shown


def trained(workdir, dies_at=None, mode="min", clock=None):
    made, shown = workload(dies_at)
    plan = TrainingPlan(loop_of(24, 8, PRESET, 0), "loss", mode)
    record = CallRecord(workdir, {}, {})
    call = FitCall(PRESET, clock or Clock(), workdir / "run", False, record)
    return train(made, plan, call), shown


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert one.validation == other.validation
    assert one.decisions == other.decisions
    assert one.result.history == other.result.history


@pytest.mark.parametrize(
    "mode, deaths",
    [
        ("min", [4]),
        pytest.param("min", [1, 2, 5, -1], marks=pytest.mark.slow),
        # The larger loss is better, so that the run ends early; -1 is the evaluation of
        # an average, after the run.
        pytest.param("max", [3, -1], marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_cut_off_goes_on(tmp_path, mode, deaths):
    whole, shown = trained(tmp_path / "whole", mode=mode)
    for death in deaths:
        workdir = tmp_path / f"killed-{death}"
        with pytest.raises(Killed):
            trained(workdir, death % (len(shown) + 1), mode)
        again, _ = trained(workdir, mode=mode)
        same(again, whole)
    stopped = "stopped_at" in {one.name for one in again.decisions}
    assert stopped == (mode == "max")


@pytest.mark.slow
def test_the_length_that_was_measured_stays(tmp_path):
    with pytest.raises(Killed):
        # The third evaluation is after the steps that are timed.
        trained(tmp_path, dies_at=4, clock=Clock(500.0))
    again, _ = trained(tmp_path, clock=Clock(1e-3 + 1e6))
    steps = next(x for x in again.decisions if x.name == "num_steps_in_time")
    assert "of 500 s" in steps.reason and steps.value == int(again.result.state.step)


def test_damaged_snapshots_are_named(tmp_path):
    evaluations = Evaluations(1, "loss", "min", {"w": 0}, tmp_path)
    evaluations.show(3, {"w": np.ones(2, np.float32)}, {"loss": 0.5})
    again = Evaluations(1, "loss", "min", {"w": 0}, tmp_path)
    assert again.snapshots.best.step == 3 and again.metrics == {3: {"loss": 0.5}}
    file = tmp_path / "best-3.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"best-3.safetensors is damaged"):
        Evaluations(1, "loss", "min", {"w": 0}, tmp_path)


def fit(samples, root, workdir, **changes):
    settings = {"preset": SMALL, "encoders": NAMES, "progress": False, **changes}
    return meta_opt.fit(samples, data_dir=root, workdir=workdir, **settings)


def dying_at(count):
    """`Evaluations.show` that ends the process after so many of them."""
    show, calls = Evaluations.show, []

    def dying(self, *arguments):
        show(self, *arguments)
        calls.append(arguments[0])
        if len(calls) == count:
            raise Killed

    return dying


@pytest.mark.slow
def test_a_call_that_is_cut_off_goes_on(root, tmp_path, monkeypatch):
    samples = write_samples(tmp_path)
    whole = fit(samples, root, tmp_path / "whole")
    workdir = tmp_path / "work"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Evaluations, "show", dying_at(3))
        fit(samples, root, workdir)
    # What a newer version would choose does not count.
    monkeypatch.setattr("meta_opt.predictor.multimodal_fit.make_plan", None)
    monkeypatch.setattr("meta_opt.predictor.fit.hold_out", None)
    again = fit(samples, root, workdir)
    np.testing.assert_array_equal(
        again.predict_proba(samples), whole.predict_proba(samples)
    )
    assert again.decisions == whole.decisions
    assert again.record.metrics == whole.record.metrics
    assert again.record.history == whole.record.history
    # A finished one is loaded.
    loaded = fit(samples, root, workdir)
    assert loaded.record.seconds == again.record.seconds


def test_another_call_is_told_what_differs(root, tmp_path, monkeypatch):
    def dying(*arguments):
        raise Killed

    samples, workdir = write_samples(tmp_path), tmp_path / "work"
    monkeypatch.setattr("meta_opt.predictor.fit.fit_multimodal", dying)
    for _ in range(2):
        with pytest.raises(Killed):
            fit(samples, root, workdir)
    for changes, message in (
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"time_limit": 9.0}, "time_limit was None and is 9.0"),
        ({"validation": samples}, "validation was not given"),
        ({"preset": "fast"}, "preset was {.*} and is {"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(samples, root, workdir, **changes)
    lines = samples.read_text().splitlines()
    samples.write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="data had 36 rows and has 35"):
        fit(samples, root, workdir)
    (tmp_path / "other" / "run").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"but no fit.json"):
        fit(samples, root, tmp_path / "other")


def test_other_data_are_told_by_their_columns(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    rows = [{"photo": str(tmp_path / "a.png"), "words": "x"}]
    before = fingerprint(read_table(rows), ["photo"])
    record = CallRecord(tmp_path, {}, {"data": before})
    record.decide("x", lambda: (1, []), int, int)
    assert fingerprint(read_table(rows), ["photo"]) == before
    (tmp_path / "a.png").write_bytes(b"two")
    changed = fingerprint(read_table(rows), ["photo"])
    with pytest.raises(ValueError, match="data has other values in photo"):
        CallRecord(tmp_path, {}, {"data": changed})
    rows[0]["words"] = "y"
    changed = fingerprint(read_table(rows), ["photo"])
    with pytest.raises(ValueError, match="data has other values in photo, words"):
        CallRecord(tmp_path, {}, {"data": changed})


@pytest.mark.slow
def test_a_model_of_the_users_is_resumed(tmp_path, monkeypatch):
    siglip = write_folder(tmp_path / "siglip")
    pairs = write_captioned(tmp_path / "pictures")

    def fit_pairs(workdir):
        settings = {"model": siglip, "preset": SMALL, "progress": False}
        return meta_opt.fit(pairs, workdir=workdir, **settings)

    outline = meta_opt.plan(pairs, model=siglip, preset=SMALL)
    whole = fit_pairs(tmp_path / "whole")
    assert set(map(str, outline.decisions)) < set(map(str, whole.decisions))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Evaluations, "show", dying_at(2))
        fit_pairs(tmp_path / "work")
    again = fit_pairs(tmp_path / "work")
    np.testing.assert_array_equal(again.embed(pairs)[0], whole.embed(pairs)[0])
    assert again.decisions == whole.decisions
    # The parameters divided over two devices.
    settings = {"model": siglip, "preset": SMALL, "devices": 2}
    divided = meta_opt.fit(pairs, progress=False, **settings)
    np.testing.assert_allclose(
        divided.embed(pairs)[0], whole.embed(pairs)[0], atol=0.01
    )
    assert meta_opt.plan(pairs, **settings).memory.frozen < outline.memory.frozen


@pytest.mark.slow
def test_a_killed_process_is_resumed(tmp_path):
    samples = write_samples(tmp_path, each=20)
    program = [sys.executable, str(FIXTURES / "predictor_program.py"), str(samples)]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{FIXTURES}"}

    def start(workdir):
        return subprocess.Popen(
            [*program, str(workdir)], env=env, stdout=subprocess.PIPE, text=True
        )

    whole, _ = start(tmp_path / "whole").communicate(timeout=300)
    workdir = tmp_path / "killed"
    process = start(workdir)
    seen = workdir / "run" / "evaluations" / "evaluations.json"
    until = time.monotonic() + 300
    while not (seen.is_file() and len(json.loads(seen.read_text())["metrics"]) >= 2):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "predictor.json").exists()
    resumed, _ = start(workdir).communicate(timeout=300)
    assert json.loads(resumed) == json.loads(whole)
