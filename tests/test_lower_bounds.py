"""The oldest versions that are tested are those that pyproject.toml promises."""

import importlib.util

import pytest
from paths import ROOT


def load():
    path = ROOT / ".ci" / "lower_bounds.py"
    spec = importlib.util.spec_from_file_location("lower_bounds", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_highest_of_several_bounds_counts():
    bounds = load().lower_bounds(["optax>=0.2.5", "Optax>=0.2.10,<1"])
    assert {name: str(v) for name, v in bounds.items()} == {"optax": "0.2.10"}


def test_a_requirement_without_a_bound_is_an_error():
    with pytest.raises(ValueError, match="'numpy' has no lower bound"):
        load().lower_bounds(["numpy"])


def test_every_extra_that_the_tests_need_is_pinned():
    lines = load().constraints(ROOT / "pyproject.toml")
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(names) and {"jax", "optuna", "pytest", "scipy"} <= set(names)
