"""Shipped controller weights: safetensors with a JSON of their config and hash."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meta_opt.optimizers.controller import ControllerConfig, init_theta
from meta_opt.tensor_files import read_tensors, write_tensors
from meta_opt.text_files import read_versioned, write_json
from meta_opt.types import PyTree, from_config, near_match

DEFAULT = "lstm-v4"
FORMAT = 1
_FOLDER = Path(__file__).parent


def available() -> list[str]:
    """Names of the weights that are shipped."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def _flatten(theta: PyTree) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(theta)
    }


def save_theta(
    path: str | os.PathLike,
    theta: PyTree,
    config: ControllerConfig,
    description: dict[str, Any] | None = None,
) -> None:
    """Writes ``path.safetensors`` and ``path.json``.

    Args:
        path: without suffix.
        theta: the controller's weights.
        config: its shape.
        description: further JSON entries, such as how the weights came about.
    """
    path = Path(path)
    tensors = {k: np.asarray(v, np.float32) for k, v in _flatten(theta).items()}
    record = {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "sha256": write_tensors(path.with_name(path.name + ".safetensors"), tensors),
        **(description or {}),
    }
    write_json(path.with_name(path.name + ".json"), record)


def load_theta(name: str | os.PathLike) -> tuple[PyTree, ControllerConfig]:
    """Reads controller weights.

    Args:
        name: the name of shipped weights, or a path to a ``.safetensors`` file with
            its ``.json`` beside it.

    Returns:
        theta (float32) and the config that it belongs to.

    Raises:
        ValueError: an unknown name (the message lists those there are), a damaged file
            (its hash is not the one in the JSON), or tensors of another architecture.
    """
    file, record = _read_record(name)
    record_file = file.with_suffix(".json")
    tensors = read_tensors(
        file,
        str(record.get("sha256")),
        listed_in=record_file.name,
        remedy="install meta-opt again or fetch the file again",
    )
    try:
        config = from_config(ControllerConfig, record.get("config"), "config")
    except ValueError as error:
        raise ValueError(f"{record_file}: {error}") from None
    template = jax.eval_shape(lambda: init_theta(jax.random.key(0), config))
    expected = {k: tuple(v.shape) for k, v in _flatten(template).items()}
    actual = {k: tuple(v.shape) for k, v in tensors.items()}
    if actual != expected:
        different = sorted(
            k for k in {*actual, *expected} if actual.get(k) != expected.get(k)
        )
        raise ValueError(
            f"{file} holds weights of another architecture: "
            + "; ".join(
                f"{k} is {actual.get(k, 'missing')}, expected "
                f"{expected.get(k, 'nothing')}"
                for k in different
            )
        )
    paths = jax.tree_util.tree_flatten_with_path(template)
    leaves = [
        jnp.asarray(tensors[jax.tree_util.keystr(p, simple=True, separator=".")])
        for p, _ in paths[0]
    ]
    return jax.tree.unflatten(paths[1], leaves), config


def weights_digest(name: str | os.PathLike) -> str:
    """The SHA-256 of a weights file and of the controller's shape, by its JSON.

    Raises:
        ValueError: as `load_theta`, but for damage.
    """
    record = _read_record(name)[1]
    described = [record.get("sha256"), record.get("config")]
    text = json.dumps(described, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_record(name: str | os.PathLike) -> tuple[Path, dict[str, Any]]:
    """The file of weights, and the JSON beside it."""
    name = os.fspath(name)
    is_path = name.endswith(".safetensors")
    file = Path(name) if is_path else _FOLDER / f"{name}.safetensors"
    record_file = file.with_suffix(".json")
    for needed in (file, record_file):
        if not needed.is_file():
            known = available()
            raise ValueError(
                f"there are no weights {name!r} ({needed.name} is missing)"
                f"{near_match(name, known)}; shipped: {', '.join(known) or 'none'}; "
                "or give the path of a .safetensors file"
            )
    return file, read_versioned(record_file, FORMAT)
