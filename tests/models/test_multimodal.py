"""Fusion of modalities: who reads what, what is missing, and what trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from meta_opt.features.tensors import describe
from meta_opt.models import lora
from meta_opt.models.encoders.efficientnet import (
    EfficientNet,
    EfficientNetConfig,
    Stage,
)
from meta_opt.models.encoders.minilm import MiniLM, MiniLMConfig
from meta_opt.models.encoders.whisper import WhisperConfig, WhisperEncoder
from meta_opt.models.fusion import (
    Fusion,
    FusionConfig,
    Projection,
    TemporalTransformer,
    Tokens,
)
from meta_opt.models.multimodal import MODALITIES, HeadsConfig, Multimodal
from meta_opt.models.towers import STACKED

SMALL = FusionConfig(width=16, depth=2, heads=2, mlp_width=32, frames=4)


def small_encoders():
    rngs = nnx.Rngs(0)
    stages = (Stage(1, 3, 2, 6, 8),)
    return {
        "image": EfficientNet(
            EfficientNetConfig(stem=8, stages=stages, head=20), rngs=rngs
        ),
        "text": MiniLM(
            MiniLMConfig(
                vocab_size=30, text_length=8, width=12, depth=1, heads=2, mlp_width=24
            ),
            rngs=rngs,
        ),
        "audio": WhisperEncoder(
            WhisperConfig(mels=6, places=8, width=12, depth=1, heads=2, mlp_width=24),
            rngs=rngs,
        ),
    }


def small_model(modalities=MODALITIES, config=SMALL, **heads):
    sizes = heads or {"classes": 5, "scores": 1, "embed_dim": 7}
    heads_config = HeadsConfig(**sizes)
    # In one program: much faster than operation by operation.
    return nnx.jit(
        lambda: Multimodal(
            config, small_encoders(), modalities, heads_config, rngs=nnx.Rngs(1)
        )
    )()


@pytest.fixture(scope="module")
def model():
    return small_model()


def small_batch(size=3):
    rng = np.random.default_rng(0)
    text = rng.integers(1, 30, (size, 8))
    text[0, 5:] = 0
    return {
        "image": rng.integers(0, 256, (size, 32, 32, 3), np.uint8),
        "text": text,
        "audio": rng.normal(size=(size, 12, 6)).astype(np.float32),
        "video": rng.integers(0, 256, (size, 4, 32, 32, 3), np.uint8),
    }


@nnx.jit
def classify(model, batch):
    return model.classify(batch)


def logits(model, batch):
    return np.asarray(classify(model, batch))


def test_every_modality_is_read(model):
    batch = small_batch()
    before = logits(model, batch)
    assert before.shape == (3, 5) and before.dtype == np.float32
    for name in MODALITIES:
        changed = dict(batch)
        # Changing one sample does not affect the others.
        changed[name] = np.array(batch[name])
        changed[name][1] = np.roll(batch[name][1], 1, axis=0)
        after = logits(model, changed)
        moved = np.max(np.abs(after - before), axis=1)
        assert moved[1] > 1e-4, name
        np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], atol=1e-5)


def test_a_missing_modality_is_as_if_it_were_not_there(model):
    batch = small_batch()
    for name in ("text", "video"):
        without = {k: v for k, v in batch.items() if k != name}
        present = {f"{name}_present": np.array([True, False, True])}
        found = logits(model, {**batch, **present})
        np.testing.assert_allclose(found[1], logits(model, without)[1], atol=1e-5)
        np.testing.assert_allclose(
            found[[0, 2]], logits(model, batch)[[0, 2]], atol=1e-5
        )
    nothing = {f"{m}_present": np.zeros(3, bool) for m in MODALITIES}
    found = logits(model, {**batch, **nothing})
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_padding_of_a_text_is_not_read(model):
    batch = {"text": small_batch()["text"]}
    short = {"text": batch["text"][:1, :5]}
    np.testing.assert_allclose(
        logits(model, batch)[0], logits(model, short)[0], atol=1e-5
    )


def test_embeddings_are_of_the_modalities_asked_for(model):
    batch = small_batch()
    embed = nnx.jit(lambda model, x, names: model.embed(x, names), static_argnums=2)
    z = np.asarray(embed(model, batch, ("image",)))
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    alone = embed(model, {"image": batch["image"]}, ("image",))
    np.testing.assert_array_equal(z, alone)
    assert np.max(np.abs(z - embed(model, batch, ("text",)))) > 1e-3
    assert jax.eval_shape(model.score, batch).shape == (3, 1)


def test_the_frames_order_and_number():
    module = nnx.jit(lambda: TemporalTransformer(SMALL, 5, rngs=nnx.Rngs(0)))()
    temporal = jax.jit(lambda *inputs: module(*inputs))
    x = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    forward, backward = temporal(x), temporal(x[:, ::-1])[:, ::-1]
    assert np.max(np.abs(forward - backward)) > 1e-3
    real = np.array([[True, True, True, False]] * 2)
    longer = temporal(x, real)
    np.testing.assert_allclose(longer[:, :3], temporal(x[:, :3]), atol=1e-5)
    with pytest.raises(ValueError, match="a clip of 5 frames; the model takes 4"):
        temporal(np.zeros((1, 5, 5), np.float32))


def test_the_order_of_modalities_does_not_matter_and_which_does():
    fusion = nnx.jit(lambda: Fusion(SMALL, rngs=nnx.Rngs(0)))()
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(2, n, 16)).astype(np.float32) for n in (3, 5))
    real = [np.ones(z.shape[:2], bool) for z in (x, y)]
    # Not as an argument: there a dict's keys are in order.
    both = {"a": Tokens(x, real[0]), "b": Tokens(y, real[1])}
    one = jax.jit(lambda: fusion(both))()
    other = jax.jit(lambda: fusion(dict(reversed(both.items()))))()
    np.testing.assert_array_equal(one.summary, other.summary)
    assert one.tokens.x.shape == (2, 8, 16) and one.tokens.real.shape == (2, 8)
    # The same features mean something else as another modality's.
    projections = nnx.jit(
        lambda: [Projection(SMALL, 16, rngs=nnx.Rngs(i)) for i in range(2)]
    )()
    nnx.update(projections[1].linear, nnx.state(projections[0].linear))
    found = jax.jit(lambda: [projection(x) for projection in projections])()
    assert np.max(np.abs(found[0] - found[1])) > 1e-3
    with pytest.raises(
        ValueError, match=r"modalities \['a'\] with presence of \['b'\]"
    ):
        fusion({"a": Tokens(x, real[0])}, {"b": jnp.ones(2, bool)})
    with pytest.raises(ValueError, match=r"modalities \[\]"):
        fusion({})


@pytest.mark.slow
def test_gradients_reach_all_that_trains_and_groups_are_known(model):
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    batch = small_batch()

    def loss(params):
        merged = nnx.merge(graphdef, params, rest)
        return (
            jnp.sum(merged.classify(batch) ** 2)
            + jnp.sum(merged.score(batch) ** 2)
            + jnp.sum(merged.embed(batch, ("image",)) @ jnp.arange(7.0))
        )

    grads = nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))
    infos = describe(grads, stacked=STACKED)
    # Keys' biases change no softmax, the scale no embedding.
    silent = {
        info.path
        for info, g in zip(infos, jax.tree.leaves(grads), strict=True)
        if np.max(np.abs(g)) < 1e-12
    }
    silent.discard("logit_scale")
    assert all(path.endswith("attention/key/bias") for path in silent), silent
    groups = {"/".join(info.path.split("/")[:2]): info.group for info in infos}
    assert groups["encoders/image"] == groups["projections/image"] == "vision"
    assert groups["encoders/text"] == groups["projections/text"] == "text"
    assert groups["encoders/audio"] == groups["projections/audio"] == "audio"
    assert groups["projections/video"] == "video"
    assert groups["fusion/layers"] == "fusion" and groups["heads/classes"] == "head"
    assert {i.group for i in infos if i.path.startswith("video_temporal")} == {"video"}


@pytest.mark.slow
def test_adapters_and_bfloat16():
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    model = small_model(("text", "audio"), config)
    said = lora.add_lora(
        model,
        lora.LoRAConfig(r"(attention/(query|value)|mlp/(up|down))/kernel$", rank=2),
        rngs=nnx.Rngs(0),
    )
    assert "encoders/text/layers" in str(said) and "fusion/layers" in str(said)
    found = logits(model, small_batch())
    assert found.dtype == jnp.float32 and np.all(np.isfinite(found))


def test_errors_name_what_is_missing(model):
    with pytest.raises(ValueError, match=r"a batch of label; the model reads image"):
        model.classify({"label": np.zeros(3)})
    encoders = nnx.eval_shape(small_encoders)
    del encoders["image"]
    with pytest.raises(ValueError, match="no encoder for the modality 'video'"):
        Multimodal(SMALL, encoders, ("video",), HeadsConfig(), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="no encoder for the modality 'smell'"):
        small_model(("image", "smell"))
    with pytest.raises(ValueError, match=r"no head for classes; it has none \(Heads"):
        nnx.eval_shape(lambda: small_model(scores=0)).classify({})
    with pytest.raises(ValueError, match="classes=-1 must not be negative"):
        HeadsConfig(classes=-1)
    with pytest.raises(ValueError, match="frames=0 must be at least 1"):
        FusionConfig(frames=0)
