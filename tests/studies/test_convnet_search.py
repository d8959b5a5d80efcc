"""The published search for settings of picture classifiers."""

import dataclasses
import math

import paths
import pytest
from pictures_toy import write_pictures

from configs import convnet_search as configs
from experiments.workloads import read_run
from meta_opt.data.preprocessing.augment import AugmentConfig
from meta_opt.finetuning.early_stopping import EarlyStopping
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.optimizers.schedules import ScheduleConfig
from meta_opt.studies.convnet_search import (
    EpochsConfig,
    EpochTrial,
    measure_setting,
    search_settings,
    untuned,
)
from meta_opt.tuning.search import SearchConfig
from meta_opt.tuning.space import Setting, read_space
from meta_opt.types import from_config
from meta_opt.workloads.classification import (
    ClassificationConfig,
    PicturesConfig,
)
from meta_opt.workloads.classification_network import NetworkConfig

EPOCHS = EpochsConfig(4, early_stopping=EarlyStopping(patience=2))
SPACE = {
    "learning_rate": Setting("log", low=1e-5, high=1e-2),
    "batch_size": Setting("choice", choices=(8, 12)),
}
SEARCH = SearchConfig(
    num_trials=3, seed=1, startup_trials=3, min_resource=2, progress=False
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Tiny pictures and a tiny ResNet under the published recipe."""
    folder = tmp_path_factory.mktemp("pictures")
    return RunConfig(
        ClassificationConfig(
            PicturesConfig(
                write_pictures(folder),
                image_size=32,
                augmented_views=2,
                feature_cache_dir=str(folder / "features"),
            ),
            NetworkConfig("resnet50", str(paths.GOLDEN / "convnets" / "resnet_timm")),
        ),
        LoopConfig(1, 12, feedback=True, best_metric="accuracy", best_mode="max"),
        OptimizerConfig(
            "adam",
            1,
            warmup_fraction=0.0,
            clip_norm=1.0,
            rate_factors=(("^head/", 10.0),),
            schedule=ScheduleConfig("plateau"),
        ),
    )


@pytest.fixture(scope="module")
def trial(base):
    return EpochTrial(base, EPOCHS)


def searched(base, trial, storage, **changes):
    settings = {"space": SPACE, "settings": SEARCH, "config": EPOCHS, **changes}
    return search_settings(trial, base, storage=storage, name="toy", **settings)


@pytest.mark.slow
def test_trials_are_judged_by_the_epoch_that_they_keep(base, trial, tmp_path):
    storage = tmp_path / "s.sqlite3"
    study = searched(base, trial, storage)
    assert [t.state.is_finished() for t in study.trials] == [True] * 3
    complete = [t for t in study.trials if t.state.name == "COMPLETE"]
    assert study.best_value == max(t.value for t in complete)
    for found in study.trials:
        # Epochs, whatever the batch size.
        assert set(found.intermediate_values) <= {1, 2, 3}
    # The same setting gives the same value, and with a test that of the epoch kept.
    again = trial(study.best_params)
    assert EPOCHS.value(again.evaluations) == study.best_value
    losses = [e.validation["loss"] for e in again.evaluations]
    best = EPOCHS.best_epoch(again.evaluations)
    assert losses[best - 1] == min(losses)
    per_epoch = 24 // study.best_params["batch_size"]
    assert again.num_steps == 4 * per_epoch
    assert [e.step for e in again.evaluations] == [
        per_epoch * (i + 1) for i in range(len(losses))
    ]
    # It goes on, and another space does not.
    more = dataclasses.replace(SEARCH, num_trials=4)
    assert len(searched(base, trial, storage, settings=more).trials) == 4
    narrow = {**SPACE, "learning_rate": Setting("log", low=1e-4, high=1e-2)}
    with pytest.raises(ValueError, match=r"'toy' made under another space \(learning_"):
        searched(base, trial, storage, space=narrow)


def test_what_no_trial_could_use_is_an_error_before_the_first(base, trial, tmp_path):
    storage = tmp_path / "s.sqlite3"
    wrong = {"learning_rat": SPACE["learning_rate"]}
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        searched(base, trial, storage, space=wrong)
    wide = {"batch_size": Setting("choice", choices=(8, 32, 64))}
    with pytest.raises(ValueError, match=r"choices \[32, 64\], more than the 24"):
        searched(base, trial, storage, space=wide)
    for sizes in (Setting("log", 8, 16), Setting("choice", choices=("8", 12))):
        with pytest.raises(ValueError, match="must be a choice of integers"):
            searched(base, trial, storage, space={"batch_size": sizes})
    with pytest.raises(ValueError, match=r"config.space must be settings by name"):
        read_space(["batch_size"], "config.space")
    with pytest.raises(ValueError, match="batch_size=25 is more than the 24"):
        trial({"batch_size": 25})
    with pytest.raises(ValueError, match="did you mean 'weighted_f1'"):
        EpochTrial(base, dataclasses.replace(EPOCHS, metric="weighted_f"))
    with pytest.raises(ValueError, match="max_epochs=0 must be at least 1"):
        EpochsConfig(0)
    assert not storage.exists()


@pytest.mark.slow
def test_settings_are_tested_over_seeds_and_the_learned_optimizer_too(base):
    learned = untuned(base)
    assert learned.optimizer.name == "learned" and not learned.loop.feedback
    for run, settings in ((base, {"learning_rate": 3e-3}), (learned, {})):
        tested = EpochTrial(run, EPOCHS, test=True)
        found = measure_setting(tested, EPOCHS, settings, (1, 2))
        values = [r["test"]["weighted_f1"] for r in found["runs"]]
        assert [r["seed"] for r in found["runs"]] == [1, 2]
        assert all(1 <= r["best_epoch"] <= r["epochs"] <= 4 for r in found["runs"])
        mean = found["test"]["weighted_f1"]["mean"]
        assert math.isclose(mean, sum(values) / 2)
        assert found["settings"] == settings


PUBLISHED = {
    "resnet50": (
        {"learning_rate": ("log", 1e-5, 1e-3), "batch_size": (16, 256)},
        ("adam", ScheduleConfig("plateau", factor=0.1, patience=1, mode="max")),
        (5, AugmentConfig(flip=True, rotate_degrees=15.0, jitter=0.2)),
    ),
    "convnext_tiny": (
        {
            "learning_rate": ("log", 1e-6, 1e-4),
            "batch_size": (8, 64),
            "weight_decay": ("log", 1e-5, 1e-2),
        },
        ("adamw", ScheduleConfig("cosine", final_fraction=0.01)),
        (
            0,
            AugmentConfig(
                *(True, 15.0, 0.2),
                hue=0.1,
                crop_scale=0.8,
                random_ops=2,
                magnitude=9,
            ),
        ),
    ),
}


@pytest.mark.parametrize("name", [*PUBLISHED, "efficientnet_lite0"])
def test_configs_have_the_published_spaces_and_recipe(name):
    config = configs.get_config(name).to_dict()
    space, recipe, (min_resource, augment) = PUBLISHED.get(name, PUBLISHED["resnet50"])
    found = read_space(config["space"], "config.space")
    assert {
        k: (min(s.choices), max(s.choices)) if s.choices else (s.kind, s.low, s.high)
        for k, s in found.items()
    } == space
    search = from_config(SearchConfig, config["search"])
    assert (search.num_trials, search.seed) == (100, 42)
    assert (search.min_resource, search.reduction_factor) == (min_resource, 4)
    epochs = from_config(EpochsConfig, config["epochs"])
    assert epochs == EpochsConfig(50, "weighted_f1", EarlyStopping("loss", "min", 5))
    run = read_run(config["base"])
    assert (run.optimizer.name, run.optimizer.schedule) == recipe
    assert run.optimizer.clip_norm == 1 and run.optimizer.warmup_fraction == 0
    assert run.optimizer.rate_factors == (("^head/", 10.0),)
    assert run.workload.pictures.augment == augment
    network = run.workload.network
    assert (network.name, network.trained_stages, network.dropout) == (name, 1, 0.5)
    assert run.loop.seed not in config["seeds"]
    make_optimizer(untuned(run).optimizer)
