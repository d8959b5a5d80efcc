"""Exported picture classifiers: round trips bit for bit, and faults."""

import json

import jax
import numpy as np
import paths
import pytest
from classifiers_small import TRUNKS, small_classifier
from flax import nnx
from pictures_toy import CLASSES, write_pictures
from PIL import Image

import meta_opt
from meta_opt.data.preprocessing.image_fit import ImageFit
from meta_opt.evaluators.pictures import probabilities
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.runs import finetune
from meta_opt.models.parameters import by_path
from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.workloads.classification import ClassificationConfig, PicturesConfig
from meta_opt.workloads.classification_export import (
    ARRAYS,
    SETTINGS,
    with_trained_top,
    write_classifier,
)
from meta_opt.workloads.classification_network import NetworkConfig
from meta_opt.workloads.export import ExportConfig

WEIGHTS = str(paths.GOLDEN / "convnets" / "resnet_timm")
SIDE = 32


def pictures(count=5):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + i, 40, 3), np.uint8) for i in range(count)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a ResNet."""
    folder = tmp_path_factory.mktemp("exported")
    write_classifier(
        folder, small_classifier("resnet", CLASSES), CLASSES, ImageFit(SIDE)
    )
    return folder


@pytest.mark.parametrize("network", sorted(TRUNKS))
def test_a_round_trip_keeps_every_bit(network, tmp_path):
    model = small_classifier(network, CLASSES)
    write_classifier(tmp_path, model, CLASSES, ImageFit(SIDE))
    assert sorted(p.name for p in tmp_path.iterdir()) == [SETTINGS, ARRAYS]
    loaded = meta_opt.load_exported(tmp_path, batch_size=4)
    ours, theirs = (by_path(m, nnx.Variable) for m in (model, loaded.model))
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(x[...], theirs[name][...])
    fitted = np.stack([ImageFit(SIDE)(Image.fromarray(x)) for x in pictures()])
    # As many at a time, so that it is one program.
    expected = np.concatenate(
        [probabilities(model, fitted[:4], 4), probabilities(model, fitted[4:], 4)]
    )
    found = loaded.probabilities(pictures())
    np.testing.assert_array_equal(found, expected)
    assert found.std(axis=0).max() > 1e-4
    names = [CLASSES[i] for i in expected.argmax(axis=1)]
    assert loaded.predict(pictures()) == names


@pytest.mark.parametrize("network", sorted(TRUNKS))
def test_a_trained_top_on_frozen_stages_is_the_whole(network):
    whole, other = (small_classifier(network, CLASSES, seed) for seed in (0, 1))
    lower, _ = whole.trunk.halves(1)
    trained = nnx.clone(other)
    trained.trunk = other.trunk.halves(1).upper
    assembled = with_trained_top(whole, trained)
    images = np.stack([np.resize(x, (SIDE, SIDE, 3)) for x in pictures()])
    # In one program each: operation by operation they would take longer.
    expected = probabilities(trained, np.asarray(jax.jit(lower)(images)))
    found = probabilities(assembled, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(probabilities(whole, images), expected, atol=1e-2)


def test_a_run_leaves_what_it_measured(tmp_path):
    task = write_pictures(tmp_path)
    config = RunConfig(
        ClassificationConfig(
            PicturesConfig(task, image_size=SIDE, augmented_views=2),
            NetworkConfig("resnet50", WEIGHTS, dropout=0.2),
        ),
        LoopConfig(12, 12, eval_every=12, log_every=12, progress=False),
        OptimizerConfig("adam", 12, learning_rate=3e-3),
        export=ExportConfig(str(tmp_path / "out")),
    )
    finished = finetune(config)
    model = meta_opt.load_exported(tmp_path / "out")
    files = [tmp_path / f"test{i}.png" for i in range(9)]
    right = [CLASSES[i % 3] for i in range(9)]
    found = model.predict(files)
    accuracy = np.mean([a == b for a, b in zip(found, right, strict=True)])
    assert accuracy == pytest.approx(finished.test["accuracy"])
    assert (model.image_size, model.class_names) == (SIDE, CLASSES)


def test_faults_are_named(exported, tmp_path):
    model = meta_opt.load_exported(exported)
    with pytest.raises(ValueError, match="image_size=16: the network takes"):
        model.probabilities(pictures(1), image_size=16)
    with pytest.raises(ValueError, match="image classifier, which takes no adapter"):
        meta_opt.load_exported(exported, adapter="a")
    with pytest.raises(ValueError, match="2 class names do not match 3 logits"):
        write_classifier(
            tmp_path, small_classifier("resnet", CLASSES), CLASSES[:2], ImageFit(SIDE)
        )
    with pytest.raises(ValueError, match="a picture classifier is written as 'model'"):
        ClassificationConfig(PicturesConfig("none")).build(
            export=ExportConfig(str(tmp_path), "huggingface")
        )
    about = json.loads((exported / SETTINGS).read_text())
    data = (exported / ARRAYS).read_bytes()

    def broken(arrays=data, **changes):
        (tmp_path / ARRAYS).write_bytes(arrays)
        text = json.dumps({k: v for k, v in (about | changes).items() if v is not None})
        (tmp_path / SETTINGS).write_text(text)
        return tmp_path

    for folder, message in (
        (lambda: broken(data[:-1]), "is damaged: its SHA-256 is"),
        (lambda: broken(format=7), "has format 7; this code reads 1"),
        (lambda: broken(image=None), "is damaged: it lacks 'image'"),
        (lambda: broken(network="resnett"), "did you mean 'resnet'"),
        (lambda: broken(class_names=["a", "b"]), "of another architecture"),
    ):
        with pytest.raises(ValueError, match=message):
            meta_opt.load_exported(folder())
