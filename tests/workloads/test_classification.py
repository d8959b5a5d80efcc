"""Picture classifiers: what trains, cached views, and whole runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import paths
import pytest
from pictures_toy import write_pictures

from configs import convnets as configs
from experiments.workloads import read_run
from meta_opt.data.preprocessing.augment import AugmentConfig, augment
from meta_opt.data.view_batches import fresh_views, stored_views, view_batches
from meta_opt.finetuning.ledger import read_ledger
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.runs import finetune
from meta_opt.models.convnets import load_classifier
from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.tree_paths import leaves_by_path
from meta_opt.workloads import lower_features
from meta_opt.workloads.classification import (
    ClassificationConfig,
    PicturesConfig,
    read_pictures,
)
from meta_opt.workloads.classification_network import (
    NetworkConfig,
    network_parts,
    split_network,
)
from meta_opt.workloads.lower_features import Views, view_features

WEIGHTS = str(paths.GOLDEN / "convnets" / "resnet_timm")
AUGMENT = AugmentConfig(flip=True, rotate_degrees=15, jitter=0.2)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def config(task, views=2, steps=12, **pictures):
    return RunConfig(
        ClassificationConfig(
            PicturesConfig(
                task,
                image_size=32,
                augment=AUGMENT,
                augmented_views=views,
                **pictures,
            ),
            NetworkConfig("resnet50", WEIGHTS, dropout=0.2),
        ),
        LoopConfig(steps, 12, eval_every=6, log_every=6, progress=False),
        OptimizerConfig(
            "adam",
            steps,
            learning_rate=3e-3,
            clip_norm=1.0,
            rate_factors=(("^head/", 10.0),),
        ),
    )


# What trains


def test_last_stage_and_head_train_whether_features_are_stored_or_not():
    parts = network_parts(NetworkConfig("resnet50", WEIGHTS), 3, "")
    whole, cut = (split_network(parts, cut=cut) for cut in (False, True))
    names = set(leaves_by_path(whole.params))
    assert all(n.startswith(("trunk/stages/3/", "head/")) for n in names)
    assert not any(n.endswith(("/mean", "/var")) for n in names)
    assert {n.replace("stages/3", "stages/0") for n in names} == set(
        leaves_by_path(cut.params)
    )
    # Both compute the same, and have the same gradient.
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.integers(0, 256, (4, 32, 32, 3), np.uint8))

    @jax.jit
    def gradients(whole_params, cut_params):
        def loss(params, module, inputs):
            return jnp.sum(module.merge(params, module.frozen)(inputs) ** 2)

        grid = parts.lower(image)
        return (
            jax.grad(loss)(whole_params, whole, image),
            jax.grad(loss)(cut_params, cut, grid),
        )

    ours, theirs = map(leaves_by_path, gradients(whole.params, cut.params))
    for name, g in ours.items():
        other = theirs[name.replace("stages/3", "stages/0")]
        np.testing.assert_allclose(g, other, atol=1e-4 * float(jnp.abs(g).max()) + 1e-6)


# Views


def test_views_are_drawn_once_and_found_again(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 8, 8, 3), np.uint8)
    views = Views(3, AugmentConfig(flip=True, jitter=0.5))

    def lower(x):
        return x.astype(jnp.float32)[:, ::2, ::2] / 255

    weights = {"a": np.ones(3, np.float32)}
    found = view_features(images, views, lower, weights, str(tmp_path))
    assert found.shape == (5, 3, 4, 4, 3) and found.dtype == np.float16
    drawn = augment(images[4], views.augment, np.random.default_rng((0, 4, 2)))
    np.testing.assert_allclose(found[4, 2], drawn[::2, ::2] / 255, atol=1e-3)
    # Neither the number of samples at a time nor where they are kept matters.
    monkeypatch.setattr(lower_features, "_ENCODED", 2)
    np.testing.assert_array_equal(found, view_features(images, views, lower, weights))
    (file,), written = tmp_path.iterdir(), found.tobytes()
    before = file.stat().st_mtime_ns
    again = view_features(images, views, lower, weights, str(tmp_path))
    assert again.tobytes() == written and file.stat().st_mtime_ns == before
    assert isinstance(again, np.memmap) and not again.flags.writeable
    for other in (
        (images, views._replace(seed=1), weights),
        (images, views, {"a": np.zeros(3, np.float32)}),
        (images[::-1], views, weights),
    ):
        view_features(*other[:2], lower, other[2], str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_of_views_is_whole_or_not_there(tmp_path):
    def broken(x):
        return jnp.full(x.shape, 1e6)

    images = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"reach 1e\+06, more than half precision"):
        view_features(images, Views(), broken, {}, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_each_epoch_draws_one_of_the_views_and_resumes():
    views = np.arange(10)[:, None] * 10 + np.arange(4)[None]
    labels = np.arange(10, dtype=np.int32)
    batches = view_batches(stored_views(views), labels, 5, seed=3)
    drawn = []
    for _ in range(80):
        batch = next(batches)
        np.testing.assert_array_equal(batch["inputs"] // 10, batch["label"])
        drawn.extend(batch["inputs"].tolist())
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == 40 and counts.max() <= 25  # 10 each on average
    state = batches.get_state()
    following = next(batches)["inputs"]
    again = view_batches(stored_views(views), labels, 5, seed=3)
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["inputs"], following)
    half = view_batches(stored_views(views), labels, 5, 3, np.array([1, 4]))
    whole = view_batches(stored_views(views), labels, 5, seed=3)
    np.testing.assert_array_equal(next(half)["inputs"], next(whole)["inputs"][[1, 4]])
    with pytest.raises(ValueError, match="a batch of 11 needs"):
        view_batches(stored_views(views), labels, 11)


def test_fresh_views_differ_each_time():
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    take = fresh_views(image, AugmentConfig(jitter=0.9))
    batches = view_batches(take, np.zeros(1, np.int32), 1)
    assert not np.array_equal(next(batches)["inputs"], next(batches)["inputs"])


# Whole runs


def test_a_run_learns_and_measures(task, tmp_path):
    run = config(task, views=2, steps=60, feature_cache_dir=str(tmp_path))
    finished = finetune(run, tmp_path / "run")
    assert finished.test["accuracy"] > 0.8
    # Without texts there are no tokens, rather than an unknown number.
    total = read_ledger(tmp_path / "run").total()
    assert (total.tokens_in, total.tokens_out) == (0, 0)
    wanted = {"loss", "accuracy", "macro_f1", "weighted_f1", "ece"}
    assert finished.test.keys() == wanted
    assert finished.data["examples"] == {"train": 24, "validation": 9, "test": 9}
    assert len(list(tmp_path.glob("resnet50-32-*.npy"))) == 3


@pytest.mark.slow
def test_a_run_without_stored_features_learns(task):
    assert finetune(config(task, views=0, steps=60)).test["accuracy"] > 0.8


def test_frozen_arrays_are_the_files(task):
    workload = config(task).workload.build(1)
    other = workload.reseeded(2)
    trunk, second = (leaves_by_path(w.params) for w in (workload, other))
    original = load_classifier(WEIGHTS)
    kernel = original.trunk.stages[3].blocks[0].filter.conv.kernel[...]
    name = "trunk/stages/0/blocks/0/filter/conv/kernel"
    np.testing.assert_array_equal(trunk[name], kernel)
    np.testing.assert_array_equal(second[name], kernel)
    assert not np.array_equal(trunk["head/linear/kernel"], second["head/linear/kernel"])


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny", "efficientnet_lite0"])
def test_configs_have_the_published_recipe(name):
    run = read_run(configs.get_config(name).to_dict())
    assert isinstance(run.workload, ClassificationConfig)
    network = run.workload.network
    assert (network.name, network.trained_stages, network.dropout) == (name, 1, 0.5)
    assert run.optimizer.clip_norm == 1
    assert run.optimizer.rate_factors == (("^head/", 10.0),)


def test_errors(task, tmp_path):
    run = config(task)
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        NetworkConfig("resnet5")
    with pytest.raises(ValueError, match="has no stochastic depth"):
        NetworkConfig("resnet50", drop_path=0.1)
    with pytest.raises(ValueError, match="are of a ResNet, not of"):
        network_parts(NetworkConfig("convnext_tiny", WEIGHTS), 3, "")
    with pytest.raises(ValueError, match=r"image_size=8 must be"):
        PicturesConfig(task, image_size=8)
    with pytest.raises(ValueError, match="must be a classification with images"):
        read_pictures(PicturesConfig("emoji_names"))
    file = tmp_path / "lacking.jsonl"
    lines = [
        {"text": "a", "label": "x", "split": split}
        for split in ("train", "validation", "test")
    ]
    picture = paths.ROOT / "tests" / "none.png"
    lines.append({**lines[0], "image": str(picture)})
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="1 samples of train have no image"):
        read_pictures(PicturesConfig(str(file)))
    no_head = dataclasses.replace(run.optimizer, rate_factors=(("^heed/", 2.0),))
    with pytest.raises(ValueError, match=r"'\^heed/' finds none of the parameters"):
        finetune(dataclasses.replace(run, optimizer=no_head))
