"""A run on 1, 2 and 8 devices is one run, but for the order of sums.

Tolerance: sums of float32 numbers in another order differ by some roundings (1e-7
relative), which AdamW's normalisation amplifies where gradients are small. Measured
after these 8 steps: losses 1.2e-7, relative; parameters 2e-8 of their norm.
"""

import numpy as np
import pytest

from experiments.device_differences import compare, table
from experiments.fault_trials.small_network import small_run

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def alone():
    return small_run(None, 8, 4)


@pytest.mark.parametrize("mesh", [{"fsdp": 2}, {"fsdp": 8}, {"data": 2, "fsdp": 4}])
def test_devices_change_a_run_by_rounding_only(alone, mesh):
    found = compare(small_run(None, 8, 4, **mesh), alone)
    assert found["losses"] < TOLERANCE
    assert found["parameters"] < TOLERANCE


def test_another_length_is_another_run(alone):
    other = small_run(None, 4, 4)
    found = compare(other, alone)
    assert np.isnan(found["losses"])
    assert found["parameters"] > 1e-3
    assert "| 2 | nan |" in table({2: found}, 1)
