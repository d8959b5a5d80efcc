"""Plans the memory of a fine-tuning step per device, without needing the TPU.

    python -m experiments.plan_memory --config configs/plan_memory.py:so400m \
        --config.topology=v5e:2x2

Compiles the training step with abstract arrays and reports bytes of parameters,
gradients, optimizer state and everything else at the peak, floating-point operations,
whether the step fits, and the largest micro-batch that does. TPU topologies need the
extra ``tpu``. Finished plans are kept in ``--workdir``, so that the same command
resumes (use another folder after a change of the code).
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Make the repository importable from any working directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import cli
from meta_opt.text_files import read_json, write_json

CONFIG = cli.define_config()
WORKDIR = cli.define_workdir("runs/plan_memory", "Folder for finished plans.")

_OF_THE_WHOLE = ("trainable", "optimizers", "results", "largest_of")
"""Settings that a single plan does not depend on."""


def subject(settings: dict[str, Any]) -> tuple[Any, Any, dict[str, Any], str]:
    """Returns class and configuration of the model, rules, batch and name of the loss.

    The batch is abstract and has one example.
    """
    import jax
    import jax.numpy as jnp

    from meta_opt.types import from_config
    from meta_opt.workloads.image_text_architecture import (
        CONTRASTIVE,
        ModelConfig,
        architecture,
        kind_of,
    )

    names = ("size", "loss", "dtype", "param_dtype", "remat")
    model = {"weights": settings["model"], **{k: settings[k] for k in names}}
    made = architecture(from_config(ModelConfig, model))
    kind = kind_of(made)
    lengths = {"text": settings["text_length"]}
    if kind is not CONTRASTIVE:
        lengths["prompt"] = settings["prompt_length"]
    else:
        lengths["text"] = made.text_length  # type: ignore[union-attr]
    image = (1, made.image_size, made.image_size, 3)
    batch = {
        "image": jax.ShapeDtypeStruct(image, jnp.uint8),
        **{k: jax.ShapeDtypeStruct((1, n), jnp.int32) for k, n in lengths.items()},
    }
    return functools.partial(kind.module, made), kind.rules, batch, settings["loss"]


def abstract_training(
    settings: dict[str, Any], trainable: str, optimizer: str
) -> tuple[Any, Any, Any]:
    """Returns the abstract model, split into its parts; the optimizer; the mesh."""
    from flax import nnx

    from meta_opt.finetuning.planning import topology_devices
    from meta_opt.models.lora import LoRAConfig, add_lora
    from meta_opt.models.vision_text import STACKED
    from meta_opt.optimizers.registry import OptimizerConfig, make_optimizer
    from meta_opt.parallel.mesh import MeshConfig, make_mesh
    from meta_opt.types import from_config
    from meta_opt.workloads.image_text_model import trainable_filter
    from meta_opt.workloads.workload import split_module

    create, *_ = subject(settings)
    devices = topology_devices(settings["topology"])
    mesh = make_mesh(from_config(MeshConfig, settings["mesh"]), devices)

    def build() -> nnx.Module:
        model = create(rngs=nnx.Rngs(0))
        if trainable == "lora":
            lora = from_config(LoRAConfig, settings["lora"])
            add_lora(model, lora, rngs=nnx.Rngs(0))
        return model

    model = split_module(nnx.eval_shape(build), trainable_filter(trainable))
    own: dict[str, Any] = {"learning_rate": 1e-4}
    if optimizer == "learned":
        own = {"weights": settings["weights"], "stacked": STACKED}
    tx = make_optimizer(OptimizerConfig(name=optimizer, num_steps=1000, **own))
    return model, tx, mesh


def plans(settings: dict[str, Any], kept: Path) -> list[dict[str, Any]]:
    """Returns a row for each way of training and optimizer.

    Finished rows are stored in the file ``kept`` and reused.
    """
    import jax
    from tqdm import tqdm

    known = read_json(kept) if kept.is_file() else {}
    rows = []
    cases = [(t, o) for t in settings["trainable"] for o in settings["optimizers"]]
    bar = tqdm(cases, desc="plans", unit="plan")
    for trainable, optimizer in bar:
        at_most = settings["most_examples"] * (trainable in settings["largest_of"])
        same = {k: v for k, v in settings.items() if k not in _OF_THE_WHOLE}
        same["most_examples"] = at_most
        key = json.dumps([trainable, optimizer, jax.__version__, same], sort_keys=True)
        if key not in known:

            def announce(size: int, what: str = f"{trainable}, {optimizer}") -> None:
                bar.set_postfix_str(f"{what}, batch of {size}")

            known[key] = row(settings, trainable, optimizer, at_most, announce)
            write_json(kept, known)
        rows.append(known[key])
    return rows


def row(
    settings: dict[str, Any],
    trainable: str,
    optimizer: str,
    at_most: int,
    announce: Callable[[int], None],
) -> dict[str, Any]:
    """Plans one way of training with one optimizer.

    Args:
        settings: the configuration.
        trainable: ``all`` or ``lora``.
        optimizer: name of the optimizer.
        at_most: upper bound of the search for the largest batch, in examples per
            shard; 0 skips the search.
        announce: called with each batch size before it is compiled.
    """
    import jax

    from meta_opt.finetuning.planning import largest_batch, plan_step
    from meta_opt.parallel.mesh import batch_shards
    from meta_opt.workloads.image_text import image_text_loss

    _, rules, example, loss = subject(settings)
    model, tx, mesh = abstract_training(settings, trainable, optimizer)

    def plan(size: int) -> Any:
        announce(size)
        batch = {
            k: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
            for k, x in example.items()
        }
        return plan_step(
            model.params,
            model.frozen,
            image_text_loss(model, loss),
            tx,
            batch,
            mesh,
            rules,
            settings["accumulation_steps"],
        )

    found = plan(batch_shards(mesh) * settings["examples"])
    most = None
    if at_most:
        best = largest_batch(plan, found, mesh, at_most)
        most = best.batch_size // batch_shards(mesh) if best else 0
    return {
        "trainable": trainable,
        "name": optimizer,
        **dataclasses.asdict(found),
        "fits": found.fits,
        "largest_examples": most,
    }


def main() -> None:
    """Compiles the plans and writes the report."""
    import jax

    from meta_opt.compilation_cache import use_compilation_cache
    from meta_opt.reporting.memory_plan import memory_table, write_memory_plan

    settings = CONFIG.value.to_dict()
    if not settings["topology"]:  # Programs for a topology cannot be loaded back.
        use_compilation_cache()
    rows = plans(settings, Path(WORKDIR.value) / "plans.json")
    facts = {
        **cli.report_facts(settings),
        "model": settings["model"] or settings["size"],
        "topology": settings["topology"] or f"{len(jax.devices())} devices here",
        "mesh": ", ".join(f"{k}={v}" for k, v in settings["mesh"].items()),
        "examples a shard": settings["examples"],
        "numerics": f"computation {settings['dtype']}, parameters "
        f"{settings['param_dtype']}, recomputation {settings['remat']}",
    }
    print(memory_table(rows))
    if settings["results"]:
        write_memory_plan(settings["results"], rows, facts)
        print(f"written: {settings['results']}/memory_plan.md, memory_plan.json")


if __name__ == "__main__":
    cli.run(main)
