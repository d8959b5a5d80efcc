"""Fine-tuning steps of the vision-text model over eight devices are those of one.

Tolerances, from what was measured after three steps. Another layout sums in another
order, which changes a gradient by a few float32 roundings: losses differed by up to
2e-7 of themselves, AdamW's moments by up to 3e-6 of a tensor's largest element and its
parameters by up to 4e-5 of the largest (where a gradient is small, dividing by its own
size makes rounding large).
The gradient of the keys' bias is zero, since softmax does not see it, and what rounding
leaves of it any optimizer of this kind divides by its own size. So a term of the loss
gives these biases a gradient. The learned optimizer's parameters then differ by up to
4e-7 after the first step with all parameters and 2e-6 with adapters, by 3e-3 and 2e-6
after the third (elements of its bfloat16 momentum round the other way), the losses by
3e-7.
"""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models_small import SMALL, TOWER, small_batch, small_model
from paths import ROOT

from meta_opt.finetuning.objective import single_loss
from meta_opt.finetuning.state import init_state
from meta_opt.finetuning.step import make_train_step
from meta_opt.models.lora import LoRAConfig, add_lora
from meta_opt.models.vision_text import STACKED
from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
from meta_opt.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from meta_opt.parallel.sharding import VISION_TEXT_RULES
from meta_opt.tree_paths import join_path, leaves_by_path
from meta_opt.workloads.contrastive import contrastive_loss
from meta_opt.workloads.image_text_model import trainable_filter
from meta_opt.workloads.workload import split_module

LAYOUTS = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(fsdp=8),
    "data-fsdp": MeshConfig(data=2, fsdp=4),
    "tensor-fsdp": MeshConfig(tensor=2, fsdp=4),
    "data-fsdp-tensor": MeshConfig(data=2, fsdp=2, tensor=2),
}
# The small model is below the size from which parameters are divided.
RULES = [dataclasses.replace(rule, min_size=0) for rule in VISION_TEXT_RULES]
LORA = LoRAConfig(r"(attention/(query|value|out)|mlp/(up|down))/kernel$", rank=2)
LEARNING_RATE, STEPS = 1e-3, 3


def optimizer(name):
    settings = {} if name == "learned" else {"learning_rate": LEARNING_RATE}
    return make_optimizer(
        OptimizerConfig(name, num_steps=20, stacked=STACKED, **settings)
    )


def loss_with_key_bias(model):
    """The contrastive loss, and a gradient for what softmax does not see."""
    loss_fn = contrastive_loss(model)

    def loss_with_term(params, frozen, batch, rng):
        loss, metrics = loss_fn(params, frozen, batch, rng)
        for path, x in jax.tree_util.tree_leaves_with_path(params):
            if "key/bias" in join_path(path):
                slope = jnp.cos(jnp.arange(x.size, dtype=x.dtype))
                loss += 1e-2 * jnp.vdot(slope.reshape(x.shape), x)
        return loss, metrics

    return loss_with_term


def compiled_step(module, name, trainable, layout, batch):
    """The state of step 0 on the mesh, the compiled step, and a batch on the mesh."""
    if trainable == "lora":
        add_lora(module, LORA, rngs=nnx.Rngs(0))
    model, tx, mesh = (
        split_module(module, trainable_filter(trainable)),
        optimizer(name),
        make_mesh(layout),
    )
    state = init_state(model.params, model.frozen, tx, mesh, RULES)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    batch = jax.device_put(batch, batch_sharding(mesh))
    step = jax.jit(
        make_train_step(single_loss(loss_with_key_bias(model)), tx),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    # Compiled ahead, it rejects a state that comes back in another layout.
    with jax.set_mesh(mesh):
        return state, step.lower(state, batch).compile(), batch


def take_steps(name, trainable, layout):
    """Losses of the steps; parameters and optimizer state by path, after all steps and
    after the first."""
    state, step, batch = compiled_step(
        small_model(), name, trainable, layout, small_batch(16)
    )
    losses, after = [], []
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        after.append((by_path(state.params), by_path(state.opt_state)))
    return losses, *after[-1], *after[0]


def by_path(tree):
    return {
        path: np.asarray(leaf, np.float64)
        for path, leaf in leaves_by_path(tree).items()
        if leaf.size
    }


unsharded = functools.cache(functools.partial(take_steps, layout=MeshConfig()))


def differences(found, expected):
    """Of each tensor the largest, relative to its largest element."""
    return {
        name: np.max(np.abs(found[name] - x)) / max(np.max(np.abs(x)), 1e-30)
        for name, x in expected.items()
    }


def assert_all_below(found, expected, tolerance):
    wrong = {k: d for k, d in differences(found, expected).items() if d > tolerance}
    assert not wrong


each_layout = pytest.mark.parametrize(
    "layout",
    [
        pytest.param(name, marks=() if name == "data-fsdp-tensor" else pytest.mark.slow)
        for name in LAYOUTS
    ],
)
each_way = pytest.mark.parametrize(
    "trainable", ["all", pytest.param("lora", marks=pytest.mark.slow)]
)


@pytest.mark.slow
@each_way
@each_layout
def test_adamw_sharded_is_adamw_unsharded(layout, trainable):
    losses, params, moments, *_ = take_steps("adamw", trainable, LAYOUTS[layout])
    expected = unsharded("adamw", trainable)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-6)
    assert_all_below(params, expected[1], 1e-4)
    assert_all_below(moments, expected[2], 1e-5)


@each_way
@each_layout
def test_learned_sharded_is_learned_unsharded(layout, trainable):
    losses, params, _, first, state = take_steps("learned", trainable, LAYOUTS[layout])
    expected = unsharded("learned", trainable)
    assert_all_below(first, expected[3], 1e-5)
    moments = {k: x for k, x in state.items() if k.startswith(("momentum", "second"))}
    assert_all_below(moments, {k: expected[4][k] for k in moments}, 5e-3)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-6)
    assert_all_below(params, expected[1], 2e-5 if trainable == "lora" else 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "learned"])
def test_no_device_holds_a_large_array_whole(name):
    # Matrices that the learned optimizer does not count as small.
    tower = dataclasses.replace(TOWER, width=192, mlp_width=320, depth=3)
    config = dataclasses.replace(SMALL, vision=tower, text=tower, vocab_size=1024)
    state, step, _ = compiled_step(
        small_model(config), name, "all", LAYOUTS["fsdp"], small_batch(16)
    )
    for tree in (state.params, state.opt_state):
        leaves = [x for x in jax.tree.leaves(tree) if x.size >= 4096]
        assert len(leaves) >= 13  # Six kernels of each tower, and the tokens.
        for x in leaves:
            assert {s.data.nbytes * 8 for s in x.addressable_shards} == {x.nbytes}
    # One layer is gathered at a time, never a stack of them; nor is the vocabulary.
    text = step.as_text()
    assert re.search(r"= f32\[192,192\]\S* all-gather", text)
    large = r"1024,192|192,1024|3,192,192|\d+,192,320|\d+,320,192"
    arrays = re.findall(rf"= (?:f32|bf16)\[({large})\]\S* ([\w-]+)\(", text)
    # Orthogonalised are 3 of the 24 square ones on a device, of the others 2 of 12.
    its_own = {"2,192,320", "1,192,320", "3,192,192"}
    assert not {(x, op) for x, op in arrays if x not in its_own or op == "all-gather"}


def run_program(workdir, devices, mesh, *args):
    return subprocess.run(
        [
            sys.executable,
            str(ROOT / "tests/fixtures/finetuning_toy.py"),
            str(workdir),
            f"--mesh={json.dumps(mesh)}",
            *args,
        ],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_run_on_eight_devices_goes_on_on_four_and_ends_on_one(tmp_path):
    parts = [
        (8, {"fsdp": 8}, ("--signal=SIGTERM", "--at=10")),
        (4, {"fsdp": 2, "tensor": 2}, ("--signal=SIGTERM", "--at=9")),
        (1, {}, ()),
    ]
    for devices, mesh, arguments in parts:
        done = run_program(tmp_path / "moved", devices, mesh, *arguments)
        assert done.returncode == (143 if arguments else 0), done.stderr
    assert "resuming" in done.stderr and "from step 1" in done.stderr
    done = run_program(tmp_path / "unmoved", 1, {})
    assert done.returncode == 0, done.stderr
    moved, unmoved = (
        dict(np.load(tmp_path / name / "params.npz")) for name in ("moved", "unmoved")
    )
    assert_all_below(moved, unmoved, 1e-4)
