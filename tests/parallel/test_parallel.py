"""Meshes and sharding rules."""

import logging

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from meta_opt.parallel.mesh import (
    MeshConfig,
    batch_sharding,
    check_batch_size,
    make_mesh,
)
from meta_opt.parallel.sharding import FSDP_RULES, Rule, parameter_shardings


def shapes(**leaves):
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in leaves.items()
    }


def specs(rules, mesh, tree):
    (shardings,) = parameter_shardings(rules, mesh, tree)
    return jax.tree.map(lambda s: s.spec, shardings)


def test_default_is_one_device():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


def test_minus_one_takes_the_rest():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    x = jax.device_put(jnp.zeros((8, 3)), batch_sharding(mesh))
    assert x.addressable_shards[0].data.shape == (2, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=16), "needs 16 devices, and there are 8"),
        (MeshConfig(data=-1, tensor=3), "multiple of 3 devices, and there are 8"),
        (MeshConfig(data=-1, fsdp=-1), "at most one -1"),
        (MeshConfig(data=0), "must be positive"),
    ],
)
def test_impossible_meshes(config, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(config)


def test_batch_must_divide():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2))
    check_batch_size(mesh, 24, accumulation_steps=3)
    with pytest.raises(ValueError, match=r"batch_size=20 .* multiple of 12"):
        check_batch_size(mesh, 20, accumulation_steps=3)


def test_first_rule_wins_and_specs_count_from_the_last_axis():
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    tree = {
        "mlp": shapes(kernel=(6, 16)),
        "layers": {"mlp": shapes(kernel=(3, 6, 16), bias=(3, 16))},
        "head": shapes(kernel=(8, 6), scale=()),
    }
    rules = (Rule(r"mlp/kernel$", (None, "tensor"), largest="fsdp"), *FSDP_RULES)
    assert specs(rules, mesh, tree) == {
        "mlp": {"kernel": PartitionSpec("fsdp", "tensor")},
        "layers": {
            "mlp": {
                "kernel": PartitionSpec(None, "fsdp", "tensor"),
                "bias": PartitionSpec(None, "fsdp"),
            }
        },
        "head": {"kernel": PartitionSpec("fsdp", None), "scale": PartitionSpec()},
    }


def test_small_parameters_stay_whole():
    mesh = make_mesh(MeshConfig(fsdp=2))
    rules = (Rule(".*", largest="fsdp", min_size=64),)
    assert specs(rules, mesh, shapes(a=(8, 8), b=(8, 7))) == {
        "a": PartitionSpec(None, "fsdp"),
        "b": PartitionSpec(None, None),
    }


def test_a_rule_that_cannot_apply_is_logged_and_replicates(caplog):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    rules = (Rule("odd", (None, "tensor"), largest="fsdp"), Rule("vector", ("tensor",)))
    with caplog.at_level(logging.WARNING):
        found = specs(rules, mesh, shapes(odd=(3, 6), vector=()))
    # The tensor axis does not divide 6, which leaves it to fsdp.
    assert found == {"odd": PartitionSpec(None, "fsdp"), "vector": PartitionSpec()}
    assert "axis 1 of odd (3, 6) is not divisible by tensor=4" in caplog.text
    assert "vector has shape ()" in caplog.text


def test_a_pattern_that_matches_nothing_is_an_error():
    mesh = make_mesh(MeshConfig())
    with pytest.raises(ValueError, match=r"\['mpl/'\] match none of the 1 parameters"):
        parameter_shardings((Rule("mpl/"), Rule(".*")), mesh, shapes(mlp=(2,)))
    with pytest.raises(ValueError, match="names the mesh axis 'model'"):
        parameter_shardings((Rule(".*", ("model",)),), mesh, shapes(mlp=(2,)))


def test_a_rule_may_match_in_one_of_several_trees():
    mesh = make_mesh(MeshConfig())
    one, two = parameter_shardings(
        (Rule("lora_a"), Rule("kernel")), mesh, shapes(lora_a=(2,)), shapes(kernel=(2,))
    )
    assert list(one) == ["lora_a"] and list(two) == ["kernel"]
