import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
