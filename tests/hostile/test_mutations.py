"""Readers of files from outside on damaged ones, with a few mutations of each format.

``META_OPT_MUTATIONS=20000`` makes more of them, and ``python -m experiments.hostile``
does so with a table of outcomes.
"""

import os
import sys

import numpy as np
import pytest
from paths import FIXTURES

from experiments.hostile_files.formats import FORMATS
from experiments.hostile_files.mutations import KINDS, mutate
from experiments.hostile_files.trial import BROKEN, report, try_formats

MUTATIONS = int(os.environ.get("META_OPT_MUTATIONS", "15"))
CHEAP = [name for name, found in FORMATS.items() if not found.costly]
COSTLY = [name for name, found in FORMATS.items() if found.costly]


@pytest.fixture(scope="module")
def trials():
    return try_formats(CHEAP, MUTATIONS)


@pytest.mark.parametrize("name", CHEAP)
def test_a_damaged_file_gives_a_value_or_a_documented_error(trials, name):
    trial = trials[name]
    assert not trial.problems, report({name: trial})
    assert trial.outcomes.total() == MUTATIONS and trial.outcomes["refused"]


@pytest.mark.slow
def test_so_do_damaged_folders_of_models_studies_and_checkpoints():
    trials = try_formats(COSTLY, MUTATIONS)
    assert not any(trial.problems for trial in trials.values()), report(trials)


@pytest.mark.parametrize("name", ["valid", "refused", *BROKEN])
def test_a_reader_that_breaks_the_contract_is_found(broken, name):
    # The change may give the file that is whole.
    outcomes = broken[name].outcomes
    assert outcomes.total() == 2 and outcomes[name] == 2
    assert bool(broken[name].problems) == (name in BROKEN)
    assert f"{name}, mutation 0: {name}: " in report(broken) or name not in BROKEN


@pytest.fixture(scope="module")
def broken():
    command = (sys.executable, str(FIXTURES / "hostile_worker.py"))
    return try_formats(["valid", "refused", *BROKEN], 2, command=command)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutation_is_the_same_for_the_same_seed(kind):
    data = next(
        found.files()[name]
        for found in FORMATS.values()
        for name, of_it in found.damage.items()
        if of_it == kind and not found.costly
    )
    made = [mutate(data, kind, np.random.default_rng([1, i])) for i in range(20)]
    again = [mutate(data, kind, np.random.default_rng([1, i])) for i in range(20)]
    assert made == again and len(set(made)) > 12
