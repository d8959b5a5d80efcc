"""The demo from end to end, on a small model and a few steps."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import run_command
from models_small import SMALL, small_model
from paths import ROOT

from meta_opt.data import load_tokenizer
from meta_opt.finetuning.comparison import with_optimizer
from meta_opt.finetuning.run_config import read_run_config
from meta_opt.models import pretrained
from meta_opt.tuning.results import read_results
from meta_opt.tuning.search import SearchConfig
from meta_opt.tuning.space import read_space
from meta_opt.types import from_config
from meta_opt.workloads.image_text import ImageTextConfig


@pytest.fixture
def configs():
    return lambda name: importlib.import_module(f"configs.{name}")


def command(folder, *more):
    return [
        sys.executable,
        "-m",
        "experiments.demo",
        f"--config={ROOT / 'configs/demo.py'}:smoke",
        f"--config.base.model.weights={folder / 'small'}",
        "--config.runs.learned.optimizer.name=hand_designed",
        f"--config.runs.adamw_tuned.tuned={folder / 'tuned.json'}",
        "--config.order=('learned', 'adamw_tuned')",
        f"--workdir={folder / 'runs'}",
        f"--report={folder / 'report'}",
        *more,
    ]


def run_demo(folder, *more):
    return run_command("demo", *command(folder, *more)[3:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model's weights and a tuned setting."""
    folder = tmp_path_factory.mktemp("demo")
    config = dataclasses.replace(
        SMALL,
        image_size=64,
        patch_size=32,
        vocab_size=load_tokenizer().vocab_size,
        text_length=16,
    )
    pretrained.save(folder / "small", small_model(config))
    best = {"number": 0, "value": 1.0, "params": {"learning_rate": 0.0123}}
    (folder / "tuned.json").write_text(json.dumps({"best": best, "trials": []}))
    return folder


def test_it_trains_and_reports(folder):
    finished = run_demo(folder)
    assert finished.returncode == 0, finished.stderr
    table = (folder / "report" / "table.txt").read_text("utf-8")
    assert table in finished.stdout
    (tuned,) = (folder / "runs").glob("adamw_tuned-*")
    result = json.loads((tuned / "result.json").read_text())
    row = next(line for line in table.splitlines() if "image to text, R@10" in line)
    assert f"{100 * result['test']['i2t_r10']:.1f}" in row
    row = next(line for line in table.splitlines() if "bytes a parameter" in line)
    assert "8.00" in row
    config = json.loads((tuned / "config.json").read_text())
    assert config["optimizer"]["learning_rate"] == 0.0123
    untuned = (folder / "report" / "untuned.md").read_text("utf-8")
    assert untuned in finished.stdout and "dog, default" in untuned
    page = (folder / "report" / "index.html").read_text("utf-8")
    assert "learning rate 0.0123" in page and "Retrieved examples" in page


@pytest.mark.slow
def test_what_is_finished_is_reused(folder):
    first = run_demo(folder)
    assert first.returncode == 0, first.stderr
    table = (folder / "report" / "table.txt").read_text("utf-8")
    (tuned,) = (folder / "runs").glob("adamw_tuned-*")
    written = (tuned / "metrics.jsonl").stat().st_mtime_ns
    again = run_demo(folder)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished before and reused") == 2
    assert (folder / "report" / "table.txt").read_text("utf-8") == table
    assert (tuned / "metrics.jsonl").stat().st_mtime_ns == written


@pytest.mark.slow
def test_other_settings_are_other_runs_and_fresh_starts_over(folder):
    longer = run_demo(folder, "--config.base.num_steps=6")
    assert longer.returncode == 0, longer.stderr
    assert "reused" not in longer.stderr
    fresh = run_demo(folder, "--config.base.num_steps=6", "--fresh")
    assert fresh.returncode == 0, fresh.stderr
    assert "reused" not in fresh.stderr


@pytest.mark.slow
def test_sigint_stops_it_and_the_same_command_finishes(folder):
    long = ("--config.base.num_steps=400", "--config.base.loop.eval_every=100")
    process = subprocess.Popen(
        command(folder, *long),
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        logs = (folder / "runs").glob("learned-*/metrics.jsonl")
        if any('"step": 20,' in log.read_text() for log in logs):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 130, stderr
    assert "the same command resumes it" in stderr
    finished = run_demo(folder, *long)
    assert finished.returncode == 0, finished.stderr


def test_a_missing_or_bad_setting_is_named(folder):
    absent = run_demo(folder, "--config.runs.adamw_tuned.tuned=absent.json")
    assert absent.returncode != 0
    assert "experiments.tune_baselines" in absent.stderr
    assert "Traceback" not in absent.stderr


def test_configs_build_and_share_one_budget(configs):
    demo = configs("demo").get_config("nano").to_dict()
    tune = configs("tune").get_config("nano_clipart_adamw").to_dict()
    assert set(demo["order"]) == set(demo["runs"])
    assert demo["reference"] in demo["runs"]
    assert demo["runs"]["adamw_tuned"]["tuned"] == tune["results"]
    ours, theirs = demo["base"], tune["base"]
    # Another seed, so that the setting is not chosen for the demo's very batches.
    assert ours["seed"] != theirs["seed"]
    keys = ("model", "data", "pipeline", "mesh", "num_steps", "batch_size")
    assert all(ours[key] == theirs[key] for key in keys)
    base = read_run_config(
        ImageTextConfig, configs("demo").get_config("nano").base.to_dict()
    )
    for entry in demo["runs"].values():
        run = with_optimizer(base, entry["optimizer"])
        assert run.optimizer.num_steps == base.loop.num_steps
    with pytest.raises(ValueError, match="did you mean 'momentum'"):
        with_optimizer(base, {"name": "sgd", "momentun": 0.5})
    from_config(SearchConfig, tune["search"])
    space = read_space(tune["space"], "config.space")
    assert space["learning_rate"].high == 1e-2


def test_the_committed_setting_is_for_the_demo(configs):
    demo = configs("demo").get_config("nano").to_dict()
    path = ROOT / demo["runs"]["adamw_tuned"]["tuned"]
    if not path.is_file():
        pytest.skip(f"{path.name} is written by experiments.tune_baselines")
    record = read_results(path)
    run = record["setup"]["run"]
    demo_run = read_run_config(ImageTextConfig, demo["base"]).settings()
    for key in ("num_steps", "batch_size"):
        assert run["loop"][key] == demo_run["loop"][key]
    assert run["model"]["weights"] == demo_run["model"]["weights"]
    complete = [t["value"] for t in record["trials"] if t["state"] == "complete"]
    assert record["best"]["value"] == min(complete)
