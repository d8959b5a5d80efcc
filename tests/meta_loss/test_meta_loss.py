"""Combiners and hypergradients: closed forms, oracles in numpy, and invariants."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from meta_opt.meta_loss import combiner as network
from meta_opt.meta_loss.balancers import COMBINERS, make_combiner
from meta_opt.meta_loss.combiner import CombinerConfig, init_combiner
from meta_opt.meta_loss.hypergradients import (
    HYPERGRADIENTS,
    HypergradientConfig,
    inner_product,
    make_hypergradient,
)
from meta_opt.meta_loss.masking import present_losses
from meta_opt.meta_loss.meta_gradient import meta_direction, meta_gradient
from meta_opt.meta_loss.preconditioners import (
    adam_preconditioner,
    update_preconditioner,
)
from meta_opt.meta_loss.regulariser import sum_regulariser
from meta_opt.meta_loss.settings import PUBLISHED, MetaLossConfig, published
from meta_opt.types import from_config

# One program each time; outside of one, every operation is a program of its own.
combine = jax.jit(network.combine, static_argnums=0)


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def small(num_losses, **changes):
    return CombinerConfig(
        num_losses, hidden_size=16, width=32, ffn_size=24, num_heads=8, **changes
    )


@functools.cache
def initialised(config, seed):
    return jax.jit(functools.partial(init_combiner, config))(jax.random.key(seed))


def init(config, seed=0):
    return {**initialised(config, seed)}


def hypergradient(kind, precondition=None, **settings):
    """A method, compiled."""
    method = make_hypergradient(HypergradientConfig(kind, **settings), precondition)

    def compiled(losses_fn, combiner, *arrays):
        return jax.jit(functools.partial(method, losses_fn, combiner))(*arrays)

    return compiled


def meta(losses_fn, combiner, *arrays, **settings):
    """The meta-gradient, compiled."""
    compute = functools.partial(meta_gradient, losses_fn, combiner, **settings)
    return jax.jit(compute)(*arrays)


def flat(tree):
    return np.concatenate(
        [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
    )


def difference(found, expected):
    """Norm of the difference over the norm of ``expected``."""
    found, expected = flat(found), flat(expected)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# The network.


def numpy_combine(config, phi, losses, kept=(1.0, 1.0, 1.0, 1.0)):
    """The network in numpy, head by head; ``kept``: dropout's factors."""
    phi = jax.tree.map(lambda x: np.asarray(x, np.float64), phi)
    losses = np.asarray(losses, np.float64)
    heads, width = config.num_heads, config.width
    size = width // heads

    def linear(name, x):
        return x @ phi[name]["kernel"] + phi[name]["bias"]

    def layer_norm(name, x):
        mean, variance = x.mean(1, keepdims=True), x.var(1, keepdims=True)
        unit = (x - mean) / np.sqrt(variance + 1e-5)
        return unit * phi[name]["scale"] + phi[name]["bias"]

    x = linear("token", np.maximum(linear("embed", losses[:, None]), 0))
    x = x + phi["losses"]
    q, k, v = (linear(name, x) for name in ("query", "key", "value"))
    out = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(size))
        attention = scores / scores.sum(1, keepdims=True)
        factor = kept[0] if np.ndim(kept[0]) == 0 else kept[0][h]
        out.append((factor * attention) @ v[:, part])
    x = layer_norm("attention_norm", x + kept[1] * linear("out", np.hstack(out)))
    hidden = kept[2] * np.maximum(linear("up", x), 0)
    x = layer_norm("mlp_norm", x + kept[3] * linear("down", hidden))
    return x.mean(0) @ phi["readout"]


@pytest.mark.parametrize("num_losses", [1, 2, 8])
def test_the_network_is_the_papers(num_losses):
    config = small(num_losses)
    phi = init(config)
    losses = np.random.default_rng(1).uniform(0, 4, num_losses).astype(np.float32)
    value, grad = jax.value_and_grad(functools.partial(combine, config, phi))(losses)
    assert float(value) == pytest.approx(numpy_combine(config, phi, losses), abs=1e-6)
    step = 1e-5
    for t in range(num_losses):
        ahead, behind = np.array(losses, float), np.array(losses, float)
        ahead[t] += step
        behind[t] -= step
        slope = numpy_combine(config, phi, ahead) - numpy_combine(config, phi, behind)
        assert float(grad[t]) == pytest.approx(slope / (2 * step), abs=1e-6)


def test_dropout_is_where_the_encoder_layer_has_it():
    config = small(3, dropout=0.25)
    phi = init(config)
    losses, key = jnp.array([0.5, 2.0, 1.0]), jax.random.key(5)
    shapes = ((8, 3, 3), (3, 32), (3, 24), (3, 32))

    @jax.jit
    def draws(key):
        keys = jax.random.split(key, 4)
        pairs = zip(keys, shapes, strict=True)
        return [jax.random.bernoulli(k, 0.75, shape) for k, shape in pairs]

    kept = [np.asarray(x) / 0.75 for x in draws(key)]
    assert all(0.5 < (x > 0).mean() < 1 for x in kept)
    found = combine(config, phi, losses, dropout_key=key)
    expected = numpy_combine(config, phi, losses, kept)
    assert float(found) == pytest.approx(expected, abs=1e-6)
    assert abs(float(combine(config, phi, losses)) - expected) > 1e-3


def test_losses_and_their_embeddings_are_a_set():
    config, order = small(5), jnp.array([3, 0, 4, 1, 2])
    phi = init(config)
    losses = jnp.array([0.5, jnp.nan, 1.0, 3.0, 0.1])
    permuted = {**phi, "losses": phi["losses"][order]}
    found = combine(config, permuted, losses[order])
    assert float(found) == pytest.approx(float(combine(config, phi, losses)), abs=1e-6)
    other = combine(config, phi, losses[order])
    assert abs(float(found) - float(other)) > 1e-3


@pytest.mark.parametrize(
    ("by", "residual"),
    [
        ("value", False),
        ("mask", True),
        pytest.param("value", True, marks=pytest.mark.slow),
        pytest.param("mask", False, marks=pytest.mark.slow),
    ],
)
def test_without_a_loss_the_others_are_combined(residual, by):
    config, few = small(4, residual=residual), small(3, residual=residual)
    phi = init(config)
    phi["readout"] = np.random.default_rng(1).normal(size=32).astype(np.float32)
    others, keep = jnp.array([0.5, 2.0, 1.0]), np.array([0, 2, 3])
    losses = jnp.array([0.5, jnp.nan if by == "value" else 7.0, 2.0, 1.0])
    mask = None if by == "value" else jnp.array([True, False, True, True])
    fewer = {**phi, "losses": phi["losses"][keep]}
    found = jax.value_and_grad(
        lambda phi, x: combine(config, phi, x, mask=mask), argnums=(0, 1)
    )(phi, losses)
    expected = jax.value_and_grad(functools.partial(combine, few), argnums=(0, 1))(
        fewer, others
    )
    assert float(found[0]) == pytest.approx(float(expected[0]), abs=1e-6)
    (phi_grad, grad), (few_grad, few_losses_grad) = found[1], expected[1]
    np.testing.assert_allclose(grad[keep], few_losses_grad, atol=1e-6)
    assert grad[1] == 0 and not np.any(phi_grad["losses"][1])
    phi_grad = {**phi_grad, "losses": phi_grad["losses"][keep]}
    assert difference(phi_grad, few_grad) < 1e-6
    assert present_losses(losses, mask).tolist() == [True, False, True, True]


@pytest.mark.parametrize("name", COMBINERS)
def test_without_any_loss_nothing_is_combined(name):
    combiner = make_combiner(name, small(2))
    phi = jax.jit(combiner.init)(jax.random.key(0))
    value, grads = jax.jit(jax.value_and_grad(combiner.apply, argnums=(0, 1)))(
        phi, jnp.array([jnp.nan, -jnp.inf])
    )
    assert float(value) == 0 and not np.any(flat(grads))


def test_a_residual_combiner_begins_at_the_sum():
    config = small(3, residual=True)
    phi = init(config)
    losses = jnp.array([0.5, 2.0, 1.0])
    value, grad = jax.value_and_grad(functools.partial(combine, config, phi))(losses)
    assert float(value) == 3.5 and grad.tolist() == [1.0, 1.0, 1.0]
    # And it can leave it: only the readout has a gradient at first.
    c = jnp.array([1.0, -1.0, 0.5])
    found = jax.jit(
        jax.grad(
            lambda phi: jnp.vdot(
                c, jax.grad(functools.partial(combine, config, phi))(losses)
            )
        )
    )(phi)
    assert np.linalg.norm(found.pop("readout")) > 1e-2 and not np.any(flat(found))


@pytest.mark.slow
def test_a_new_network_ascends_half_of_its_losses():
    """What the docstring says of the published network; see `residual`."""
    config = PUBLISHED["all_in_one"].network

    def slopes(key):
        phi = init_combiner(config, key)
        return jax.grad(functools.partial(combine, config, phi))(jnp.ones(2))

    found = jax.jit(jax.vmap(slopes))(jax.random.split(jax.random.key(0), 200))
    assert 0.4 < np.mean(np.asarray(found) < 0) < 0.6
    assert 0.3 < np.mean(np.all(np.asarray(found) < 0, axis=1)) < 0.6
    assert 0.04 < float(jnp.sqrt(jnp.mean(found**2))) < 0.1


@pytest.mark.parametrize(
    "name, count",
    [
        ("univl", 562_688),
        ("violet_retrieval", 1_712_128),
        ("violet_qa", 430_336),
        ("all_in_one", 116_736),
    ],
)
def test_published_sizes(name, count):
    c = PUBLISHED[name].network
    t, h, d, f = c.num_losses, c.hidden_size, c.width, c.ffn_size
    token = (h + h) + (h * d + d) + t * d
    layer = 4 * (d * d + d) + 2 * 2 * d + (d * f + f) + (f * d + d)
    assert token + layer + d == count
    phi = jax.eval_shape(functools.partial(init_combiner, c), jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(phi)) == count


def test_published_settings():
    found = {
        name: (
            c.network.num_losses,
            c.interval,
            c.meta_optimizer,
            c.learning_rate,
            c.weight_decay,
            c.clip_norm,
            c.gamma,
        )
        for name, c in PUBLISHED.items()
    }
    assert found == {
        "univl": (8, 3, "adam", 1e-3, 3e-5, 50, 0.1),
        "violet_retrieval": (3, 3, "adamw", 3e-6, 1e-3, 12, 0.1),
        "violet_qa": (4, 3, "adamw", 1e-4, 1e-4, 12, 0.1),
        "all_in_one": (2, 5, "adam", 1e-4, 3e-5, 1, 0.1),
    }
    assert published("univl", 5).network == dataclasses.replace(
        PUBLISHED["univl"].network, num_losses=5
    )


# Other combiners.


def test_plain_combiners():
    config, losses = small(3), jnp.array([1.0, jnp.nan, 3.0])
    mask = jnp.array([True, True, True])
    value = {}
    for name, weights in (
        ("fixed", (0.5, 1.0, 2.0)),
        ("linear", (0.5, 1.0, 2.0)),
        ("equal", None),
        ("uncertainty", None),
    ):
        combiner = make_combiner(name, config, weights)
        phi = combiner.init(jax.random.key(0))
        apply = jax.jit(combiner.apply)
        value[name] = float(apply(phi, losses, mask=mask))
        grad = jax.grad(apply, argnums=1)(phi, losses)
        assert np.all(np.isfinite(grad)) and grad[1] == 0
    assert value == {"fixed": 6.5, "linear": 6.5, "equal": 2.0, "uncertainty": 2.0}
    s = jnp.array([0.5, 9.0, -1.0])
    combiner = make_combiner("uncertainty", config)
    apply = jax.jit(combiner.apply)
    grad = jax.grad(apply)({"log_variances": s}, losses)["log_variances"]
    expected = [0.5 - 0.5 * np.exp(-0.5), 0.0, 0.5 - 1.5 * np.e]
    np.testing.assert_allclose(grad, expected, rtol=1e-6)
    training = [make_combiner(name, config).training for name in COMBINERS]
    assert training == ["meta", "meta", "joint", "none", "none"]


def test_the_regulariser():
    losses = jnp.array([1.0, jnp.nan, 2.0])
    assert float(sum_regulariser(losses, jnp.array(1.0), 0.1)) == pytest.approx(0.2)
    assert float(sum_regulariser(losses, jnp.array(5.0), 0.1)) == pytest.approx(0.2)
    mask = jnp.array([True, True, False])
    assert float(sum_regulariser(losses, jnp.array(5.0), 1.0, mask)) == 4.0
    grad = jax.grad(sum_regulariser)(losses, jnp.array(1.0), 0.5)
    assert grad.tolist() == [0.5, 0.0, 0.5]


# Hypergradients.


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def mlp(num_losses, rng):
    w = {"up": normal(rng, 6, 16) / 2, "down": normal(rng, 16, num_losses) / 4}
    x, y = normal(rng, 12, 6), normal(rng, 12, num_losses)
    return w, lambda w: jnp.mean((jnp.tanh(x @ w["up"]) @ w["down"] - y) ** 2, axis=0)


def attention(num_losses, rng):
    w = {name: normal(rng, 8, 8) / 3 for name in "qkvo"}
    x, y = normal(rng, 3, 5, 8), normal(rng, 3, 5, num_losses)

    def losses(w):
        scores = jnp.einsum("bsd,btd->bst", x @ w["q"], x @ w["k"])
        mixed = jax.nn.softmax(scores) @ (x @ w["v"])
        out = (jax.nn.gelu(mixed) @ w["o"])[..., :num_losses]
        return jnp.mean(optax.huber_loss(out, y), axis=(0, 1))

    return w, losses


def convolution(num_losses, rng):
    w = [normal(rng, 3, 3, 2, 4) / 4, normal(rng, 4, 3 * num_losses) / 2]
    x = normal(rng, 4, 6, 6, 2)
    y = rng.integers(0, 3, (4, num_losses))

    def losses(w):
        layout = ("NHWC", "HWIO", "NHWC")
        x1 = jax.lax.conv_general_dilated(
            x, w[0], (1, 1), "SAME", dimension_numbers=layout
        )
        pooled = jnp.mean(jax.nn.silu(x1), axis=(1, 2))
        logits = (pooled @ w[1]).reshape(4, num_losses, 3)
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(logits, y), axis=0
        )

    return w, losses


NETS = {"mlp": mlp, "attention": attention, "convolution": convolution}


def problem(net, num_losses, seed=0):
    """Weights, losses, combiner, phi and a direction."""
    rng = np.random.default_rng(seed)
    w, losses_fn = NETS[net](num_losses, rng)
    config = small(num_losses)
    v = jax.tree.map(lambda x: normal(rng, *x.shape), w)
    combiner = functools.partial(combine, config)
    return jax.jit(losses_fn), combiner, init(config), w, v


@pytest.mark.parametrize("num_losses", [2, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "net",
    [
        pytest.param(x, marks=pytest.mark.slow) if x == "convolution" else x
        for x in NETS
    ],
)
def test_forward_mode_equals_double_backward(net, num_losses):
    losses_fn, combiner, phi, w, v = problem(net, num_losses)
    found = {
        kind: hypergradient(kind)(losses_fn, combiner, phi, w, v)
        for kind in ("jvp", "double_backward", "finite_differences")
    }
    exact = found["jvp"]
    assert difference(exact.gradient, found["double_backward"].gradient) < 1e-6
    np.testing.assert_allclose(
        exact.tangents, found["double_backward"].tangents, rtol=1e-5, atol=1e-6
    )
    assert difference(found["finite_differences"].gradient, exact.gradient) < 1e-2
    np.testing.assert_array_equal(exact.losses, losses_fn(w))
    # The sum of the losses' tangents, by their weights, is the combined loss's.
    weights = jax.grad(combiner, argnums=1)(phi, exact.losses)
    whole = jax.jit(jax.grad(lambda w: combiner(phi, losses_fn(w))))(w)
    assert float(jnp.vdot(weights, exact.tangents)) == pytest.approx(
        float(inner_product(whole, v)), rel=1e-4
    )


def quadratics(num_losses=3, size=4, seed=0):
    """A [T, n, n] and b [T, n] of losses |A w - b|^2 / 2, the target p, phi, w."""
    rng = np.random.default_rng(seed)
    matrices = np.eye(size) + 0.3 * rng.normal(size=(num_losses, size, size))
    b, p, w = rng.normal(size=(num_losses, size)), *rng.normal(size=(2, size))
    return matrices, b, p, rng.uniform(0.5, 1.5, num_losses), w


def quadratic_losses(matrices, b):
    a, b = jnp.asarray(matrices, jnp.float32), jnp.asarray(b, jnp.float32)
    return lambda w: 0.5 * jnp.sum((jnp.einsum("tij,j->ti", a, w) - b) ** 2, axis=1)


def weighted(phi, losses):
    return jnp.sum(phi * losses)


@pytest.mark.parametrize("kind", ["jvp", "double_backward", "finite_differences"])
def test_one_step_of_a_quadratic(kind):
    r"""The hypergradient is the derivative through one step, sign included.

    With l_t(w) = |A_t w - b_t|^2 / 2, the combined loss sum_t phi_t l_t, and the
    meta-objective L(w) = |w - p|^2 / 2 after one step of size s,

        w'(phi) = w - s sum_t phi_t A_t' (A_t w - b_t),
        F(phi) = L(w'(phi)),
        dF/dphi_t = <w' - p, dw'/dphi_t> = -s <w' - p, A_t' (A_t w - b_t)>.

    That is s g_t with v = grad L(w') = w' - p. F is quadratic in phi, so its central
    difference is exact but for rounding.
    """
    matrices, b, p, phi, w = quadratics()
    step = 0.1

    def after(phi):
        residual = np.einsum("tij,j->ti", matrices, w) - b
        return w - step * np.einsum("t,tij,ti->j", phi, matrices, residual)

    numeric = []
    for t in range(len(phi)):
        ahead, behind = (phi + x * np.eye(len(phi))[t] for x in (0.1, -0.1))
        values = [0.5 * np.sum((after(x) - p) ** 2) for x in (ahead, behind)]
        numeric.append((values[0] - values[1]) / 0.2)
    found = hypergradient(kind)(
        quadratic_losses(matrices, b),
        weighted,
        jnp.asarray(phi, jnp.float32),
        jnp.asarray(w, jnp.float32),
        jnp.asarray(after(phi) - p, jnp.float32),
    )
    tolerance = 1e-3 if kind == "finite_differences" else 1e-5
    np.testing.assert_allclose(step * found.gradient, numeric, rtol=tolerance)


def test_one_step_with_the_network():
    """As for quadratics, by automatic differentiation through the step."""
    losses_fn, combiner, phi, w, _ = problem("mlp", 3)
    step = 0.5

    def after(phi):
        grads = jax.grad(lambda w: combiner(phi, losses_fn(w)))(w)
        return jax.tree.map(lambda x, g: x - step * g, w, grads)

    def objective(w):
        return losses_fn(w)[0]

    expected = jax.jit(jax.grad(lambda phi: objective(after(phi))))(phi)
    found = hypergradient("jvp")(
        losses_fn, combiner, phi, w, jax.jit(jax.grad(objective))(after(phi))
    )
    scaled = jax.tree.map(lambda g: step * g, found.gradient)
    assert difference(scaled, expected) < 1e-5


def test_neumann_is_implicit_differentiation():
    r"""At the minimum of a quadratic the series gives the implicit function's answer.

    w*(phi) minimises sum_t phi_t l_t, so with H = sum_t phi_t A_t' A_t,

        w* = H^-1 sum_t phi_t A_t' b_t,     dw*/dphi_t = -H^-1 grad l_t(w*),
        dF/dphi_t = -<grad l_t(w*), H^-1 (w* - p)>.

    The truncated series is eta sum_{k<K} (I - eta H)^k in place of H^-1.
    """
    matrices, b, p, phi, _ = quadratics()
    hessian = np.einsum("t,tij,tik->jk", phi, matrices, matrices)
    minimum = np.linalg.solve(hessian, np.einsum("t,tij,ti->j", phi, matrices, b))
    v = minimum - p
    residual = np.einsum("tij,j->ti", matrices, minimum) - b
    gradients = np.einsum("tij,ti->tj", matrices, residual)
    step = 1 / np.linalg.eigvalsh(hessian)[-1]
    shrink = np.eye(4) - step * hessian
    arguments = (
        quadratic_losses(matrices, b),
        weighted,
        *(jnp.asarray(x, jnp.float32) for x in (phi, minimum, v)),
    )

    def neumann(terms):
        method = hypergradient("neumann", terms=terms, step_size=float(step))
        return method(*arguments).gradient

    for terms in (1, 2, 5):
        powers = [np.linalg.matrix_power(shrink, k) for k in range(terms)]
        expected = -gradients @ (step * sum(powers) @ v)
        np.testing.assert_allclose(neumann(terms), expected, rtol=1e-4, atol=1e-5)
    exact = -gradients @ np.linalg.solve(hessian, v)
    assert difference(neumann(300), exact) < 1e-4
    # The minimum itself, moved: central differences of the closed form.
    for t in range(3):
        values = []
        for x in (1e-4, -1e-4):
            moved = phi + x * np.eye(3)[t]
            h = np.einsum("t,tij,tik->jk", moved, matrices, matrices)
            at = np.linalg.solve(h, np.einsum("t,tij,ti->j", moved, matrices, b))
            values.append(0.5 * np.sum((at - p) ** 2))
        assert exact[t] == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4)


def test_sama_is_the_preconditioned_direction():
    losses_fn, combiner, phi, w, v = problem("mlp", 3)
    tx = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(0.1, b2=0.9))
    state = tx.init(w)
    update = jax.jit(tx.update)
    for scale in (1.0, 3.0):
        grads = jax.tree.map(lambda x, s=scale: s * np.sin(10 * x), w)
        _, state = update(grads, state, w)
    adam = state[1][0]
    by_hand = jax.tree.map(
        lambda x, nu: x / (np.sqrt(nu / (1 - 0.9**2)) + 1e-8), v, adam.nu
    )
    precondition = adam_preconditioner(state, b2=0.9)
    found = hypergradient("sama", precondition)(losses_fn, combiner, phi, w, v)
    expected = hypergradient("jvp")(losses_fn, combiner, phi, w, by_hand)
    assert difference(found.gradient, expected.gradient) < 1e-6
    np.testing.assert_allclose(found.tangents, expected.tangents, rtol=1e-5)
    fresh = adam_preconditioner(tx.init(w))(v)
    assert difference(fresh, v) == 0


@pytest.mark.parametrize(
    "tx",
    [
        pytest.param(optax.adam(0.05), marks=pytest.mark.slow),
        optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.05)),
        pytest.param(optax.sgd(0.3, momentum=0.9), marks=pytest.mark.slow),
    ],
    ids=["adam", "clipped_adamw", "momentum"],
)
def test_sama_is_the_derivative_through_the_optimizers_step(tx):
    losses_fn, combiner, phi, w, v = problem("mlp", 3)
    _, state = jax.jit(tx.update)(v, tx.init(w), w)

    def train_gradient(phi):
        return jax.grad(lambda w: combiner(phi, losses_fn(w)))(w)

    def after(phi):
        updates, _ = tx.update(train_gradient(phi), state, w)
        return optax.apply_updates(w, updates)

    def objective(w):
        return losses_fn(w)[0]

    expected = jax.jit(jax.grad(lambda phi: objective(after(phi))))(phi)
    precondition = update_preconditioner(tx, state, jax.jit(train_gradient)(phi), w)
    direction = jax.jit(lambda phi: jax.grad(objective)(after(phi)))(phi)
    found = hypergradient("sama", precondition)(losses_fn, combiner, phi, w, direction)
    assert difference(found.gradient, expected) < 1e-5


@pytest.mark.slow
def test_parameters_without_gradient_do_not_matter_to_sama():
    """A row of an embedding that no example uses; Adam's root is not smooth at 0."""
    losses_fn, combiner, phi, w, v = problem("mlp", 3)
    tx = optax.adam(0.1)
    found = {}
    for unused in (0, 2):
        wide = {**w, "unused": jnp.ones(unused)}
        direction = {**v, "unused": jnp.ones(unused)}
        grads = jax.grad(lambda w: combiner(phi, losses_fn(w)))(wide)
        _, state = tx.update(grads, tx.init(wide), wide)
        for name, precondition in (
            ("adam", adam_preconditioner(state)),
            ("update", update_preconditioner(tx, state, grads, wide)),
        ):
            result = hypergradient("sama", precondition)(
                losses_fn, combiner, phi, wide, direction
            )
            found[name, unused] = result.gradient
            if name == "adam" and unused:
                assert not np.any(precondition(direction)["unused"])
    for name in ("adam", "update"):
        assert difference(found[name, 2], found[name, 0]) < 1e-6


@jax.custom_vjp
def square(x):
    return x**2


square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))


def test_custom_backward_passes():
    """No forward mode there, but double backward and differences."""
    x = normal(np.random.default_rng(0), 7, 5)
    combiner = functools.partial(combine, small(5))
    phi = init(small(5), 1)
    w, v = (np.linspace(start, 1, 7, dtype=np.float32) for start in (-1, 0))

    def plain(w):
        return jnp.sin(w @ x) ** 2

    def custom(w):
        return square(jnp.sin(w @ x))

    exact = hypergradient("jvp")(plain, combiner, phi, w, v).gradient
    found = hypergradient("double_backward")(custom, combiner, phi, w, v).gradient
    assert difference(found, exact) < 1e-6
    found = hypergradient("finite_differences")(custom, combiner, phi, w, v).gradient
    assert difference(found, exact) < 1e-2
    with pytest.raises(TypeError, match="forward-mode"):
        hypergradient("jvp")(custom, combiner, phi, w, v)


# The meta-gradient.


class Net(nnx.Module):
    """A trunk with a head for each loss; a dropped-out input, recomputed or not."""

    def __init__(self, num_losses, dtype, rngs):
        self.up = nnx.Linear(6, 16, param_dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(16, num_losses, param_dtype=jnp.float32, rngs=rngs)

    def __call__(self, x):
        return self.down(jax.nn.gelu(self.up(x)))


def batch(seed, num_losses=3, size=16):
    rng = np.random.default_rng(seed)
    return {
        "x": normal(rng, size, 6),
        "y": normal(rng, size, num_losses),
        "available": np.ones(num_losses, bool),
        "key": jax.random.key(seed),
    }


def net_losses(dtype=jnp.float32, num_losses=3, remat=False):
    """Parameters (an `nnx.State`) and ``(w, batch) -> losses``."""
    graph, w = nnx.split(nnx.jit(lambda: Net(num_losses, dtype, nnx.Rngs(0)))())

    def outputs(w, x):
        return nnx.merge(graph, w)(x)

    outputs = jax.checkpoint(outputs) if remat else outputs

    def losses_fn(w, batch):
        kept = jax.random.bernoulli(batch["key"], 0.8, batch["x"].shape)
        out = outputs(w, jnp.where(kept, batch["x"] / 0.8, 0))
        losses = jnp.mean((out.astype(jnp.float32) - batch["y"]) ** 2, axis=0)
        return jnp.where(batch["available"], losses, jnp.nan)

    return w, jax.jit(losses_fn)


BATCHES = (batch(1), batch(2))


def meta_problem(**settings):
    w, losses_fn = net_losses(**settings)
    phi = init(small(3), 3)
    return losses_fn, functools.partial(combine, small(3)), phi, w


@pytest.mark.parametrize(
    "direct_term", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_the_meta_gradient_is_its_formula(direct_term):
    losses_fn, combiner, phi, w = meta_problem()
    gamma = 0.3

    def regulariser(phi, w):
        losses = losses_fn(w, BATCHES[1])
        return gamma * jnp.abs(jnp.sum(losses) - combiner(phi, losses))

    def objective(w):
        return losses_fn(w, BATCHES[0])[1] + regulariser(phi, w)

    v = jax.jit(jax.grad(objective))(w)

    def product(phi):
        grads = jax.grad(lambda w: combiner(phi, losses_fn(w, BATCHES[1])))(w)
        return -inner_product(grads, v)

    expected = jax.jit(jax.grad(product))(phi)
    if direct_term:
        direct = jax.jit(jax.grad(regulariser))(phi, w)
        expected = jax.tree.map(jnp.add, expected, direct)
    found = jax.jit(
        functools.partial(
            meta_gradient,
            losses_fn,
            combiner,
            primary=1,
            gamma=gamma,
            direct_term=direct_term,
        )
    )(phi, w, BATCHES)
    assert difference(found.gradient, expected) < 1e-5
    info = found.diagnostics
    assert float(info.primary) == pytest.approx(
        float(losses_fn(w, BATCHES[0])[1]), rel=1e-6
    )
    np.testing.assert_allclose(info.losses, losses_fn(w, BATCHES[1]), rtol=1e-6)
    per_loss = jax.jit(jax.jacrev(lambda w: losses_fn(w, BATCHES[1])))(w)
    tangents = [
        inner_product(jax.tree.map(lambda x, t=t: x[t], per_loss), v) for t in range(3)
    ]
    np.testing.assert_allclose(info.tangents, tangents, rtol=1e-4, atol=1e-6)
    whole = jax.jit(jax.grad(lambda w: combiner(phi, losses_fn(w, BATCHES[1]))))(w)
    assert float(jnp.vdot(info.weights, info.tangents)) == pytest.approx(
        float(inner_product(whole, v)), rel=1e-4
    )
    assert float(info.direction_norm) == pytest.approx(
        float(optax.tree.norm(v)), rel=1e-6
    )
    assert float(info.gradient_norm) == pytest.approx(
        float(optax.tree.norm(expected)), rel=1e-5
    )
    assert bool(info.finite) and not np.any(info.masked)


@pytest.mark.parametrize(
    "kind", ["jvp", pytest.param("double_backward", marks=pytest.mark.slow)]
)
def test_one_pass_over_the_second_batch_gives_the_same(kind):
    """The regulariser's gradient and the tangents out of one linearisation."""
    losses_fn, combiner, phi, w = meta_problem()
    shared = meta(losses_fn, combiner, phi, w, BATCHES, gamma=0.3)
    apart = meta(
        *(losses_fn, combiner, phi, w, BATCHES),
        gamma=0.3,
        hypergradient=make_hypergradient(HypergradientConfig(kind)),
    )
    assert difference(shared.gradient, apart.gradient) < 1e-5
    np.testing.assert_allclose(
        shared.diagnostics.tangents, apart.diagnostics.tangents, rtol=1e-4, atol=1e-6
    )


def test_a_function_for_the_primary_loss():
    losses_fn, combiner, phi, w = meta_problem()

    def direction(batches=BATCHES, **settings):
        compute = functools.partial(meta_direction, losses_fn, combiner, **settings)
        return jax.jit(compute)(phi, w, batches)

    by_place, _ = direction(primary=2, gamma=0.1)
    by_function, loss = direction(
        primary=lambda w, batch: losses_fn(w, batch)[2], gamma=0.1
    )
    assert difference(by_function, by_place) < 1e-6
    assert float(loss) == pytest.approx(float(losses_fn(w, BATCHES[0])[2]))
    # Without the regulariser the second batch is not read.
    alone, _ = direction(primary=2, gamma=0.0)
    again, _ = direction((BATCHES[0], None), primary=2, gamma=0.0)
    assert difference(again, alone) == 0 and difference(alone, by_place) > 1e-3


@pytest.mark.slow
def test_a_loss_that_a_batch_does_not_have():
    """It has neither weight nor gradient, forward or backward."""
    losses_fn, combiner, phi, w = meta_problem()
    second = {**BATCHES[1], "available": jnp.array([True, False, True])}
    keep = np.array([0, 2])
    few = functools.partial(combine, small(2))
    fewer = {**phi, "losses": phi["losses"][keep]}
    for kind in ("jvp", "double_backward", "finite_differences"):
        method = hypergradient(kind)
        found = meta(
            losses_fn, combiner, phi, w, (BATCHES[0], second), hypergradient=method
        )
        expected = meta(
            lambda w, batch: losses_fn(w, batch)[keep],
            few,
            fewer,
            w,
            (BATCHES[0], {**second, "available": jnp.ones(3, bool)}),
            hypergradient=method,
        )
        info = found.diagnostics
        assert info.masked.tolist() == [False, True, False] and bool(info.finite)
        assert info.weights[1] == 0
        assert not np.any(found.gradient["losses"][1])
        gradient = {**found.gradient, "losses": found.gradient["losses"][keep]}
        tolerance = 1e-3 if kind == "finite_differences" else 1e-5
        assert difference(gradient, expected.gradient) < tolerance


def test_a_loss_that_diverges():
    """Forward mode survives a derivative that is not finite; reverse mode is zeroed."""
    losses_fn, combiner, phi, w = meta_problem()
    second = {**BATCHES[1], "y": BATCHES[1]["y"].copy()}
    second["y"][0, 1] = np.nan
    found = meta(losses_fn, combiner, phi, w, (BATCHES[0], second), gamma=0.0)
    assert bool(found.diagnostics.finite) and np.any(flat(found.gradient))
    assert np.all(np.isfinite(flat(found.gradient)))
    found = meta(losses_fn, combiner, phi, w, (BATCHES[0], second), gamma=0.1)
    assert not bool(found.diagnostics.finite) and not np.any(flat(found.gradient))
    assert np.isnan(found.diagnostics.gradient_norm)
    first = {**BATCHES[0], "y": BATCHES[0]["y"] + jnp.inf}
    found = meta(losses_fn, combiner, phi, w, (first, BATCHES[1]))
    assert not bool(found.diagnostics.finite) and not np.any(flat(found.gradient))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jvp", "double_backward"])
def test_recomputed_activations_and_dropout(kind):
    """Keys come with the batch, so recomputing draws the same."""
    found = {}
    for remat in (False, True):
        losses_fn, _, phi, w = meta_problem(remat=remat)
        apply = functools.partial(
            combine, small(3, dropout=0.2), dropout_key=jax.random.key(8)
        )
        found[remat] = meta(
            losses_fn, apply, phi, w, BATCHES, hypergradient=hypergradient(kind)
        )
    assert difference(found[True].gradient, found[False].gradient) < 1e-6
    other = {**BATCHES[1], "key": jax.random.key(77)}
    changed = meta(losses_fn, apply, phi, w, (BATCHES[0], other))
    assert difference(changed.gradient, found[True].gradient) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(HYPERGRADIENTS) - {"finite_differences"}))
def test_parameters_of_several_types(kind):
    """bfloat16 beside float32 in an `nnx.State`: near the float32 gradient."""
    losses_fn, combiner, phi, half = meta_problem(dtype=jnp.bfloat16)
    kinds = {x.dtype for x in jax.tree.leaves(half)}
    assert kinds == {jnp.dtype("bfloat16"), jnp.dtype("float32")}
    full = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    gradient = {}
    for name, w in (("half", half), ("full", full)):
        precondition = None
        if kind == "sama":
            tx = optax.adam(0.1)
            grads = jax.grad(lambda w: combiner(phi, losses_fn(w, BATCHES[1])))(w)
            _, state = tx.update(grads, tx.init(w), w)
            precondition = update_preconditioner(tx, state, grads, w)
        result = meta(
            losses_fn,
            combiner,
            phi,
            w,
            BATCHES,
            hypergradient=hypergradient(kind, precondition),
        )
        dtypes = {x.dtype for x in jax.tree.leaves(result.gradient)}
        assert dtypes == {jnp.dtype("float32")}
        gradient[name] = result.gradient
    # Preconditioning amplifies rounding to bfloat16, which differs between processors.
    limit = 0.1 if kind == "sama" else 0.05
    assert difference(gradient["half"], gradient["full"]) < limit


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jvp", "double_backward", "neumann"])
def test_mapped_over_combiners(kind):
    losses_fn, combiner, _, w = meta_problem()
    keys = jax.random.split(jax.random.key(0), 3)
    phis = jax.vmap(functools.partial(init_combiner, small(3)))(keys)
    ws = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x, 0.9 * x]), w)

    def one(phi, w):
        return meta(
            losses_fn, combiner, phi, w, BATCHES, hypergradient=hypergradient(kind)
        ).gradient

    mapped = jax.jit(jax.vmap(one))(phis, ws)
    for i in range(3):
        phi, w, found = (jax.tree.map(lambda x: x[i], t) for t in (phis, ws, mapped))  # noqa: B023
        assert difference(found, one(phi, w)) < 1e-5


@pytest.mark.parametrize(
    "kind",
    [
        "jvp",
        *(
            pytest.param(k, marks=pytest.mark.slow)
            for k in ("double_backward", "neumann")
        ),
    ],
)
def test_sharded_equals_unsharded(kind):
    losses_fn, combiner, phi, w = meta_problem()
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 4), ("data", "fsdp"))

    def place(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    # Hidden units over fsdp, examples over data.
    layouts = {(6, 16): (None, "fsdp"), (16, 3): ("fsdp", None), (16,): ("fsdp",)}
    sharded = jax.tree.map(lambda x: place(x, *layouts.get(x.shape, ())), w)
    batches = tuple(
        {k: place(x, *(("data",) if k in "xy" else ())) for k, x in batch.items()}
        for batch in BATCHES
    )
    assert len(jax.tree.leaves(sharded)[1].addressable_shards[0].data) < 16
    compute = jax.jit(
        functools.partial(
            meta_gradient, losses_fn, combiner, hypergradient=hypergradient(kind)
        )
    )
    expected, found = compute(phi, w, BATCHES), compute(phi, sharded, batches)
    assert difference(found.gradient, expected.gradient) < 1e-5
    np.testing.assert_allclose(
        found.diagnostics.tangents, expected.diagnostics.tangents, rtol=1e-4, atol=1e-6
    )
    v, _ = jax.jit(
        functools.partial(meta_direction, losses_fn, combiner, primary=0, gamma=0.1)
    )(phi, sharded, batches)
    for x, own in zip(jax.tree.leaves(v), jax.tree.leaves(sharded), strict=True):
        assert x.sharding.is_equivalent_to(own.sharding, x.ndim)


@pytest.mark.slow
def test_a_harmful_loss_loses_its_weight():
    """Meta-steps by the gradient: of two losses one is the primary, one opposes it."""

    def losses_fn(w, batch):
        return jnp.stack([jnp.sum((w - batch) ** 2), jnp.sum((w + 4.0) ** 2)])

    combiner = make_combiner("linear", small(2))
    phi, w = combiner.init(jax.random.key(0)), jnp.zeros(3)
    targets = jnp.array([1.0, 2.0, 3.0])
    for _ in range(50):
        grads = jax.grad(lambda w: combiner.apply(phi, losses_fn(w, targets)))(w)  # noqa: B023
        w = w - 0.05 * grads
        found = meta(losses_fn, combiner.apply, phi, w, (targets, targets), gamma=0.0)
        phi = jax.tree.map(lambda p, g: p - 0.01 * g, phi, found.gradient)
    assert float(phi["weights"][1]) < 0.1 < 1 < float(phi["weights"][0])
    assert float(losses_fn(w, targets)[0]) < 0.5


# Settings.


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CombinerConfig(0), "num_losses=0 must be at least 1"),
        (lambda: CombinerConfig(2, width=100), "num_heads=8 does not divide width=100"),
        (lambda: CombinerConfig(2, dropout=1.0), r"dropout=1.0 must be in \[0, 1\)"),
        (lambda: published("univ"), "did you mean 'univl'"),
        (lambda: published("univl", 0), "num_losses=0 must be at least 1"),
        (
            lambda: MetaLossConfig(network=small(2), interval=0),
            "interval=0 must be at least 1",
        ),
        (
            lambda: MetaLossConfig(network=small(2), combiner="melter"),
            "combiner='melter' must be one of .*; did you mean 'meltr'",
        ),
        (
            lambda: MetaLossConfig(network=small(2), meta_optimizer="adamv"),
            "meta_optimizer='adamv'.*did you mean 'adam",
        ),
        (
            lambda: MetaLossConfig(network=small(2), learning_rate=0.0),
            "learning_rate=0.0",
        ),
        (
            lambda: MetaLossConfig(network=small(2), gamma=-0.1),
            "gamma=-0.1 must be finite and not negative",
        ),
        (lambda: MetaLossConfig(gamma=float("nan")), "gamma=nan must be finite"),
        (lambda: MetaLossConfig(weight_decay=float("nan")), "weight_decay=nan"),
        (lambda: MetaLossConfig(learning_rate=float("inf")), "learning_rate=inf"),
        (lambda: MetaLossConfig(batch_size=-1), "meta_loss.batch_size=-1 must be at"),
        (
            lambda: MetaLossConfig("fixed", weights=(1.0, float("nan"))),
            r"weights=\(1.0, nan\) must be finite",
        ),
        (
            lambda: from_config(MetaLossConfig, {"clip_norm": float("nan")}),
            "MetaLossConfig.clip_norm is nan, which is not a number",
        ),
        (
            lambda: from_config(MetaLossConfig, {"clip_norm": 10**400}),
            "MetaLossConfig.clip_norm is larger than any float",
        ),
        (
            lambda: from_config(MetaLossConfig, {"weights": (1.0, "x")}),
            r"MetaLossConfig.weights\[1\]='x' must be float",
        ),
        (
            lambda: MetaLossConfig("fixed", weights=(1.0,)).make_combiner(2),
            "1 weights for 2 losses",
        ),
        (
            lambda: MetaLossConfig(weights=(1.0, 1.0)).make_combiner(2),
            "combiner='meltr' has no weights",
        ),
        (lambda: HypergradientConfig("jpv"), "kind='jpv'.*did you mean 'jvp'"),
        (lambda: HypergradientConfig(terms=0), "terms=0 must be at least 1"),
        (lambda: HypergradientConfig(radius=0.0), "radius=0.0 must be positive"),
        (lambda: hypergradient("sama"), "sama needs one"),
        (lambda: hypergradient("jvp", lambda v: v), "the other kinds take none"),
        (
            lambda: adam_preconditioner(optax.sgd(0.1).init(jnp.ones(2))),
            "one optax.ScaleByAdamState, and this has 0",
        ),
        (
            lambda: from_config(
                MetaLossConfig, {"network": {"num_losses": 2}, "intervall": 3}
            ),
            "no setting 'intervall'; did you mean 'interval'",
        ),
        (
            lambda: combine(small(2), init(small(2)), jnp.ones(3)),
            r"combiner of 2 losses got losses of shape \(3,\)",
        ),
        (
            lambda: make_combiner("equal", small(2)).apply({}, jnp.ones(3)),
            r"combiner of 2 losses got losses of shape \(3,\)",
        ),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_from_a_mapping():
    mapping = {
        "network": {"num_losses": 2, "residual": True},
        "combiner": "fixed",
        "weights": [1.0, 0.5],
        "hypergradient": {"kind": "neumann", "terms": 5},
    }
    config = from_config(MetaLossConfig, mapping)
    assert config.network.residual and config.weights == (1.0, 0.5)
    assert config.hypergradient == HypergradientConfig("neumann", terms=5)
    assert float(config.make_combiner(2).apply({}, jnp.array([1.0, 4.0]))) == 3.0


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_meta_optimizer(name):
    """Clipping comes before weight decay, which is coupled in Adam alone."""
    config = MetaLossConfig(
        meta_optimizer=name,
        learning_rate=0.1,
        weight_decay=0.1,
        clip_norm=1.0,
    )
    tx, phi = config.make_meta_optimizer(), jnp.array([-10.0, 5.0])
    updates, _ = tx.update(jnp.array([30.0, 40.0]), tx.init(phi), phi)
    # Clipped to (0.6, 0.8). Adam adds the decay (-1, 0.5), then takes the sign.
    expected = {"adam": [0.1, -0.1], "adamw": [-0.1 + 0.1, -0.1 - 0.05]}[name]
    np.testing.assert_allclose(updates, expected, atol=1e-5)
