"""Pretrained encoders against PyTorch, and the readers of their files.

The golden files come from ``tests/golden/renew_encoders.py``.
"""

import collections
import hashlib
import io
import json
import pickle
import struct

import jax
import jax.numpy as jnp
import numpy as np
import paths
import pytest
import safetensors.numpy
from flax import nnx

from meta_opt.data import data_dir
from meta_opt.data.catalog.encoder_weights import (
    ENCODER_WEIGHTS,
    encoder_folder,
    prepare_encoder,
)
from meta_opt.data.catalog.packages import PackageError
from meta_opt.data.convert.ctranslate2 import read_ctranslate2
from meta_opt.data.convert.torch_legacy import read_torch_legacy
from meta_opt.data.missing import MissingDataError
from meta_opt.data.preprocessing.folder_tokenizer import FolderTokenizer
from meta_opt.data.preprocessing.whisper_mel import whisper_mel
from meta_opt.models import encoders
from meta_opt.models.encoders import efficientnet, minilm, registry, whisper
from meta_opt.models.encoders.efficientnet import Stage

EXPECTED = paths.GOLDEN / "encoders"


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(EXPECTED / "expected.npz"))


def golden(name):
    return safetensors.numpy.load_file(EXPECTED / f"{name}.safetensors")


def small_minilm(**changes):
    config = minilm.MiniLMConfig(
        vocab_size=40,
        text_length=12,
        width=24,
        depth=2,
        heads=3,
        mlp_width=48,
        **changes,
    )
    return registry.filled(
        lambda: minilm.MiniLM(config, rngs=nnx.Rngs(0)),
        minilm.minilm_parameters(golden("minilm"), 2),
    )


# Against PyTorch


def test_minilm_is_berts(expected):
    tokens = jnp.asarray(expected["tokens"])
    found, real = jax.jit(small_minilm().tokens)(tokens)
    np.testing.assert_array_equal(real, expected["tokens"] != 0)
    # What stands on padding is nobody's business.
    np.testing.assert_allclose(
        found[np.asarray(real)], expected["minilm"][np.asarray(real)], atol=1e-4
    )
    with pytest.raises(ValueError, match="13 tokens are more than the 12 places"):
        small_minilm().tokens(jnp.ones((1, 13), int))


def test_a_sentence_is_a_unit_vector_and_padding_changes_nothing(expected):
    model, tokens = small_minilm(), jnp.asarray(expected["tokens"])
    z = np.asarray(jax.jit(model)(tokens))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(model)(tokens[1:2, :5]), z[1:2], atol=1e-5)
    half = jax.jit(small_minilm(dtype="bfloat16"))(tokens)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, z, atol=0.05)


def test_whisper_is_transformers(expected):
    config = whisper.WhisperConfig(
        mels=10, places=8, width=24, depth=2, heads=3, mlp_width=48
    )
    model = registry.filled(
        lambda: whisper.WhisperEncoder(config, rngs=nnx.Rngs(0)),
        whisper.whisper_parameters(golden("whisper"), 2),
    )
    found = jax.jit(model.features)(jnp.asarray(expected["mel"]))
    np.testing.assert_allclose(found, expected["whisper"], atol=1e-4)
    assert model.features(jnp.zeros((1, 6, 10))).shape == (1, 3, 24)
    for shape in ((1, 7, 10), (1, 18, 10), (1, 6, 11), (6, 10)):
        with pytest.raises(ValueError, match=r"an even T up to 16"):
            model.features(jnp.zeros(shape))


def test_efficientnet_is_pytorchs(expected):
    config = efficientnet.EfficientNetConfig(
        stem=8,
        stages=(Stage(1, 3, 1, 1, 8), Stage(2, 5, 2, 6, 12), Stage(1, 3, 2, 6, 12)),
        head=16,
    )
    values = efficientnet.efficientnet_parameters(golden("efficientnet"), config)
    model = registry.filled(
        lambda: efficientnet.EfficientNet(config, rngs=nnx.Rngs(0)), values
    )
    found = jax.jit(model.features)(jnp.asarray(expected["image"]))
    # An odd side, so that "same" padding is uneven.
    assert found.shape == expected["efficientnet"].shape == (2, 5, 4, 16)
    np.testing.assert_allclose(found, expected["efficientnet"], atol=1e-4)
    # Statistics are not parameters: nothing trains them.
    assert {type(v) for _, v in nnx.to_flat_state(nnx.state(model, nnx.BatchStat))}
    paths = ["/".join(map(str, p)) for p, _ in nnx.to_flat_state(nnx.state(model))]
    trained = nnx.to_flat_state(nnx.state(model, nnx.Param))
    assert not [p for p, _ in trained if p[-1] in ("mean", "var")]
    assert len(trained) == sum(not p.endswith(("mean", "var")) for p in paths)
    with pytest.raises(ValueError, match=r"takes \[B, h, w, 3\]"):
        model.features(jnp.zeros((1, 8, 8)))
    with pytest.raises(ValueError, match="it lacks head/conv/kernel"):
        registry.filled(
            lambda: efficientnet.EfficientNet(config, rngs=nnx.Rngs(0)),
            {k: v for k, v in values.items() if k != "head/conv/kernel"},
        )


def test_the_spectrogram_is_whispers(expected):
    found = whisper_mel(expected["pcm"], 16_000, 2.0)
    assert found.shape == (200, 80) and found.dtype == np.float32
    # Transformers computes in float32 in between.
    np.testing.assert_allclose(found[:, ::8], expected["spectrogram"], atol=2e-3)


def test_spectrograms_of_other_rates_and_lengths(expected):
    pcm = expected["pcm"]
    half = whisper_mel(pcm[::2], 8000, 2.0)
    whole = whisper_mel(pcm, 16_000, 2.0)
    # Below 3 kHz; above, every other sample folds noise back.
    assert np.mean(np.abs(half - whole)[5:-5, :50]) < 0.1
    floats = whisper_mel(pcm / 32_768.0, 16_000, 2.0)
    np.testing.assert_allclose(floats, whole, atol=1e-3)
    longer = whisper_mel(pcm, 16_000, 3.0)
    assert longer.shape == (300, 80)
    np.testing.assert_allclose(longer[:190], whole[:190], atol=1e-4)
    assert np.ptp(whisper_mel(np.zeros(0, np.int16), 8000, 0.5)) == 0
    with pytest.raises(ValueError, match=r"shape \[T\]"):
        whisper_mel(np.zeros((2, 2)), 8000, 1.0)
    with pytest.raises(ValueError, match="seconds=0 must be above 0"):
        whisper_mel(np.zeros(9), 8000, 0)


# Files


class Storage:
    def __init__(self, key, values):
        self.key, self.values = key, values


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            return ("storage", Float, value.key, "cpu", len(value.values), None)
        return None


Float = type("FloatStorage", (), {"__module__": "torch"})


def legacy(objects, storages):
    """What ``torch.save`` wrote before 1.6, with stand-ins for PyTorch's names."""
    import sys
    import types

    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = Float

    def _rebuild_tensor_v2(*args):
        raise AssertionError("only its name is written")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2

    class Tensor:
        def __init__(self, *args):
            self.args = args

        def __reduce__(self):
            return _rebuild_tensor_v2, self.args

    file = io.BytesIO()
    modules = {"torch": torch, "torch._utils": utils}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(value, file, 2)
        state = collections.OrderedDict(
            (k, Tensor(*v) if isinstance(v, tuple) else v) for k, v in objects.items()
        )
        Pickler(file, 2).dump(state)
        pickle.dump([s.key for s in storages], file, 2)
    for storage in storages:
        file.write(struct.pack("<q", len(storage.values)))
        file.write(np.asarray(storage.values, np.float32).tobytes())
    return file.getvalue()


def test_pytorchs_old_files_are_read_without_it(tmp_path):
    storage = Storage("7", np.arange(12, dtype=np.float32))
    tensors = {
        "whole": (storage, 0, (3, 4), (4, 1), False, None),
        "turned": (storage, 4, (4, 2), (1, 4), False, None),
        "scalar": (storage, 11, (), (), False, None),
    }
    path = tmp_path / "a.pth"
    path.write_bytes(legacy(tensors, [storage]))
    found = read_torch_legacy(path)
    values = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(found["whole"], values)
    np.testing.assert_array_equal(found["turned"], values[1:].T)
    assert found["scalar"] == 11


def test_nothing_in_such_a_file_is_run(tmp_path):
    storage = Storage("7", np.arange(4, dtype=np.float32))
    good = legacy({"a": (storage, 0, (4,), (1,), False, None)}, [storage])
    beyond = legacy({"a": (storage, 1, (4,), (1,), False, None)}, [storage])
    harmful = legacy({"a": io.BytesIO}, [])
    path = tmp_path / "b.pth"
    for data, message in (
        (harmful, "_io.BytesIO is not admitted"),
        (beyond, "reaches beyond its storage"),
        (good[:-3], "is damaged"),
        (pickle.dumps(3), "is damaged"),
        (b"", "is damaged"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_torch_legacy(path)


def ctranslate2_file(variables):
    def text(value):
        data = value.encode() + b"\0"
        return struct.pack("<H", len(data)) + data

    kinds = {"<f4": 0, "<f2": 4, "<i2": 2}
    parts = [struct.pack("<I", 6), text("WhisperSpec"), struct.pack("<I", 3)]
    parts.append(struct.pack("<I", len(variables)))
    for name, value in variables.items():
        parts += [text(name), struct.pack("<B", value.ndim)]
        parts += [struct.pack("<I", n) for n in value.shape]
        parts.append(struct.pack("<BI", kinds[value.dtype.str], value.nbytes))
        parts.append(value.tobytes())
    return b"".join([*parts, struct.pack("<I", 0)])


def test_ctranslate2s_files_are_read_without_it(tmp_path):
    variables = {
        "encoder/a": np.arange(6, dtype=np.float16).reshape(2, 3),
        "encoder/heads": np.int16(6),
        "encoder/b": np.ones(3, np.float32),
    }
    path = tmp_path / "model.bin"
    data = ctranslate2_file({k: np.asarray(v) for k, v in variables.items()})
    path.write_bytes(data)
    found = read_ctranslate2(path)
    assert found.keys() == variables.keys()
    for name, value in variables.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    for bad in (data[:40], data[:-9], b"\5\0\0\0" + data[4:], b""):
        path.write_bytes(bad)
        with pytest.raises(
            ValueError, match="not a model of CTranslate2 or is damaged"
        ):
            read_ctranslate2(path)


def test_a_folder_is_written_whole_and_checked(tmp_path, monkeypatch):
    weights = ENCODER_WEIGHTS["whisper_tiny"]
    unpacked = tmp_path / "downloads" / "manual" / "encoders" / weights.package.folder
    file = unpacked / weights.file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"something else")
    with pytest.raises(MissingDataError, match=r"prepare --only encoders"):
        encoder_folder("whisper_tiny", tmp_path)
    with pytest.raises(PackageError, match=r"has the SHA-256 .* delete .* try again"):
        prepare_encoder("whisper_tiny", tmp_path)
    assert not (tmp_path / "encoders" / "whisper_tiny").exists()

    data = ctranslate2_file(
        {
            "encoder/a": np.ones((2, 3), np.float16),
            "encoder/num_heads": np.asarray(np.int16(6)),
            "decoder/b": np.ones(3, np.float32),
        }
    )
    file.write_bytes(data)
    changed = weights.__class__(
        **{**vars(weights), "sha256": hashlib.sha256(data).hexdigest()}
    )
    monkeypatch.setitem(ENCODER_WEIGHTS, "whisper_tiny", changed)
    assert prepare_encoder("whisper_tiny", tmp_path).endswith(" 6 numbers")
    folder = encoder_folder("whisper_tiny", tmp_path)
    found = safetensors.numpy.load_file(folder / "model.safetensors")
    assert found.keys() == {"encoder/a"}
    with pytest.raises(ValueError, match=r"lacks the tensor 'encoder/.* of whisper"):
        encoders.load_encoder("whisper_tiny", folder)
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="is damaged: its SHA-256"):
        encoders.load_encoder("whisper_tiny", folder)


def test_others_plug_in_by_name(tmp_path):
    data = safetensors.numpy.save({"w": np.ones(3, np.float32)})
    (tmp_path / "model.safetensors").write_bytes(data)
    about = {"sha256": hashlib.sha256(data).hexdigest()}
    (tmp_path / "about.json").write_text(json.dumps(about))

    class Mine(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.zeros(3))

    with pytest.raises(ValueError, match=r"unknown encoder 'mine'.*able: efficientnet"):
        encoders.load_encoder("mine", tmp_path)
    encoders.register("mine", lambda t, changes: registry.filled(Mine, t))
    try:
        assert float(encoders.load_encoder("mine", tmp_path).w.sum()) == 3
        with pytest.raises(ValueError, match="'mine' is already registered"):
            encoders.register("mine", lambda t, changes: None)
    finally:
        del registry._ENCODERS["mine"]


# The real weights


def real(name):
    try:
        return encoders.load_encoder(name, encoder_folder(name, data_dir()))
    except MissingDataError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_real_weights_compute_as_in_pytorch():
    """The inputs are those of ``renew_encoders.py``, drawn in its order."""
    golden = np.load(EXPECTED / "real.npz")
    rng = np.random.default_rng(1)
    tokens = rng.integers(1000, 30_000, (2, 12))
    tokens[1, 7:] = 0
    image = rng.integers(0, 256, (1, 64, 64, 3), np.uint8)
    mel = rng.normal(0, 0.5, (1, 3000, 80)).astype(np.float32)
    found, mask = real("minilm").tokens(jnp.asarray(tokens))
    found, mask = np.asarray(found[..., :16]), np.asarray(mask)
    np.testing.assert_allclose(found[mask], golden["minilm"][mask], atol=1e-4)
    found = real("efficientnet_lite0").features(jnp.asarray(image))[..., :64]
    np.testing.assert_allclose(found, golden["efficientnet_lite0"], atol=2e-4)
    found = jax.jit(real("whisper_tiny").features)(jnp.asarray(mel))
    np.testing.assert_allclose(
        found[:, ::300, :16], golden["whisper_tiny"], atol=1e-3, rtol=1e-3
    )


@pytest.mark.slow
def test_minilm_knows_what_a_teapot_is():
    model = real("minilm")
    tokenizer = FolderTokenizer(encoder_folder("minilm", data_dir()), 0)
    texts = ["a teapot", "a pot for brewing tea", "a zebra"]
    z = model(jnp.asarray(tokenizer.encode(texts, 16)))
    np.testing.assert_allclose([z[0] @ z[1], z[0] @ z[2]], [0.789, 0.229], atol=2e-3)


@pytest.mark.parametrize("side, kernel, stride", [(7, 3, 1), (8, 5, 2), (5, 3, 2)])
def test_depthwise_filters_are_grouped_convolutions(side, kernel, stride):
    config = efficientnet.EfficientNetConfig()
    ours = nnx.jit(
        lambda: efficientnet.DepthwiseConv(config, 6, kernel, stride, rngs=nnx.Rngs(0))
    )()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, side, side + 1, 6)).astype(np.float32)

    def theirs(kernel, x):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=6,
        )

    found = jax.jit(ours)(x)
    np.testing.assert_allclose(found, theirs(ours.kernel[...], x), atol=1e-5)
