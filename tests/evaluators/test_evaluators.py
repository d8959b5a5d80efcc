import numpy as np
import pytest
from models_small import forward, small_batch, small_model

from meta_opt.evaluators import encoding
from meta_opt.evaluators.contrastive import evaluate
from meta_opt.evaluators.encoding import encode_images, encode_texts
from meta_opt.evaluators.retrieval import caption_groups, evaluate_retrieval
from meta_opt.evaluators.zero_shot import (
    TEMPLATES,
    class_embeddings,
    class_prompts,
    evaluate_zero_shot,
)
from meta_opt.losses.contrastive import clip_loss


def test_batched_encoding_equals_one_pass_and_compiles_once():
    model, data = small_model(), small_batch(7)
    encoding._apply.clear_cache()
    image_z = encode_images(model, data["image"], batch_size=3)
    expected = forward(model, data)
    np.testing.assert_allclose(image_z, expected[0], atol=1e-6)
    encode_images(small_model(), data["image"][:5], batch_size=3)
    assert encoding._apply._cache_size() == 1
    text_z = encode_texts(model, data["text"], batch_size=3)
    np.testing.assert_allclose(text_z, expected[1], atol=1e-6)


def test_equal_captions_are_one_group():
    tokens = np.array([[3, 1], [2, 0], [3, 1]], np.int32)
    groups = caption_groups(tokens)
    assert groups.shape == (3,)
    assert groups[0] == groups[2] != groups[1]
    z = np.eye(3, dtype=np.float32)
    swapped = evaluate_retrieval(z, z[[2, 1, 0]], tokens)
    assert swapped["i2t_r1"] == swapped["t2i_r1"] == 1


def test_class_prompts_fill_templates_in_order():
    seen = []

    def encode(texts, length):
        seen.extend(texts)
        return np.arange(len(texts) * length).reshape(len(texts), length)

    prompts = class_prompts(["red-fox", "oak"], encode, 3, templates=("{}", "a {}"))
    assert seen == ["red fox", "a red fox", "oak", "a oak"]
    assert prompts.shape == (2, 2, 3)
    np.testing.assert_array_equal(prompts[1, 0], [6, 7, 8])
    assert all("{}" in template for template in TEMPLATES)


def test_class_embedding_is_the_normalised_mean():
    model = small_model()
    prompts = np.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[1, 1], [2, 2]]], np.int32)
    z = encode_texts(model, prompts[1]).mean(axis=0)
    np.testing.assert_allclose(
        class_embeddings(model, prompts)[1], z / np.linalg.norm(z), atol=1e-6
    )


def test_zero_shot_picks_the_nearest_class():
    image_z = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    metrics = evaluate_zero_shot(image_z, np.eye(2), np.array([0, 1, 0]))
    assert metrics["zero_shot_accuracy"] == pytest.approx(2 / 3)
    assert metrics["zero_shot_macro_f1"] == pytest.approx(2 / 3)


def test_evaluate_reports_all_and_the_mean_loss_of_full_batches():
    model, data = small_model(), small_batch(7)
    prompts = np.arange(1, 25, dtype=np.int32).reshape(3, 2, 4)
    metrics = evaluate(model, data, prompts=prompts, batch_size=3)
    losses = [
        float(clip_loss(*forward(model, {k: v[i : i + 3] for k, v in data.items()})))
        for i in (0, 3)
    ]
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert {"i2t_r1", "t2i_medr", "zero_shot_macro_f1"} <= set(metrics)
    assert all(isinstance(value, float) for value in metrics.values())


def test_a_split_smaller_than_a_batch_has_a_loss():
    model, data = small_model(), small_batch(2)
    metrics = evaluate(model, data, loss="siglip", batch_size=3)
    assert np.isfinite(metrics["loss"])
    assert "zero_shot_accuracy" not in metrics
