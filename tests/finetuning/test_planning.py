"""Plans of a step: their bytes are those of real arrays, their verdicts can be no."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models_small import SMALL, small_batch, small_model
from paths import ROOT

from meta_opt.finetuning.planning import (
    StepPlan,
    device_bytes,
    largest_batch,
    plan_step,
    product_flops,
    refused,
    topology_devices,
)
from meta_opt.finetuning.state import init_state
from meta_opt.models.vision_text import STACKED, VisionText
from meta_opt.optimizers.learned import learned_optimizer
from meta_opt.parallel.mesh import MeshConfig, make_mesh
from meta_opt.parallel.sharding import VISION_TEXT_RULES
from meta_opt.reporting.memory_plan import write_memory_plan
from meta_opt.workloads.contrastive import contrastive_loss
from meta_opt.workloads.workload import split_module

MESH = make_mesh(MeshConfig(data=2, fsdp=4), jax.devices())
RULES = [dataclasses.replace(rule, min_size=64) for rule in VISION_TEXT_RULES]


def abstract_batch(size):
    return {
        name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
        for name, x in small_batch().items()
        if name != "label"
    }


def plan(tx, size=16, mesh=MESH, model=SMALL, **changes):
    parts = split_module(nnx.eval_shape(lambda: VisionText(model, rngs=nnx.Rngs(0))))
    found = plan_step(
        parts.params,
        parts.frozen,
        contrastive_loss(parts),
        tx,
        abstract_batch(size),
        mesh,
        RULES,
    )
    return dataclasses.replace(found, **changes)


@pytest.mark.parametrize(
    "name", ["adamw", pytest.param("learned", marks=pytest.mark.slow)]
)
def test_bytes_are_those_of_the_arrays_on_a_device(name):
    tx = optax.adamw(1e-3) if name == "adamw" else learned_optimizer(10)
    found = plan(tx)
    model = split_module(small_model())
    state = init_state(model.params, model.frozen, tx, MESH, RULES)
    first = MESH.devices.flat[0]

    def held(tree):
        shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards]
        return sum(s.data.nbytes for s in shards if s.device == first)

    assert found.parameters == found.gradients == held(state.params)
    assert found.optimizer == held(state.opt_state) == device_bytes(state.opt_state)
    assert found.frozen == 0
    parts = (found.parameters, found.gradients, found.optimizer, found.temporary)
    assert found.total >= max(parts) and found.compile_seconds > 0
    assert found.fits is None  # a CPU has no limit that is known


def deep(depth):
    """A model with matrices that are divided, of some number of layers a tower."""
    towers = {
        name: dataclasses.replace(getattr(SMALL, name), depth=depth, width=256)
        for name in ("vision", "text")
    }
    return dataclasses.replace(SMALL, **towers, embed_dim=256)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)])
def test_collectives_of_the_learned_optimizer_do_not_grow_with_depth(shape):
    mesh = make_mesh(MeshConfig(*shape), jax.devices())
    adamw, learned = optax.adamw(1e-3), learned_optimizer(10, stacked=STACKED)
    of_adamw = plan(adamw, mesh=mesh, model=deep(2)).collectives
    extra = [
        plan(learned, mesh=mesh, model=deep(depth)).collectives - of_adamw
        for depth in (2, 4)
    ]
    assert extra[0] == extra[1]


@pytest.mark.slow
def test_flops_grow_with_the_batch_and_loops_are_counted():
    small, large = plan(optax.sgd(0.1)), plan(optax.sgd(0.1), size=32)
    assert small.flops > 0
    assert large.flops == pytest.approx(2 * small.flops, rel=0.1)
    x = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    w = jax.ShapeDtypeStruct((5, 4, 4), jnp.float32)

    def scanned(x, w):
        return jax.lax.scan(lambda y, k: (y @ k, None), x, w)[0]

    assert product_flops(scanned, x, w) == 5 * 2 * 8 * 4 * 4
    assert product_flops(jax.jit(scanned), x, w) == 5 * 2 * 8 * 4 * 4
    with_grad = product_flops(
        jax.grad(lambda x, w: scanned(x, w).sum(), argnums=(0, 1)), x, w
    )
    assert with_grad == pytest.approx(3 * 5 * 2 * 8 * 4 * 4)


def test_the_largest_batch_that_fits_is_found():
    tried = []

    def fake(size):
        tried.append(size)
        numbers = dict.fromkeys(("parameters", "frozen", "gradients", "optimizer"), 0)
        return StepPlan(
            batch_size=size,
            accumulation_steps=1,
            **numbers,
            temporary=size,
            total=size,
            limit=100,
            flops=1.0,
            collectives=0,
            compile_seconds=0.0,
        )

    # 8 shards: the sizes are multiples of 8 with this grain.
    assert largest_batch(fake, fake(16), MESH, grain=1).batch_size == 96
    assert tried == [16, 96, 104]  # The first guess is right where all bytes grow.
    assert largest_batch(fake, fake(512), MESH, grain=1).batch_size == 96
    assert largest_batch(fake, fake(16), MESH, grain=1, most=4).batch_size == 32
    assert largest_batch(fake, fake(8), MESH, grain=2).batch_size == 96
    assert largest_batch(fake, fake(8), MESH, grain=8).batch_size == 64
    never = lambda size: dataclasses.replace(fake(size), total=101)  # noqa: E731
    assert largest_batch(never, never(32), MESH, grain=1) is None


def test_the_largest_batch_is_found_whatever_the_peak_does():
    """Steps, a curve, and peaks that fall: a wrong line costs plans, not the answer."""
    for peak in (lambda n: n // 40 * 40, lambda n: n * n / 100, lambda n: 90):

        def fake(size, peak=peak):
            numbers = dict.fromkeys(("parameters", "frozen", "gradients"), 0)
            rest = {"flops": 1.0, "collectives": None, "compile_seconds": 0.0}
            return StepPlan(
                batch_size=size,
                accumulation_steps=1,
                **numbers,
                optimizer=0,
                temporary=0,
                total=peak(size),
                limit=100,
                **rest,
            )

        expected = max(n for n in range(8, 1601, 8) if peak(n) <= 100)
        for start in (8, 48, 800):
            best = largest_batch(fake, fake(start), MESH, most=200, grain=1)
            assert best.batch_size == expected


def test_a_step_that_cannot_fit_is_not_compiled(monkeypatch):
    from meta_opt.finetuning import planning

    monkeypatch.setattr(planning, "device_limit", lambda device: 1000)
    found = plan(optax.adamw(1e-3))
    assert found.fits is False and found.temporary is None
    assert found.compile_seconds == 0
    assert found.total == found.parameters + found.gradients + found.optimizer


def test_a_refusal_of_the_compiler_is_read():
    temporaries = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the "
        "total memory required for HLO temporaries (17.04G) exceeds available HBM "
        "(15.75G). HLO module: jit_train_step."
    )
    total, limit = refused(temporaries, held=2**30)
    assert total == pytest.approx(18.04 * 2**30) and limit == 15.75 * 2**30
    used = "Ran out of memory in memory space hbm. Used 512.0M of 256M hbm. Exceeded"
    assert refused(used, held=5) == (512 * 2**20, 256 * 2**20)
    with pytest.raises(RuntimeError, match="not compiled: INTERNAL"):
        refused("INTERNAL: something else", held=0)


def test_the_devices_here_and_unknown_topologies():
    assert topology_devices("") == jax.devices()
    with pytest.raises(ValueError, match=r"no topology 'v99:2x2' \(such as v5e:2x2"):
        topology_devices("v99:2x2")
    assert np.prod(MESH.devices.shape) == 8


def test_the_report_says_what_dominates_and_what_fits(tmp_path):
    def row(name, total, largest, **changes):
        fields = dict(
            zip(
                ("parameters", "frozen", "gradients", "optimizer", "temporary"),
                (2, 0, 2, 4, total - 8),
                strict=True,
            )
        )
        sizes = {k: v * 2**30 for k, v in fields.items()} | changes
        return {
            "trainable": "all",
            "name": name,
            **sizes,
            "total": total * 2**30,
            "fits": total <= 16,
            "flops": 3e12,
            "collectives": 7,
            "largest_examples": largest,
        }

    rows = [row("adamw", 10, 64), row("learned", 9, 128), row("lion", 20, 0)]
    text = write_memory_plan(tmp_path, rows, {"command": "c"})
    split = [re.split(r"\s{2,}", line.strip()) for line in text.split("\n")]
    lines = {first: cells for first, *cells in split}
    assert lines["peak"] == ["10.00", "9.00", "20.00"]
    assert lines["peak over AdamW's"] == ["1.00", "0.90", "2.00"]
    assert lines["fits"] == ["yes", "yes", "no"]
    assert lines["largest micro-batch, examples a shard"] == ["64", "128", "0"]
    assert (
        "| dominated by | optimizer state | optimizer state | activations and "
        in (tmp_path / "memory_plan.md").read_text()
    )
    # One that was not compiled has no peak to compare.
    rows[2]["temporary"] = None
    text = write_memory_plan(tmp_path, rows, {})
    assert "-" in next(x for x in text.split("\n") if "peak over" in x).split()


def test_docs_say_what_the_published_plans_hold():
    root = ROOT
    page = (root / "docs" / "memory.md").read_text(encoding="utf-8")
    files = sorted((root / "results/plans").glob("*/memory_plan.json"))
    assert files
    for file in files:
        plans = json.loads(file.read_text(encoding="utf-8"))
        full = {
            r["name"]: r["total"] / 2**30
            for r in plans["rows"]
            if r["trainable"] == "all"
        }
        cells = [f"{full[name]:.2f}" for name in ("adamw", "lion", "learned")]
        cells.append(f"{full['learned'] / full['adamw']:.2f}")
        line = f"| {plans['facts']['topology']} | {' | '.join(cells)} |"
        (found,) = [x for x in page.splitlines() if line in x] or [None]
        assert found, f"{file}: docs/memory.md should have {line}"
        largest = {
            r["name"]: r["largest_examples"]
            for r in plans["rows"]
            if r["trainable"] == "all"
        }
        if largest["adamw"] is not None:
            cells = [str(largest[name]) for name in ("adamw", "lion", "learned")]
            assert found.endswith(f"| {' / '.join(cells)} |"), file
