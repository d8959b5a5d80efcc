"""Complete models in any `Style`: encoder, head, loss, augmentation and adaptation."""

import dataclasses
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from meta_opt.tasks.models import LossAndError, cross_entropy
from meta_opt.tasks.nets import l2_normalize
from meta_opt.tasks.style_nets import Body, Encoder, attend, build_encoder
from meta_opt.tasks.styles import Style, dense, dropout, init_dense
from meta_opt.tasks.task import Arrays
from meta_opt.types import PyTree, check_name

GOALS = ("classify", "sigmoid", "regress", "language", "contrastive")
FUSIONS = ("concat", "gated", "attention")


@dataclasses.dataclass(frozen=True)
class Goal:
    """Loss and data augmentation of a model.

    Attributes:
        kind: ``classify`` (softmax cross entropy), ``sigmoid`` (independent binary
            cross entropies; one logit for two classes), ``regress`` (mean squared
            error), ``language`` (next-token cross entropy) or ``contrastive`` (two
            encoders with a trained temperature).
        target: field that ``regress`` predicts; the input field for an autoencoder.
        fusion: fusion of two encoders that are not contrastive: ``concat``, ``gated``
            or ``attention`` (features of the second attend to tokens of the first).
        scale: factor on the loss.
        smoothing: label smoothing, the fraction that is spread over all classes.
        noise: standard deviation of Gaussian noise on the first input.
        shift: maximum number of pixels by which images are rolled.
        flip: whether images are mirrored with probability 1/2.
        mixup: whether to mix inputs and targets with those of another example.
    """

    kind: str = "classify"
    target: str = "label"
    fusion: str = "concat"
    scale: float = 1.0
    smoothing: float = 0.0
    noise: float = 0.0
    shift: int = 0
    flip: bool = False
    mixup: bool = False

    def __post_init__(self) -> None:
        check_name("kind", self.kind, GOALS)
        check_name("fusion", self.fusion, FUSIONS)

    @property
    def augments(self) -> bool:
        """Whether training examples are augmented."""
        return bool(self.noise or self.shift or self.flip or self.mixup)


class StyledModel(NamedTuple):
    """A model as functions; ``init``, ``loss`` and ``features`` are those of `Model`.

    Attributes:
        init: ``key -> params``.
        loss: ``(params, arrays) -> (loss, error)``, without dropout and augmentation.
        features: ``(params, arrays) -> [B, D]``, the inputs of the head.
        train_loss: ``(params, arrays, key) -> (loss, error)``; None to train on
            ``loss``.
    """

    init: Callable[[jax.Array], PyTree]
    loss: Callable[[PyTree, Arrays], LossAndError]
    features: Callable[[PyTree, Arrays], jax.Array]
    train_loss: Callable[[PyTree, Arrays, jax.Array], LossAndError] | None = None


Criterion = Callable[[jax.Array, jax.Array, float], LossAndError]
"""``(outputs, targets, smoothing) -> (loss, error)``."""


def build_model(
    style: Style,
    body: Body,
    goal: Goal,
    outputs: int,
    arrays: Arrays,
    second: Body | None = None,
) -> StyledModel:
    """Returns a model for examples of the shape of ``arrays``.

    Args:
        style: conventions of the model code and its initialisation.
        body: architecture of the encoder.
        goal: loss and data augmentation.
        outputs: output size of the head: number of classes or regression targets, or
            embedding width of a contrastive model.
        arrays: training examples; regression uses the variance of their targets.
        second: architecture of the encoder of a second input, for contrastive and fused
            models.

    Raises:
        ValueError: encoders that do not match the goal.
    """
    encoders = [build_encoder(style, b, arrays) for b in (body, second) if b]
    if goal.kind == "contrastive":
        if second is None:
            raise ValueError("a contrastive model needs a second encoder")
        init, apply, features = _two_towers(style, encoders, outputs)
    elif goal.kind == "language":
        if not body.causal and body.kind != "recurrent":
            raise ValueError("a language model's encoder must be causal")
        init, apply, features = _language_model(style, body, encoders[0])
    else:
        init, apply, features = _with_head(style, goal, encoders, outputs)
    criterion = _criterion(goal, arrays)

    def targets(arrays: Arrays) -> jax.Array:
        if goal.kind == "language":
            return arrays[body.field]
        if goal.kind == "contrastive":
            return jnp.arange(len(arrays[body.field]))
        return arrays[goal.target]

    def scaled(result: LossAndError) -> LossAndError:
        return goal.scale * result[0], result[1]

    def loss(params: PyTree, arrays: Arrays) -> LossAndError:
        return scaled(criterion(apply(params, arrays, None), targets(arrays), 0.0))

    def train_loss(params: PyTree, arrays: Arrays, key: jax.Array) -> LossAndError:
        one, two = jax.random.split(key)
        seen, share = _augment(goal, body.field, arrays, one)
        own = targets(arrays)
        out = apply(params, seen, two if style.dropout else None)
        first = criterion(out, own, goal.smoothing)
        if not goal.mixup:
            return scaled(first)
        other = criterion(out, jnp.roll(own, 1, axis=0), goal.smoothing)
        mixed = share * first[0] + (1 - share) * other[0]
        return scaled((mixed, first[1]))

    differs = style.dropout or goal.smoothing or goal.augments
    return StyledModel(init, loss, features, train_loss if differs else None)


def _augment(
    goal: Goal, field: str, arrays: Arrays, key: jax.Array
) -> tuple[Arrays, jax.Array]:
    """Returns augmented examples, and the weight of their own targets for mixup."""
    x = arrays[field]
    noise, roll, flip, mix = jax.random.split(key, 4)
    share = jnp.float32(1.0)
    if goal.shift:
        by = jax.random.randint(roll, (2,), -goal.shift, goal.shift + 1)
        x = jnp.roll(jnp.roll(x, by[0], axis=1), by[1], axis=2)
    if goal.flip:
        mirrored = jax.random.bernoulli(flip, 0.5, (len(x),) + (1,) * (x.ndim - 1))
        x = jnp.where(mirrored, x[:, :, ::-1], x)
    if goal.noise:
        x = x + goal.noise * jax.random.normal(noise, x.shape)
    if goal.mixup:
        share = jax.random.uniform(mix, minval=0.5)
        x = share * x + (1 - share) * jnp.roll(x, 1, axis=0)
    return {**arrays, field: x}, share


def _criterion(goal: Goal, arrays: Arrays) -> Criterion:
    """Returns the function from outputs and targets to loss and error."""

    def classify(out: jax.Array, labels: jax.Array, smoothing: float) -> LossAndError:
        loss, error = cross_entropy(out, labels)
        spread = -jnp.mean(jax.nn.log_softmax(out))
        return (1 - smoothing) * loss + smoothing * spread, error

    def sigmoid(out: jax.Array, labels: jax.Array, smoothing: float) -> LossAndError:
        if out.shape[-1] == 1:
            return classify(jnp.pad(out, ((0, 0), (1, 0))), labels, smoothing)
        hot = jax.nn.one_hot(labels, out.shape[-1])
        hot = (1 - smoothing) * hot + smoothing / 2
        each = jax.nn.softplus(out) - hot * out
        return jnp.mean(jnp.sum(each, -1)), cross_entropy(out, labels)[1]

    def language(out: jax.Array, ids: jax.Array, smoothing: float) -> LossAndError:
        # The loss covers all tokens and the first padding token, which is the end.
        inside = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=1) != 0
        weights = inside.astype(jnp.float32)
        loss, error = cross_entropy(out, ids, weights)
        spread = -jnp.mean(jax.nn.log_softmax(out), axis=-1)
        spread = jnp.sum(spread * weights) / jnp.sum(weights)
        return (1 - smoothing) * loss + smoothing * spread, error

    def contrastive(out: jax.Array, own: jax.Array, smoothing: float) -> LossAndError:
        forward, error = classify(out, own, smoothing)
        return 0.5 * (forward + classify(out.T, own, smoothing)[0]), error

    if goal.kind == "regress":
        target = arrays[goal.target].reshape(len(arrays[goal.target]), -1)
        variance = float(jnp.mean(jnp.var(target, axis=0)))

        def regress(out: jax.Array, target: jax.Array, _: float) -> LossAndError:
            square = jnp.mean((out - target.reshape(out.shape)) ** 2)
            return square, jnp.minimum(1.0, square / variance)

        return regress
    return {
        "classify": classify,
        "sigmoid": sigmoid,
        "language": language,
        "contrastive": contrastive,
    }[goal.kind]


_Functions = tuple[Callable, Callable, Callable]
"""``init(key)``, ``apply(params, arrays, key)`` and ``features(params, arrays)``."""


def _with_head(
    style: Style, goal: Goal, encoders: list[Encoder], outputs: int
) -> _Functions:
    """One encoder, or two fused encoders, with a linear head."""
    body, head = style.parts
    first, width = encoders[0], encoders[0].width
    if len(encoders) == 2 and goal.fusion == "concat":
        width += encoders[1].width
    elif len(encoders) == 2:
        width = encoders[1].width

    def init(key: jax.Array) -> PyTree:
        a, b, c, d, e, f = jax.random.split(key, 6)
        last = init_dense(c, style, width, outputs, 0.0 if style.zero_head else 1.0)
        if len(encoders) == 1:
            return {body: first.init(a), head: last}
        params = {body: first.init(a), "other": encoders[1].init(b), head: last}
        if goal.fusion == "gated":
            params["project"] = init_dense(d, style, first.width, width)
            params["gate"] = init_dense(e, style, first.width + width, width)
        elif goal.fusion == "attention":
            params["project"] = init_dense(d, style, first.token_width, 2 * width)
            params["query"] = init_dense(e, style, width, width)
            params["mixed"] = init_dense(f, style, width, width)
        return params

    def encode(params: PyTree, arrays: Arrays, key: jax.Array | None) -> jax.Array:
        tokens = first.tokens(params[body], arrays, key)
        if len(encoders) == 1:
            return first.pool(tokens, arrays)
        other = encoders[1].pool(
            encoders[1].tokens(params["other"], arrays, key), arrays
        )
        if goal.fusion == "attention":
            kv = dense(style, params["project"], tokens)
            k, v = jnp.split(kv, 2, axis=-1)
            q = dense(style, params["query"], other)[:, None]
            return other + dense(style, params["mixed"], attend(q, k, v, 4)[:, 0])
        x = first.pool(tokens, arrays)
        both = jnp.concatenate([x, other], axis=-1)
        if goal.fusion == "concat":
            return both
        gate = jax.nn.sigmoid(dense(style, params["gate"], both))
        return gate * dense(style, params["project"], x) + (1 - gate) * other

    def apply(params: PyTree, arrays: Arrays, key: jax.Array | None) -> jax.Array:
        x = dropout(style, key, 100, encode(params, arrays, key))
        return dense(style, params[head], x)

    return init, apply, lambda params, arrays: encode(params, arrays, None)


def _two_towers(style: Style, encoders: list[Encoder], width: int) -> _Functions:
    """Cosine similarities of all pairs [B, B], times a trained temperature."""
    left, right = encoders

    def init(key: jax.Array) -> PyTree:
        a, b, c, d = jax.random.split(key, 4)
        return {
            style.parts[0]: left.init(a),
            "other": right.init(b),
            "proj": [
                init_dense(c, style, left.width, width),
                init_dense(d, style, right.width, width),
            ],
            "t": jnp.log(10.0),
        }

    def features(
        params: PyTree, arrays: Arrays, key: jax.Array | None = None
    ) -> jax.Array:
        return left.pool(left.tokens(params[style.parts[0]], arrays, key), arrays)

    def apply(params: PyTree, arrays: Arrays, key: jax.Array | None) -> jax.Array:
        words = right.pool(right.tokens(params["other"], arrays, key), arrays)
        x = l2_normalize(dense(style, params["proj"][0], features(params, arrays, key)))
        y = l2_normalize(dense(style, params["proj"][1], words))
        return jnp.exp(jnp.clip(params["t"], 0.0, 4.6)) * (x @ y.T)

    return init, apply, features


def _language_model(style: Style, body: Body, encoder: Encoder) -> _Functions:
    """Next-token logits; 0 is the start token."""
    name, head = style.parts

    def init(key: jax.Array) -> PyTree:
        a, b = jax.random.split(key)
        if style.tied:
            return {name: encoder.init(a)}
        scale = 0.0 if style.zero_head else 1.0
        width, count = encoder.token_width, body.vocabulary
        return {
            name: encoder.init(a),
            head: init_dense(b, style, width, count, scale),
        }

    def encode(params: PyTree, arrays: Arrays, key: jax.Array | None) -> jax.Array:
        before = jnp.pad(arrays[body.field][:, :-1], ((0, 0), (1, 0)))
        return encoder.tokens(params[name], {**arrays, body.field: before}, key)

    def apply(params: PyTree, arrays: Arrays, key: jax.Array | None) -> jax.Array:
        x = encode(params, arrays, key)
        if style.tied:
            return x @ params[name]["emb"].T
        return dense(style, params[head], x)

    return init, apply, lambda params, arrays: encode(params, arrays, None).mean(1)


@dataclasses.dataclass(frozen=True)
class LowRank:
    """LoRA factors of kernels: ``W + alpha / rank * A B``.

    Attributes:
        where: pattern of the paths (dots between names) of adapted matrices.
        rank: rank of the factors.
        alpha: numerator of the scale.
        root: whether the scale is ``alpha / sqrt(rank)`` instead of ``alpha / rank``.
        names: parameter names of A and B.
        transposed: whether the factors are stored as [r, in] and [out, r] instead of
            [in, r] and [r, out].
        uniform: whether A is initialised uniformly in ``+-1/sqrt(in)`` instead of
            normally with variance ``1 / rank^2``. B is initialised with zeros.
    """

    where: str = r"\.w$"
    rank: int = 4
    alpha: float = 8.0
    root: bool = False
    names: tuple[str, str] = ("A", "B")
    transposed: bool = False
    uniform: bool = True


def adapt(
    model: StyledModel,
    start: PyTree,
    style: Style,
    trained: str = "",
    renewed: str = "^$",
    low_rank: LowRank | None = None,
) -> StyledModel:
    """Adapts a pre-trained model; frozen weights are not part of the parameters.

    The adapted parameters have the structure of the model's. A frozen leaf is replaced
    by None (no leaf), a matrix with LoRA factors by a dict of the two.

    Args:
        model: model to adapt.
        start: pre-trained parameters; leaves whose shape differs from the model's are
            re-initialised and trained.
        style: style of the model, for the layout of its kernels.
        trained: pattern of the paths (dots between names) of trained leaves; the
            default matches all.
        renewed: pattern of the paths of leaves that are re-initialised and trained.
        low_rank: LoRA factors for leaves that neither pattern matches.

    Returns:
        The adapted model.
    """

    def init(key: jax.Array) -> PyTree:
        fresh = model.init(key)

        def leaf(path: tuple, old: jax.Array, new: jax.Array) -> PyTree:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            if old.shape != new.shape or re.search(renewed, name):
                return new
            if re.search(trained, name):
                return old
            if low_rank and old.ndim == 2 and re.search(low_rank.where, name):
                shape = old.shape[::-1] if style.out_in else old.shape
                own = jax.random.fold_in(key, zlib.crc32(name.encode()))
                return _factors(own, low_rank, shape)
            return None

        return jax.tree_util.tree_map_with_path(leaf, start, fresh)

    def join(old: jax.Array, part: PyTree) -> jax.Array:
        if part is None:
            return old
        if low_rank is None or not isinstance(part, dict):
            return part
        delta = _product(low_rank, part)
        return old + (delta.T if style.out_in else delta)

    def whole(params: PyTree) -> PyTree:
        return jax.tree.map(join, start, params)

    train_loss = model.train_loss
    return StyledModel(
        init,
        lambda p, x: model.loss(whole(p), x),
        lambda p, x: model.features(whole(p), x),
        train_loss and (lambda p, x, key: train_loss(whole(p), x, key)),
    )


def _factors(key: jax.Array, config: LowRank, shape: tuple[int, ...]) -> PyTree:
    """Initialises the factors of a kernel with shape [in, out]; B is zero."""
    inputs, outputs = shape
    if config.uniform:
        limit = inputs**-0.5
        a = jax.random.uniform(key, (inputs, config.rank), minval=-limit, maxval=limit)
    else:
        a = jax.random.normal(key, (inputs, config.rank)) / config.rank
    b = jnp.zeros((config.rank, outputs))
    pair = (a.T, b.T) if config.transposed else (a, b)
    return dict(zip(config.names, pair, strict=True))


def _product(config: LowRank, factors: PyTree) -> jax.Array:
    """Returns the low-rank update [in, out] of a kernel."""
    a, b = (factors[name] for name in config.names)
    scale = config.alpha / (config.rank**0.5 if config.root else config.rank)
    return scale * ((b @ a).T if config.transposed else a @ b)
