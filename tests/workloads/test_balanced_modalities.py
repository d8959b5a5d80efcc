"""Modality dropout, what each modality says alone, groups, and short balanced runs."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from multimodal_toy import MODEL, inputs_config

from meta_opt.features.tensors import modality_group
from meta_opt.finetuning.balancing import (
    OF_LOSSES,
    BalancingConfig,
    balanced_objective,
)
from meta_opt.finetuning.loop_config import LoopConfig
from meta_opt.finetuning.modality_groups import with_groups
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.runs import finetune
from meta_opt.models.towers import STACKED
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.tree_paths import path_name
from meta_opt.workloads.modality_dropout import drop_modalities
from meta_opt.workloads.modality_groups import GROUPS, modality_groups
from meta_opt.workloads.multimodal import (
    MultimodalConfig,
    multimodal_loss_fn,
    multimodal_workload,
)
from meta_opt.workloads.multimodal_inputs import read_inputs
from meta_opt.workloads.multimodal_model import build_multimodal
from meta_opt.workloads.unimodal import modality_losses, unimodal_of
from meta_opt.workloads.workload import Workload

NAMES = ("image", "text", "audio")


@pytest.fixture(scope="module")
def inputs(root):
    return read_inputs(inputs_config(root))


@pytest.fixture(scope="module")
def module(inputs):
    return build_multimodal(MODEL, inputs)


@pytest.fixture(scope="module")
def adapted(inputs):
    return build_multimodal(dataclasses.replace(MODEL, trainable="lora"), inputs)


def first(inputs, count=8):
    return jax.tree.map(lambda x: x[:count], inputs.splits["train"])


def paths_of(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [path_name(path) for path, _ in leaves]


# Modality dropout


def present_of(batch):
    return np.stack([np.asarray(batch[f"{m}_present"]) for m in NAMES], axis=1)


def examples(count, seed=0):
    """Three, two, one and no modalities, of all combinations."""
    rng = np.random.default_rng(seed)
    present = rng.random((count, 3)) < 0.7
    batch = {m: np.zeros((count, 2)) for m in NAMES}
    return batch | {f"{m}_present": present[:, i] for i, m in enumerate(NAMES)}


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_the_rate_is_that_of_examples_that_lose_one(rate):
    batch = examples(30_000)
    before = present_of(batch)
    after = present_of(drop_modalities(batch, NAMES, rate, jax.random.key(1)))
    several = before.sum(1) > 1
    lost = (before & ~after).sum(1)
    assert not (after & ~before).any()
    assert (lost[~several] == 0).all() and lost.max() <= 1
    # Of a binomial's standard deviation, four.
    margin = 4 * np.sqrt(rate * (1 - rate) / several.sum())
    assert abs(lost[several].mean() - rate) <= margin
    assert (after.any(1) == before.any(1)).all()
    if rate == 1.0:
        # Each of the modalities that there are equally often.
        whole = before.all(1)
        shares = (before & ~after)[whole].mean(0)
        np.testing.assert_allclose(shares, 1 / 3, atol=4 * np.sqrt(2 / 9 / whole.sum()))


def test_what_is_not_marked_is_there():
    batch = {m: np.zeros((64, 2)) for m in NAMES}
    found = drop_modalities(batch, NAMES, 1.0, jax.random.key(0))
    np.testing.assert_array_equal(present_of(found).sum(1), 2)
    assert batch.keys() == set(NAMES)  # The caller's is as it was.


def test_errors_of_modality_dropout(root):
    config = MultimodalConfig(inputs_config(root), MODEL)
    for rate in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"modality_dropout={rate} is a prob"):
            dataclasses.replace(config, modality_dropout=rate)
    for kind, message in (
        ("retrieve", r"'toy_retrieve' embeds each modality separately"),
        ("caption", r"'toy_caption' has image as its only"),
    ):
        wrong = MultimodalConfig(inputs_config(root, kind), MODEL, 0.2)
        with pytest.raises(ValueError, match=message):
            wrong.build()
    read = dataclasses.replace(MODEL, readout=True)
    with pytest.raises(ValueError, match=r"dropout=0\.2 and model\.readout"):
        MultimodalConfig(inputs_config(root), read, 0.2).build()


# Each modality alone


@pytest.mark.parametrize("modality", NAMES)
def test_alone_is_with_all_others_masked(inputs, module, modality):
    batch = first(inputs)
    masked = dict(batch)
    for other in set(NAMES) - {modality}:
        masked[f"{other}_present"] = np.zeros(8, bool)

    @nnx.jit
    def both(model, batch, masked):
        tokens = {modality: model.encode(batch)[modality]}
        return model.classify_encoded(tokens, batch), model.classify(masked)

    alone, expected = both(module.merge(module.params, module.frozen), batch, masked)
    np.testing.assert_allclose(alone, expected, atol=1e-5)


@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_strengths_come_beside_the_workloads_own_loss(inputs, module, dropout):
    """Strengths heed what the examples have, not what dropout leaves of it."""
    batch, key = first(inputs), jax.random.key(3)
    arrays = module.params, module.frozen
    fn = jax.jit(unimodal_of(module, inputs, dropout).fn)
    loss, (strengths, examples, metrics) = fn(*arrays, batch, key)
    loss_fn = jax.jit(multimodal_loss_fn(module, inputs, dropout))
    expected, own = loss_fn(*arrays, batch, key)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics.keys() == own.keys()
    # Of the first eight examples, two have no sound and one no text.
    np.testing.assert_array_equal(examples, [8, 7, 6])
    model = module.merge(*arrays)
    for m, strength in zip(NAMES, strengths, strict=True):
        masked = {**batch, **{f"{n}_present": np.zeros(8, bool) for n in NAMES}}
        masked[f"{m}_present"] = batch[f"{m}_present"]
        right = jax.nn.softmax(_classify(model, masked))[np.arange(8), batch["label"]]
        picked = np.where(batch[f"{m}_present"], right, 0).sum()
        np.testing.assert_allclose(strength, picked, rtol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_losses_of_modalities_are_those_with_all_others_masked(inputs, module, dropout):
    """The joint loss is the workload's own; dropout leaves the others as they are."""
    batch, key = first(inputs), jax.random.key(3)
    arrays = module.params, module.frozen
    losses = modality_losses(module, inputs, dropout)
    assert losses.names == (losses.primary, *NAMES)
    found, metrics = jax.jit(losses.fn)(*arrays, batch, key)
    expected, own = jax.jit(multimodal_loss_fn(module, inputs, dropout))(
        *arrays, batch, key
    )
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    assert metrics.keys() == own.keys()
    model = module.merge(*arrays)
    for m, loss in zip(NAMES, found[1:], strict=True):
        masked = {**batch, **{f"{n}_present": np.zeros(8, bool) for n in NAMES}}
        masked[f"{m}_present"] = batch[f"{m}_present"]
        log_probs = jax.nn.log_softmax(_classify(model, masked))
        right = log_probs[np.arange(8), batch["label"]]
        mean = -np.mean(np.asarray(right)[batch[f"{m}_present"]])
        np.testing.assert_allclose(loss, mean, rtol=1e-4)


def test_a_modality_that_no_example_has_gives_no_loss_and_no_gradient(inputs, module):
    batch = first(inputs)
    lacking = NAMES[1]
    batch = {**batch, f"{lacking}_present": np.zeros(8, bool)}
    losses = modality_losses(module, inputs)

    def total(params):
        found, _ = losses.fn(params, module.frozen, batch, jax.random.key(0))
        return jnp.nansum(found), found

    grads, found = jax.jit(jax.grad(total, has_aux=True))(module.params)
    assert np.isnan(found).tolist() == [name == lacking for name in losses.names]
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("method", OF_LOSSES)
def test_methods_for_several_losses_balance_modalities_too(inputs, module, method):
    workload = multimodal_workload(module, inputs, "toy")
    objective = balanced_objective(workload, balancing=BalancingConfig(method))
    state = objective.init(jax.random.key(0))
    found = jax.jit(objective.gradient)(
        state, module.params, module.frozen, first(inputs), jax.random.key(1)
    )
    assert {"loss/joint", *(f"loss/{m}" for m in NAMES)} <= set(found.metrics)
    grads = found.grads
    if objective.modulate is not None:
        grads, _ = jax.jit(objective.modulate)(
            found.grads, found.signals, jax.random.key(2)
        )
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    # Not that of the joint loss alone.
    plain = jax.jit(balanced_objective(workload).gradient)(
        (), module.params, module.frozen, first(inputs), jax.random.key(1)
    )
    pairs = zip(*map(jax.tree.leaves, (grads, plain.grads)), strict=True)
    assert any(np.abs(a - b).max() > 1e-3 * np.abs(b).max() for a, b in pairs)


@nnx.jit
def _classify(model, batch):
    return model.classify(batch)


def test_only_classifications_of_several_modalities_have_them(inputs, module):
    wrong = [inputs._replace(kind=kind) for kind in ("score", "retrieve", "caption")]
    for of in (unimodal_of, modality_losses):
        for other in (*wrong, inputs._replace(modalities=("text",))):
            assert of(module, other) is None


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_every_modality_has_parameters_of_its_own(inputs, module, adapted, trainable):
    parts = module if trainable == "all" else adapted
    paths, patterns = paths_of(parts.params), unimodal_of(parts, inputs).encoders
    owned = [{p for p in paths if re.search(x, p)} for x in patterns]
    assert not set.intersection(*owned)
    for modality, own in zip(NAMES, owned, strict=True):
        assert any(p.startswith(f"encoders/{modality}/") for p in own)
        assert any(p.startswith(f"projections/{modality}/") for p in own)
    shared = set(paths) - set().union(*owned)
    assert {p.split("/")[0] for p in shared} == {"fusion", "heads"}


# Groups


def test_groups_reach_the_optimizer(adapted):
    """The rule under the controller refuses a pattern that finds nothing."""
    params = adapted.params
    workload = Workload(params, None, None, groups=modality_groups(params))
    own = (("^heads", "other"),)
    settings = OptimizerConfig("hand_designed", 4, stacked=STACKED, groups=own)
    given = with_groups(settings, workload)
    assert given.groups == (*own, *workload.groups)
    assert {group for _, group in workload.groups} == {
        *("vision", "text", "audio", "fusion", "head")
    }
    jax.eval_shape(make_optimizer(given).init, params)
    with pytest.raises(ValueError, match=r"groups pattern .* matches no parameter"):
        wrong = dataclasses.replace(given, groups=GROUPS)
        jax.eval_shape(make_optimizer(wrong).init, params["heads"])


def test_names_do_not_mislead_the_groups():
    for path, group in {
        "heads/language/kernel": "head",
        "cross_encoder/layers/attention/key/kernel": "fusion",
        "masked_frame": "video",
        "temporal/project/kernel": "video",
        "encoders/image/head/conv/kernel": "vision",
        "projections/audio/modality_embedding": "audio",
    }.items():
        assert modality_group(path, GROUPS) == group


# Whole runs


def run_config(root, trainable="all", steps=4, name="adamw", **changes):
    settings = {"learning_rate": 3e-3} if name == "adamw" else {}
    return RunConfig(
        MultimodalConfig(
            inputs_config(root), dataclasses.replace(MODEL, trainable=trainable), 0.2
        ),
        loop=LoopConfig(steps, 12, eval_every=8, log_every=2, progress=False),
        optimizer=OptimizerConfig(name, num_steps=steps, stacked=STACKED, **settings),
        **changes,
    )


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_a_run_is_modulated(root, trainable):
    finished = finetune(
        run_config(root, trainable, balancing=BalancingConfig("ogm_ge"))
    )
    rows = [r for r in finished.result.history if "train/loss" in r]
    assert len(rows) == 2
    for row in rows:
        factors = [row[f"train/gradient_factor/{m}"] for m in NAMES]
        strengths = [row[f"train/strength/{m}"] for m in NAMES]
        assert min(factors) < 1 and max(factors) == 1
        assert all(0 < s < 1 for s in strengths)
    assert 0 <= finished.test["accuracy"] <= 1


@pytest.mark.slow
def test_with_balancing_the_task_is_learned(root):
    """And the rule's decisions are logged by the workload's groups."""
    config = run_config(root, steps=32, name="hand_designed",
                        balancing=BalancingConfig("ogm_ge"))  # fmt: skip
    finished = finetune(config)
    losses = [
        r["validation/loss"] for r in finished.result.history if "validation/loss" in r
    ]
    assert losses[-1] < 0.9 * losses[0]
    names = {key for record in finished.result.history for key in record}
    assert {"optimizer/text/step", "optimizer/fusion/step"} <= names
