import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_opt.losses.captioning import captioning_loss
from meta_opt.losses.contrastive import LOSSES, clip_loss, siglip_loss


def unit_rows(seed, shape=(5, 3)):
    z = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


X, Y = unit_rows(0), unit_rows(1)


def naive_clip(x, y, scale):
    total = 0.0
    for logits in (scale * x @ y.T, scale * y @ x.T):
        for i, row in enumerate(np.asarray(logits, np.float64)):
            total -= np.log(np.exp(row[i]) / np.exp(row).sum())
    return total / (2 * len(x))


def naive_siglip(x, y, scale, bias):
    total = 0.0
    for i in range(len(x)):
        for j in range(len(y)):
            sign = 1 if i == j else -1
            logit = sign * (scale * float(x[i] @ y[j]) + bias)
            total -= np.log(1 / (1 + np.exp(-logit)))
    return total / len(x)


def test_clip_equals_naive_loop():
    np.testing.assert_allclose(clip_loss(X, Y, 7.0), naive_clip(X, Y, 7.0), rtol=1e-5)


def test_siglip_equals_naive_loop():
    np.testing.assert_allclose(
        siglip_loss(X, Y, 7.0, -2.0), naive_siglip(X, Y, 7.0, -2.0), rtol=1e-5
    )


def test_clip_at_uninformative_embeddings_is_log_batch():
    same = np.ones((5, 1), np.float32)
    np.testing.assert_allclose(clip_loss(same, same, 10.0), np.log(5), rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_finite_at_extreme_logits(name):
    value, grads = jax.value_and_grad(LOSSES[name], argnums=(0, 1, 2))(
        jnp.asarray(X), jnp.asarray(-X), 1e4, 0.0
    )
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_embeddings_give_float32_loss(name):
    z = jnp.asarray(X, jnp.bfloat16)
    assert LOSSES[name](z, z, 10.0, -10.0).dtype == jnp.float32


def test_shapes_that_differ_are_an_error():
    with pytest.raises(ValueError, match=r"\(5, 3\).*\(4, 3\)"):
        clip_loss(X, Y[:4], 1.0)


def captions():
    rng = np.random.default_rng(0)
    hidden, embedding = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((3, 7, 4), (11, 4))
    )
    targets = rng.integers(0, 11, (3, 7), np.int32)
    return hidden, embedding, targets, rng.random((3, 7)) < 0.6


@pytest.mark.parametrize("chunk_length", [1, 3, 7, 100])
def test_captioning_in_chunks_is_the_plain_cross_entropy(chunk_length):
    hidden, embedding, targets, mask = captions()

    def plain(hidden, embedding):
        logits = jax.nn.log_softmax(hidden @ embedding.T)
        found = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return -jnp.sum(found * mask) / mask.sum()

    def chunked(hidden, embedding):
        return captioning_loss(hidden, embedding, targets, mask, chunk_length)

    found, expected = (
        jax.value_and_grad(f, argnums=(0, 1))(hidden, embedding)
        for f in (chunked, plain)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        expected,
    )


def test_captioning_holds_the_logits_of_a_chunk_only():
    """Of 64 places in chunks of 4, forward and backward: no [2, 64, 5000] anywhere."""
    hidden, embedding = jnp.zeros((2, 64, 8)), jnp.zeros((5000, 8))
    targets, mask = jnp.zeros((2, 64), jnp.int32), jnp.ones((2, 64), bool)
    step = jax.jit(jax.grad(captioning_loss, argnums=(0, 1)), static_argnums=4)
    used = {
        length: step.lower(hidden, embedding, targets, mask, length)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for length in (4, 64)
    }
    logits_bytes = 2 * 64 * 5000 * 4
    assert used[64] > logits_bytes > 2 * used[4]


def test_captioning_sums_the_gradient_of_a_float32_embedding_in_float32():
    """Of equal terms a sum in bfloat16 stops growing at the 256th."""
    hidden, embedding, targets, _ = captions()
    hidden, targets = (
        jnp.tile(x[:1, :1], (1, 1024, 1)[: x.ndim]) for x in (hidden, targets)
    )
    mask, grad = jnp.ones((1, 1024), bool), jax.grad(captioning_loss, argnums=1)
    exact = grad(hidden, embedding, targets, mask, 1)
    low = grad(hidden.astype(jnp.bfloat16), embedding, targets, mask, 1)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, exact, atol=0.02)
    assert np.abs(exact).max() > 0.5


def test_captioning_without_tokens_is_zero_and_has_a_finite_gradient():
    hidden, embedding, targets, mask = captions()
    value, grads = jax.value_and_grad(captioning_loss)(
        hidden, embedding, targets, np.zeros_like(mask)
    )
    assert value == 0 and not np.any(grads)


def test_captioning_errors():
    hidden, embedding, targets, mask = captions()
    with pytest.raises(ValueError, match=r"targets \(3, 6\)"):
        captioning_loss(hidden, embedding, targets[:, 1:], mask)
    with pytest.raises(ValueError, match="chunk_length=0"):
        captioning_loss(hidden, embedding, targets, mask, 0)
