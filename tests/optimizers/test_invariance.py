"""What a user is free to choose does not decide how well a run goes.

The same run on scikit-learn's digits with other names, nestings, layouts and scales,
under the learned optimizer with its default weights and under the hand-designed rule.
Compared is the mean training loss of the last ten steps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import meta_opt

STEPS = 60
BATCH = 64
RULES = {
    "learned": meta_opt.learned_optimizer,
    "hand_designed": meta_opt.hand_designed,
}
EQUAL = 1e-4
"""Relative: sums in another order."""
CLOSE = 0.05

slow = pytest.mark.slow
rules = pytest.mark.parametrize("rule", RULES)
# The learned optimizer falls back to the other one: in haste it stands for both.
learned_first = pytest.mark.parametrize(
    "rule", ["learned", pytest.param("hand_designed", marks=slow)]
)


@functools.cache
def batches(steps):
    """Images [T, B, 64] in [0, 1] and labels [T, B]."""
    digits = load_digits()
    picks = np.random.default_rng(0).integers(0, len(digits.data), (steps, BATCH))
    images = digits.data.astype(np.float32) / 16
    return jnp.asarray(images[picks]), jnp.asarray(digits.target[picks])


def final_loss(rule, params, logits, *, steps=STEPS, **settings):
    """Mean loss of the last ten steps, of ``logits(params, images)``."""
    return compiled(rule, logits, steps=steps, **settings)(params)


def compiled(rule, logits, *, steps=STEPS, **settings):
    """``(params, scale) -> loss``: `final_loss` of such parameters.

    The loss that is differentiated and told is ``scale`` times this one.
    """
    tx = RULES[rule](steps, **settings)

    @jax.jit
    def run(params, data, scale):
        def step(carry, batch):
            params, state = carry
            images, labels = batch

            def loss(params):
                found = logits(params, images)
                each = optax.softmax_cross_entropy_with_integer_labels(found, labels)
                return scale * jnp.mean(each)

            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, tx.init(params)), data)[1] / scale

    def mean(params, scale=1.0):
        losses = np.asarray(run(params, batches(steps), jnp.float32(scale)))
        assert np.isfinite(losses).all()
        return float(np.mean(losses[-10:]))

    return mean


def kernel(rng, rows, columns):
    size = np.sqrt(1.0 / rows)
    return jnp.asarray(size * rng.normal(size=(rows, columns)), jnp.float32)


def dense(layer, x):
    return x @ layer["kernel"] + layer["bias"][None]


def layers(*shapes):
    rng = np.random.default_rng(1)
    return [
        {"kernel": kernel(rng, *shape), "bias": jnp.zeros(shape[1])} for shape in shapes
    ]


# Names and nesting: one net of two branches


def two_branches():
    return layers((32, 16), (32, 16), (32, 16), (16, 10))


def two_branch_logits(branches, images):
    left, right, join, out = branches
    x = jnp.concatenate(
        [
            jnp.tanh(dense(left, images[:, :32])),
            jnp.tanh(dense(right, images[:, 32:])),
        ],
        axis=1,
    )
    return dense(out, jnp.tanh(dense(join, x)))


def named_logits(names):
    return lambda params, x: two_branch_logits([params[n] for n in names], x)


@functools.cache
def reference_run(rule):
    return compiled(rule, named_logits(NAMES[0]))


@functools.cache
def reference(rule, scale=1.0):
    params = dict(zip(NAMES[0], two_branches(), strict=True))
    return reference_run(rule)(params, scale)


NAMES = (
    ("a", "b", "c", "d"),
    ("vision", "text", "fusion", "head"),
    ("vision", "text", "join", "out"),
    ("image_encoder", "caption_encoder", "dense", "predictor"),
    ("left", "right", "classifier", "head"),
)


def test_the_runs_learn_something():
    for rule in RULES:
        assert reference(rule) < 0.8 * np.log(10)


@learned_first
@pytest.mark.parametrize(
    "names",
    [
        NAMES[1],
        pytest.param(NAMES[2], marks=slow),
        NAMES[3],
        pytest.param(NAMES[4], marks=slow),
    ],
    ids="-".join,
)
def test_names_of_modules(rule, names):
    params = dict(zip(names, two_branches(), strict=True))
    found = final_loss(rule, params, named_logits(names))
    assert found == pytest.approx(reference(rule), rel=EQUAL)


@slow
@rules
@pytest.mark.parametrize("kind", ["tuple", "list", "deep"])
def test_nesting(rule, kind):
    net = two_branches()
    if kind == "deep":
        params = {"model": {"encoders": net[:2]}, "after": (net[2], {"x": net[3]})}

        def logits(p, x):
            after = p["after"]
            found = [*p["model"]["encoders"], after[0], after[1]["x"]]
            return two_branch_logits(found, x)

    else:
        params, logits = {"tuple": tuple, "list": list}[kind](net), two_branch_logits
    found = final_loss(rule, params, logits)
    assert found == pytest.approx(reference(rule), rel=EQUAL)


@slow
@rules
def test_names_of_leaves(rule):
    def renamed(tree):
        return [{"embedding": x["kernel"], "lora_A": x["bias"]} for x in tree]

    def logits(params, x):
        back = [{"kernel": p["embedding"], "bias": p["lora_A"]} for p in params]
        return two_branch_logits(back, x)

    found = final_loss(rule, renamed(two_branches()), logits)
    assert found == pytest.approx(reference(rule), rel=EQUAL)


# Scales


@rules
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_of_the_loss(rule, scale):
    assert reference(rule, scale) == pytest.approx(reference(rule), rel=0.01)


# Parameters more, together, or turned


@learned_first
def test_a_layer_that_gets_no_gradient(rule):
    unused = layers((16, 16))[0]
    params = [*two_branches(), unused]
    found = final_loss(rule, params, lambda p, x: two_branch_logits(p[:4], x))
    assert found == pytest.approx(reference(rule), rel=CLOSE)


@learned_first
def test_kernels_in_out_or_out_in(rule):
    def turned(tree):
        return [{"kernel": x["kernel"].T, "bias": x["bias"]} for x in tree]

    found = final_loss(
        rule, turned(two_branches()), lambda p, x: two_branch_logits(turned(p), x)
    )
    # Other orders of summation, which the controller's feedback carries on.
    close = CLOSE if rule == "learned" else EQUAL
    assert found == pytest.approx(reference(rule), rel=close)


def attention_net():
    rng = np.random.default_rng(2)
    return {
        "embed": kernel(rng, 8, 32),
        "query": kernel(rng, 32, 32),
        "key": kernel(rng, 32, 32),
        "value": kernel(rng, 32, 32),
        "head": kernel(rng, 32, 10),
    }


def attention_logits(params, images):
    """One layer of attention over the eight rows of an image."""
    x = images.reshape(-1, 8, 8) @ params["embed"]
    q, k, v = (x @ params[name] for name in ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bsd,btd->bst", q, k) / np.sqrt(32.0))
    x = x + jnp.einsum("bst,btd->bsd", weights, v)
    return jnp.tanh(jnp.mean(x, axis=1)) @ params["head"]


@slow
@rules
def test_query_key_and_value_apart_or_fused(rule):
    net = attention_net()
    names = ("query", "key", "value")
    fused = {k: v for k, v in net.items() if k not in names}
    fused["qkv"] = jnp.concatenate([net[n] for n in names], axis=1)

    def logits(params, images):
        parts = jnp.split(params["qkv"], 3, axis=1)
        return attention_logits(
            {**params, **dict(zip(names, parts, strict=True))}, images
        )

    apart = final_loss(rule, net, attention_logits)
    assert final_loss(rule, fused, logits) == pytest.approx(apart, rel=CLOSE)


@functools.cache
def adapted(rule, names):
    """A frozen net whose middle layer has low-rank factors; they and a head train."""
    left, right, join, out = two_branches()
    rng = np.random.default_rng(3)
    down, up = names
    params = {
        "join": {down: kernel(rng, 32, 4), up: jnp.zeros((4, 16))},
        "out": out,
    }

    def logits(p, x):
        low_rank = p["join"][down] @ p["join"][up]
        middle = {"kernel": join["kernel"] + low_rank, "bias": join["bias"]}
        return two_branch_logits([left, right, middle, p["out"]], x)

    return final_loss(rule, params, logits)


@learned_first
@pytest.mark.parametrize("names", [("lora_A.weight", "lora_B.weight"), ("down", "up")])
def test_names_of_low_rank_factors(rule, names):
    expected = adapted(rule, ("A", "B"))
    assert adapted(rule, names) == pytest.approx(expected, rel=EQUAL)


@slow
@rules
def test_layers_stacked_or_apart(rule):
    # Products in another order; the difference grows tenfold every ten steps.
    steps = 30
    first, *middle, last = layers((64, 24), *[(24, 24)] * 3, (24, 10))

    def forward(first, middle, last, x):
        for layer in (first, *middle):
            x = jnp.tanh(dense(layer, x))
        return dense(last, x)

    apart = final_loss(
        rule,
        {"first": first, "middle": middle, "last": last},
        lambda p, x: forward(p["first"], p["middle"], p["last"], x),
        steps=steps,
    )
    stacked = final_loss(
        rule,
        {
            "first": first,
            "middle": jax.tree.map(lambda *x: jnp.stack(x), *middle),
            "last": last,
        },
        lambda p, x: forward(
            p["first"],
            [jax.tree.map(lambda a, i=i: a[i], p["middle"]) for i in range(3)],
            p["last"],
            x,
        ),
        steps=steps,
        stacked="middle",
    )
    assert stacked == pytest.approx(apart, rel=EQUAL)


# Widths


@pytest.mark.parametrize(
    "width",
    [64, *(pytest.param(width, marks=slow) for width in (16, 256, 512, 1024))],
)
def test_no_width_is_learned_worse_than_by_the_rule(width):
    def logits(net, x):
        for layer in net[:-1]:
            x = jax.nn.relu(dense(layer, x))
        return dense(net[-1], x)

    net = layers((64, width), (width, width), (width, 10))
    learned, rule = (final_loss(name, net, logits) for name in RULES)
    assert learned <= (1 + CLOSE) * rule, f"{learned:.4f} and {rule:.4f}"
