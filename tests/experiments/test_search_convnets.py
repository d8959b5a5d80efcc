"""The command that searches the settings of a picture classifier."""

import json

import paths
import pytest
from commands import run_command
from pictures_toy import write_pictures


@pytest.mark.slow
def test_two_processes_search_and_the_best_is_tested(tmp_path):
    base = {
        "network.weights": paths.GOLDEN / "convnets" / "resnet_timm",
        "pictures.task": write_pictures(tmp_path),
        "pictures.image_size": 32,
        "pictures.augmented_views": 2,
        "pictures.feature_cache_dir": tmp_path / "features",
        "batch_size": 8,
    }
    settings = {
        **{f"base.{key}": value for key, value in base.items()},
        "space.batch_size.choices": "(8, 12)",
        "epochs.max_epochs": 3,
        "search.num_trials": 4,
        "search.min_resource": 1,
        "jobs": 2,
        "name": "toy",
        "results": tmp_path / "toy.json",
    }
    arguments = [
        *("--config", "configs/convnet_search.py:resnet50"),
        *("--workdir", tmp_path / "work"),
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]
    done = run_command("search_convnets", *arguments)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "toy.json").read_text())
    assert len(record["trials"]) == 4 and not record["trials"][0].keys() & {"place"}
    values = [t["value"] for t in record["trials"] if t["state"] == "complete"]
    assert record["best"]["value"] == max(values)
    assert record["search_seconds"] > 0
    assert record["tuned"]["settings"] == record["best"]["params"]
    for name in ("tuned", "learned"):
        assert [run["seed"] for run in record[name]["runs"]] == [1, 2, 3]
        assert 0 <= record[name]["test"]["weighted_f1"]["mean"] <= 1
    # One file of features for each split, whatever the number of trials and processes.
    assert len(list((tmp_path / "features").iterdir())) == 3
    # The finished study is only read, and another space is refused.
    refused = run_command(
        "search_convnets", *arguments, "--config.space.learning_rate.low=1e-4"
    )
    assert refused.returncode == 1
    assert "'toy' made under another space (learning_rate.low)" in refused.stderr
