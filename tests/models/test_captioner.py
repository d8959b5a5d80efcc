"""The captioner and what the heads of a multimodal model share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from meta_opt.models.captioner import Captioner, CaptionerConfig
from meta_opt.models.fusion import FusionConfig, Tokens

FUSION = FusionConfig(width=16, depth=1, heads=2, mlp_width=32)
CONFIG = CaptionerConfig(vocab_size=11, width=16, depth=2, heads=2)


@pytest.fixture(scope="module")
def captioner():
    return nnx.jit(lambda: Captioner(CONFIG, FUSION, rngs=nnx.Rngs(0)))()


def fused(batch=3, places=5):
    x = jax.random.normal(jax.random.key(0), (batch, places, 16))
    return Tokens(x, jnp.ones((batch, places), bool).at[0, 3:].set(False))


TEXT = jnp.array([[4, 5, 6, 3], [7, 3, 0, 0], [8, 9, 3, 0]])


def test_a_token_is_predicted_from_what_is_before_it(captioner):
    before = captioner.logits(fused(), TEXT)
    assert before.shape == (3, 4, 11) and before.dtype == jnp.float32
    changed = captioner.logits(fused(), TEXT.at[0, 2].set(10))
    np.testing.assert_allclose(changed[0, :3], before[0, :3], atol=1e-5)
    assert float(jnp.max(jnp.abs(changed[0, 3] - before[0, 3]))) > 1e-4
    # What is not there is not read.
    moved = fused()._replace(x=fused().x.at[0, 4].add(5.0))
    np.testing.assert_allclose(captioner.logits(moved, TEXT), before, atol=1e-5)
    read = fused()._replace(x=fused().x.at[0, 1].add(5.0))
    assert float(jnp.max(jnp.abs(captioner.logits(read, TEXT)[0] - before[0]))) > 1e-4


def test_writing_takes_the_likeliest_token_each_time(captioner):
    graphdef, params = nnx.split(captioner)

    @jax.jit
    def next_logits(tokens, row):
        """Of the token after the first ones; what follows them is not read."""
        model = nnx.merge(graphdef, params)
        text = jnp.pad(tokens[None], ((0, 0), (0, 1)), constant_values=1)
        only = jax.tree.map(lambda x: x[row][None], fused())
        return model.logits(only, text)[0]

    written = jax.jit(lambda p: nnx.merge(graphdef, p).write(fused(), 6))(params)
    for row in range(3):
        tokens = []
        while len(tokens) < 6 and 3 not in tokens:
            padded = jnp.array([*tokens, *[1] * (6 - len(tokens))])
            logits = next_logits(padded, row)[len(tokens)]
            tokens.append(int(jnp.argmax(logits.at[0].set(-jnp.inf))))
        assert written[row].tolist() == [*tokens, *[0] * (6 - len(tokens))]


def test_errors_name_the_sizes():
    with pytest.raises(ValueError, match="end_id=3 must be tokens of"):
        CaptionerConfig(vocab_size=3)
    with pytest.raises(ValueError, match="heads=3"):
        CaptionerConfig(vocab_size=11, width=16, heads=3)
