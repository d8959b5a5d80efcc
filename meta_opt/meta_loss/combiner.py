r"""The MELTR network, which combines several losses by a transformer layer.

Each loss becomes a token,

.. math:: x_t = W_2 \operatorname{relu}(W_1 l_t + b_1) + b_2 + e_t,

with a learned embedding :math:`e_t` for each loss. One post-LN transformer encoder
layer (ReLU, dropout) reads the tokens, and a linear map without bias reduces their
mean to a scalar (Ko et al. 2023, arXiv:2303.13009). The scalar is not constrained to be
positive, nor to increase with the losses.

**At initialisation** both signs of the readout are equally likely, and so are both
signs of :math:`\partial c / \partial l_t`. Over 200 seeds of the published shapes, at
losses of 1, half of the derivatives are negative, and for three to five of ten seeds
all are: the model then *ascends* its losses until the meta-steps have reversed that.
The RMS of the derivatives is 0.016 (8 losses) to 0.07 (2 losses). Layer normalisation
bounds the value, so that the derivatives shrink as losses grow: at losses of 50 they
are 0.003 to 0.004, and the value cannot approach the sum. ``residual=True`` starts at
the sum of the losses instead, where every derivative is exactly 1: it adds the sum to a
network whose readout is initialised to zero.

Pure functions on a pytree, so that they compose with `jax.jvp`, `jax.vmap` and
sharding. They compute in float32 at full matmul precision; there are only T tokens.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from meta_opt.meta_loss.masking import present_losses, zero_absent
from meta_opt.types import PyTree

_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class CombinerConfig:
    """Shape of the MELTR network.

    Attributes:
        num_losses: T, number of losses.
        hidden_size: h1, hidden units of the map from a loss to its token.
        width: D, width of the tokens.
        ffn_size: F, hidden units of the encoder layer's MLP.
        num_heads: H, number of attention heads; a divisor of ``width``.
        dropout: dropout rate of attention weights, both residual branches and the MLP's
            hidden units; only applied if ``combine`` gets a key.
        residual: whether the network, with a zero-initialised readout, is added to the
            sum of the losses. The published network has no residual.
    """

    num_losses: int
    hidden_size: int = 128
    width: int = 256
    ffn_size: int = 512
    num_heads: int = 8
    dropout: float = 0.1
    residual: bool = False

    def __post_init__(self) -> None:
        """Checks sizes and ranges."""
        sizes = ("num_losses", "hidden_size", "width", "ffn_size", "num_heads")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.width % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide width={self.width}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1)")


def init_combiner(config: CombinerConfig, key: jax.Array) -> PyTree:
    r"""Initialises the parameters of the network as PyTorch's modules do.

    Linear maps and their biases are uniform in :math:`\pm 1/\sqrt{n}` of their fan-in
    :math:`n`, the kernels of query, key and value in :math:`\pm\sqrt{1.5/D}`, biases of
    attention are zero, embeddings are standard normal, as in the released code.

    Args:
        config: configuration of the network.
        key: random key.

    Returns:
        Nested dict of float32 arrays: ``embed`` and ``token`` (the map from a loss to
        its token), ``losses`` (embeddings [T, D]), ``query``, ``key``, ``value``,
        ``out``, ``attention_norm``, ``up``, ``down``, ``mlp_norm`` and ``readout`` [D].

    >>> phi = init_combiner(CombinerConfig(num_losses=2), jax.random.key(0))
    >>> sum(x.size for x in jax.tree.leaves(phi))
    561152
    """
    width = config.width
    keys = iter(jax.random.split(key, 15))

    def uniform(bound: float, *shape: int) -> jax.Array:
        return jax.random.uniform(next(keys), shape, minval=-bound, maxval=bound)

    def linear(inputs: int, outputs: int) -> dict[str, jax.Array]:
        bound = inputs**-0.5
        return {
            "kernel": uniform(bound, inputs, outputs),
            "bias": uniform(bound, outputs),
        }

    def attention(bound: float) -> dict[str, jax.Array]:
        return {"kernel": uniform(bound, width, width), "bias": jnp.zeros(width)}

    def norm() -> dict[str, jax.Array]:
        return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

    readout = uniform(width**-0.5, width)
    return {
        "embed": linear(1, config.hidden_size),
        "token": linear(config.hidden_size, width),
        "losses": jax.random.normal(next(keys), (config.num_losses, width)),
        "query": attention((1.5 / width) ** 0.5),
        "key": attention((1.5 / width) ** 0.5),
        "value": attention((1.5 / width) ** 0.5),
        "out": attention(width**-0.5),
        "attention_norm": norm(),
        "up": linear(width, config.ffn_size),
        "down": linear(config.ffn_size, width),
        "mlp_norm": norm(),
        "readout": jnp.zeros(width) if config.residual else readout,
    }


def combine(
    config: CombinerConfig,
    phi: PyTree,
    losses: jax.Array,
    *,
    mask: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Computes MELTR(l; phi), the network's value for ``losses``.

    A loss that is masked or not finite has no token: neither attention nor the mean
    reads it, and the derivative with respect to it is 0. Without any token the value
    is 0.

    Args:
        config: configuration that ``phi`` was initialised with.
        phi: parameters from `init_combiner`.
        losses: losses [T].
        mask: bool [T], False for losses to leave out; None to use all.
        dropout_key: random key of dropout; None for no dropout.

    Returns:
        A scalar, float32.

    Raises:
        ValueError: ``losses`` does not have the shape [T].
    """
    count = config.num_losses
    check_losses(losses, count)
    present = present_losses(losses, mask)
    safe = zero_absent(losses, present)
    keys = None if dropout_key is None else jax.random.split(dropout_key, 4)

    def dropout(x: jax.Array, place: int) -> jax.Array:
        if keys is None or not config.dropout:
            return x
        kept = jax.random.bernoulli(keys[place], 1 - config.dropout, x.shape)
        return jnp.where(kept, x / (1 - config.dropout), 0)

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(count, config.num_heads, -1)

    hidden = jax.nn.relu(_linear(phi["embed"], safe[:, None]))
    tokens = _linear(phi["token"], hidden) + phi["losses"]

    query, key, value = (heads(_linear(phi[x], tokens)) for x in _ATTENTION)
    scores = _product("qhd,khd->hqk", query, key) * query.shape[-1] ** -0.5
    # Lowest finite number, not -inf, so that a softmax over no tokens stays finite.
    lowest = jnp.finfo(scores.dtype).min
    scores = jnp.where(present[None, None, :], scores, lowest)
    attention = dropout(jax.nn.softmax(scores), 0)
    mixed = _product("hqk,khd->qhd", attention, value).reshape(count, -1)
    mixed = dropout(_linear(phi["out"], mixed), 1)
    tokens = _layer_norm(phi["attention_norm"], tokens + mixed)

    hidden = dropout(jax.nn.relu(_linear(phi["up"], tokens)), 2)
    hidden = dropout(_linear(phi["down"], hidden), 3)
    tokens = _layer_norm(phi["mlp_norm"], tokens + hidden)

    total = jnp.sum(jnp.where(present[:, None], tokens, 0), axis=0)
    mean = total / jnp.maximum(jnp.sum(present), 1)
    combined = _product("d,d->", mean, phi["readout"])
    return combined + jnp.sum(safe) if config.residual else combined


def check_losses(losses: jax.Array, count: int) -> None:
    """Raises ValueError if ``losses`` does not have the shape [``count``]."""
    if losses.shape != (count,):
        raise ValueError(
            f"a combiner of {count} losses got losses of shape {losses.shape}; stack "
            f"them to [{count}], num_losses of its configuration"
        )


_ATTENTION = ("query", "key", "value")


def _product(equation: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(equation, *operands, precision=jax.lax.Precision.HIGHEST)


def _linear(parameters: Any, x: jax.Array) -> jax.Array:
    """Applies a linear map, [T, in] to [T, out]."""
    return _product("ti,io->to", x, parameters["kernel"]) + parameters["bias"][None, :]


def _layer_norm(parameters: Any, x: jax.Array) -> jax.Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(variance + _EPSILON)
    return unit * parameters["scale"][None, :] + parameters["bias"][None, :]
