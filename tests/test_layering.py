"""A module imports only lower layers or its own folder, and importing is cheap."""

import ast
import json
import subprocess
import sys

import pytest
from paths import ROOT

PACKAGE = ROOT / "meta_opt"

LAYERS = {
    "meta_opt.types": 0,
    "meta_opt.mesh_axes": 0,
    "meta_opt.markdown": 0,
    "meta_opt.error_messages": 0,
    "meta_opt.text_files": 0.05,
    "meta_opt.tensor_files": 0.05,
    "meta_opt.tree_paths": 0.05,
    "meta_opt.leases": 0.05,
    "meta_opt.image_processor": 0.1,
    "meta_opt.interruption": 0.1,
    "meta_opt.compilation_cache": 0.1,
    "meta_opt.scalar_events": 0.1,
    "meta_opt.features": 1,
    "meta_opt.losses": 1,
    "meta_opt.metrics": 1,
    "meta_opt.optimizers": 2,
    "meta_opt.models": 2,
    "meta_opt.data": 2,
    "meta_opt.parallel": 2,
    "meta_opt.checkpoints": 2.1,
    "meta_opt.run_log": 2,
    "meta_opt.provenance": 2.1,
    # Of layer 3 in this order: an evaluator is part of a workload, some tasks are small
    # workloads.
    "meta_opt.evaluators": 3.0,
    "meta_opt.meta_loss": 3.0,
    "meta_opt.workloads": 3.1,
    "meta_opt.tasks": 3.2,
    "meta_opt.meta_training": 4,
    "meta_opt.finetuning": 4,
    "meta_opt.tuning": 4,
    "meta_opt.reporting": 4,
    "meta_opt.inference": 4,
    "meta_opt.studies": 5,
    "meta_opt.predictor": 5,
    "experiments": 6,
    "configs": 6,
}
"""Layer of every folder or top-level module; one that is new is added here."""


def sources():
    return sorted(
        path
        for folder in ("meta_opt", "experiments", "configs")
        for path in (ROOT / folder).rglob("*.py")
    )


def package_of(module):
    """The folder (or top-level module) that a dotted module name belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "meta_opt" else parts[0]


def dotted(path, root=ROOT):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source, module):
    """Dotted names that ``source`` imports, in functions too, but for typing only."""
    found = []

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            for alias in node.names:
                # `from meta_opt import data` names a package by its last part.
                whole = f"{node.module}.{alias.name}"
                found.append(
                    (whole if node.module == "meta_opt" else node.module, node.lineno)
                )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def violations(source, module):
    here = package_of(module)
    if here == "meta_opt":  # the package's own __init__ leads to the public names
        return []
    wrong = []
    for name, line in imports(source, module):
        there = package_of(name)
        if there == here or there not in LAYERS:
            continue
        lower = LAYERS[there] < LAYERS[here]
        # In the top layer, configs know only each other.
        if here == "configs" or not (lower or here == "experiments"):
            wrong.append(f"{module}:{line} imports {name}")
    return wrong


def test_every_package_has_a_layer():
    packages = {package_of(dotted(path)) for path in sources()} - {"meta_opt"}
    assert packages <= set(LAYERS), "a new folder: give it a layer in LAYERS"


def test_imports_go_down():
    found = {path: violations(path.read_text(), dotted(path)) for path in sources()}
    assert len(found) > 200
    assert [line for lines in found.values() for line in lines] == []


@pytest.mark.parametrize(
    "module, source, allowed",
    [
        ("meta_opt.features.x", "import meta_opt.optimizers.learned", False),
        ("meta_opt.features.x", "from meta_opt.types import PyTree", True),
        ("meta_opt.models.x", "def f():\n from meta_opt.data import records", False),
        ("meta_opt.models.x", "from meta_opt import data", False),
        ("meta_opt.tasks.x", "from meta_opt.models.layers import Block", True),
        ("meta_opt.finetuning.x", "from meta_opt.studies import meta_test", False),
        ("meta_opt.finetuning.x", "import experiments.finetune", False),
        ("experiments.x", "from meta_opt.finetuning import loop", True),
        ("configs.x", "from configs.common import base", True),
        ("configs.x", "from meta_opt.types import Batch", False),
    ],
)
def test_the_check_itself(module, source, allowed):
    assert (violations(source, module) == []) == allowed


def test_data_flow_one_way():
    """Of the data's folders, each imports only those before it."""
    order = ["convert", "preprocessing", "catalog", "sources"]
    prefixes = [f"meta_opt.data.{name}." for name in order]
    checked = 0
    for place, folder in enumerate(order):
        for path in (PACKAGE / "data" / folder).rglob("*.py"):
            for name, line in imports(path.read_text(), dotted(path)):
                checked += name.startswith("meta_opt.data.")
                assert not name.startswith(tuple(prefixes[place + 1 :])), (
                    f"{dotted(path)}:{line} imports {name}"
                )
    assert checked > 20


def test_lower_layers_are_pure():
    """Layer 1 is arrays to arrays: no Flax, no I/O."""
    for path in sources():
        module = dotted(path)
        if LAYERS.get(package_of(module)) != 1:
            continue
        for name, line in imports(path.read_text(), module):
            assert name.split(".")[0] not in {"flax", "orbax", "grain", "os", "json"}, (
                f"{module}:{line} imports {name}"
            )


def test_configs_are_data():
    for path in (ROOT / "configs").glob("*.py"):
        for name, line in imports(path.read_text(), dotted(path)):
            assert name.split(".")[0] in {"ml_collections", "configs"}, (
                f"{path.name}:{line} imports {name}"
            )


def test_package_code_gets_no_config_dict():
    for path in PACKAGE.rglob("*.py"):
        for name, line in imports(path.read_text(), dotted(path)):
            assert name.split(".")[0] not in {"ml_collections", "absl"}, (
                f"{dotted(path)}:{line} imports {name}"
            )


def test_no_drawer_for_everything():
    drawers = {"utils", "util", "helpers", "helper", "misc"}
    for path in [*sources(), *(ROOT / "tests").rglob("*.py")]:
        assert not drawers & set(path.relative_to(ROOT).with_suffix("").parts), path


def loaded(statement):
    """Top-level modules of a fresh interpreter after ``statement``."""
    code = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout)}


def test_import_meta_opt_is_lean():
    """Nothing but jax, optax and numpy is there after `import meta_opt`."""
    optional = {
        "flax", "orbax", "tensorflow_datasets", "grain", "safetensors", "tokenizers",
        "sklearn", "optuna", "tqdm", "matplotlib", "tensorboardX", "PIL", "jinja2",
        "ml_collections", "tensorstore", "array_record",
    }  # fmt: skip
    found = loaded("import meta_opt")
    assert not found & optional
    # All that it loads, it has from optax.
    extra = found - loaded("import jax, numpy, optax") - {"meta_opt"}
    assert not extra - set(sys.stdlib_module_names), extra
    # The optimizer itself needs no more either, but for reading its weights.
    using = "import meta_opt; meta_opt.hand_designed; meta_opt.learned_optimizer"
    assert not loaded(using) & optional
