"""ResNet and ConvNeXt against PyTorch, and the folders they come from.

The golden files come from ``tests/golden/renew_convnets.py``.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import paths
import pytest
from flax import nnx

from meta_opt.image_processor import ImageProcessor
from meta_opt.models.convnets import (
    ARCHITECTURES,
    Classifier,
    ConvNeXt,
    ConvNeXtConfig,
    ResNet,
    ResNetConfig,
    load_classifier,
    make_convnet,
    read_config,
)
from meta_opt.models.encoders import Divisible
from meta_opt.models.parameters import by_path, parameter_count

GOLDEN = paths.GOLDEN / "convnets"
FOLDERS = [
    f"{n}_{lib}" for n in ("resnet", "convnext") for lib in ("transformers", "timm")
]


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(GOLDEN / "expected.npz"))


# In one program each: much faster than operation by operation.
@nnx.jit
def features(model, image, key=None):
    return model.features(image, key)


@nnx.jit
def outputs(model, image, key=None):
    return model.trunk.features(image, key), model(image, key)


def copied(name, folder, **changes):
    shutil.copytree(GOLDEN / name, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_networks_are_pytorchs(name, expected):
    model = load_classifier(GOLDEN / name)
    found, logits = outputs(model, expected["image"])
    # PyTorch has channels first.
    theirs = expected[f"{name}_features"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, theirs, atol=1e-4)
    np.testing.assert_allclose(logits, expected[f"{name}_logits"], atol=1e-4)


@pytest.mark.parametrize(
    "name, count", [("resnet50", 25_557_032), ("convnext_tiny", 28_589_128)]
)
def test_full_sizes_have_the_published_number_of_parameters(name, count):
    def create():
        trunk = make_convnet(ARCHITECTURES[name], rngs=nnx.Rngs(0))
        return Classifier(trunk, 1000, rngs=nnx.Rngs(0))

    model = nnx.eval_shape(create)
    assert parameter_count(model) == count
    last = [p for p in by_path(model) if p.startswith("trunk/stages/3/")]
    assert last and not any(p.startswith("trunk/stages/4/") for p in by_path(model))
    assert isinstance(model.trunk, Divisible)


@pytest.mark.parametrize("name", ["resnet_timm", "convnext_timm"])
def test_a_network_cut_in_two_is_the_whole(name, expected):
    model = load_classifier(GOLDEN / name)
    image = expected["image"][:1]
    lower, upper = model.trunk.halves(1)
    assert len(upper.stages) == 1
    found = jax.jit(lambda x: upper.features(lower(x)))(image)
    np.testing.assert_allclose(found, features(model.trunk, image), atol=1e-5)
    # Training the upper half and putting it back changes no stage below.
    upper.stages[0].blocks = nnx.List([])
    whole = model.trunk.with_upper(upper)
    assert len(whole.stages) == 4 and len(whole.stages[3].blocks) == 0
    assert len(model.trunk.stages[3].blocks) == 1
    with pytest.raises(ValueError, match="has 4 layers"):
        model.trunk.halves(5)


def test_batch_norm_keeps_its_statistics_unless_it_trains(expected):
    model = load_classifier(GOLDEN / "resnet_timm")
    image = expected["image"]

    def statistics():
        found = by_path(model, nnx.BatchStat)
        return {path: np.asarray(x[...]) for path, x in found.items()}

    before = statistics()
    outputs(model, image, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, before, statistics())
    model.trunk.stages[3].train()
    features(model.trunk, image)
    changed = {p for p, x in statistics().items() if not np.array_equal(x, before[p])}
    assert changed == {p for p in before if p.startswith("trunk/stages/3/")}


def test_dropout_and_stochastic_depth_keep_the_mean():
    config = ConvNeXtConfig(
        depths=(1, 1), widths=(4, 8), drop_path=0.5, layer_scale=1.0
    )
    trunk = nnx.jit(lambda: ConvNeXt(config, rngs=nnx.Rngs(0)))()
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    image = np.repeat(image, 400, axis=0)
    sure = np.asarray(features(trunk, image[:1]))
    drawn = np.asarray(features(trunk, image, jax.random.key(0)))
    kinds = np.unique(np.round(drawn, 4), axis=0)
    # With the last block's branch, doubled, or without; the first is never left out.
    assert len(kinds) == 2
    np.testing.assert_allclose(kinds.mean(axis=0), sure[0], atol=1e-3)
    share = np.mean(np.abs(drawn - kinds[0]).max(axis=(1, 2, 3)) < 1e-3)
    assert abs(share - 0.5) < 0.1

    model = Classifier(trunk, 3, dropout=0.5, rngs=nnx.Rngs(1))
    x = jnp.ones((2000, 8))
    logits = model.head(x, jax.random.key(1))
    np.testing.assert_allclose(logits.mean(axis=0), model.head(x[:1])[0], atol=4e-3)
    assert float(logits.std(axis=0).min()) > 0


def test_half_precision_computes_nearly_the_same(expected):
    image = expected["image"][:1]
    for name in ("resnet_timm", "convnext_timm"):
        model = load_classifier(GOLDEN / name, dtype="bfloat16")
        found, logits = outputs(model, image)
        assert found.dtype == jnp.bfloat16
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, expected[f"{name}_logits"][:1], atol=0.1)


def test_a_new_head_has_its_classes_and_the_files_trunk(expected):
    image = expected["image"][:1]
    new = load_classifier(GOLDEN / "convnext_transformers", classes=9, rngs=nnx.Rngs(3))
    assert outputs(new, image)[1].shape == (1, 9)
    old = load_classifier(GOLDEN / "convnext_transformers")
    # The layer norm of pooled features is the network's, not the head's.
    found = features(new, image)
    np.testing.assert_allclose(found, features(old, image), atol=1e-6)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("resnet_transformers", {"layer_type": "basic"}, "layer_type='basic' must be"),
        (
            "resnet_transformers",
            {"model_type": "regnet"},
            "'regnet' must be one of res",
        ),
        ("resnet_transformers", {"depths": [1, 1, 1]}, "it has unknown resnet.enc"),
        ("resnet_timm", {"architecture": "resnet50d"}, "did you mean 'resnet50'"),
        ("convnext_timm", {"model_args": {"ls_init_value": 0}}, "ls_init_value cannot"),
        ("convnext_timm", {"model_args": None}, "it has other shapes"),
        ("convnext_transformers", {"hidden_act": "relu"}, "hidden_act='relu' must be"),
    ],
)
def test_errors_name_the_setting_or_the_tensor(tmp_path, name, changes, message):
    with pytest.raises(ValueError, match=message):
        load_classifier(copied(name, tmp_path / "model", **changes))


def test_errors_of_folders_and_settings(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        read_config(tmp_path)
    folder = copied("resnet_timm", tmp_path / "cut")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_classifier(folder)
    with pytest.raises(ValueError, match="must have one number for each stage"):
        ResNetConfig(depths=(1, 2))
    with pytest.raises(ValueError, match=r"drop_path=1\.0"):
        ConvNeXtConfig(drop_path=1.0)
    small = ResNet(ResNetConfig(depths=(1,), widths=(8,), stem=4), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="images have shape"):
        small.features(jnp.zeros((2, 8, 8)))
    with pytest.raises(ValueError, match="classes=1"):
        Classifier(small, 1, rngs=nnx.Rngs(0))


def test_channels_are_the_image_processors(tmp_path):
    folder = copied("resnet_transformers", tmp_path / "model")
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"image_mean": [0.1, 0.2, 0.3]}))
    assert read_config(folder).image_mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    "edge, expected", [(224, (True, 256, 3)), (384, (False, 384, 3))]
)
def test_convnext_pictures_are_cropped_below_384_pixels(edge, expected):
    settings = {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": edge},
        "crop_pct": 0.875,
        "resample": 3,
    }
    assert ImageProcessor(settings).geometry(edge, crop=False) == expected
    with pytest.raises(ValueError, match="is not the 100 pixels"):
        ImageProcessor(settings).geometry(100, crop=False)
    with pytest.raises(ValueError, match="crop_pct=2 must be"):
        ImageProcessor(settings | {"crop_pct": 2}).geometry(edge, crop=False)
