"""Tasks in other people's styles: they train, repeat themselves, share no example."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meta_opt.data.catalog.raw_packages import RAW_PACKAGES, prepare_raw, raw_folder
from meta_opt.data.missing import MissingDataError
from meta_opt.optimizers.baselines import baseline
from meta_opt.tasks.families import FAMILIES, SPLIT_OF_DATASET, make_task
from meta_opt.tasks.foreign import DEMO, FOREIGN, STYLE_VALIDATION, data
from meta_opt.tasks.inner_run import InnerRun

LIBRARIES = {"equinox": "equinox", "haiku": "dm-haiku"}
# Others' libraries broadcast; and what they say on import is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# One of each kind of source and library; the others are compiled in the slow tests.
QUICK = {"validation_iris_mlp", "validation_terrain_siren"}
QUICK |= {"foreign_cars_regression"}
RATES = {"validation_iris_mlp": 1e-2, "foreign_cars_regression": 3e-3}


def built(family):
    (library,) = (STYLE_VALIDATION | FOREIGN | DEMO)[family].args[2:3]
    if library and importlib.util.find_spec(library) is None:
        pytest.skip(f"{family} needs {LIBRARIES[library]}, which is not installed")
    try:
        return make_task(family)
    except MissingDataError as error:
        assert "make data" in str(error)
        pytest.skip(f"{family} needs data that are not prepared")


def test_there_are_enough_of_both_sets():
    assert len(STYLE_VALIDATION) >= 6 and len(FOREIGN) >= 10
    assert set(STYLE_VALIDATION) | set(FOREIGN) <= set(FAMILIES)
    assert all(name.startswith("validation_") for name in STYLE_VALIDATION)
    assert all(name.startswith("foreign_") for name in FOREIGN)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in (*STYLE_VALIDATION, *FOREIGN, *DEMO)
    ],
)
def test_adamw_trains_it_and_the_parts_are_disjoint(family):
    task = built(family)
    expected = (
        {"style_validation", "validation"}
        if family in STYLE_VALIDATION
        else {"demo" if family in DEMO else "foreign"}
    )
    assert task.name == family and SPLIT_OF_DATASET[task.dataset] in expected
    with jax.numpy_rank_promotion("allow"):
        run = InnerRun(task, lambda n, s: baseline("adamw", n, **s))
        rate = {"learning_rate": RATES.get(family, 1e-3)}
        start, _ = run([1], 0, rate)
        steps = min(60, task.horizons[1])
        found, _ = run([1], steps, rate)
        again, _ = run([1], steps, rate)
    assert not start.failed().any() and 0 <= start.test_error[0] <= 1
    assert found.validation_loss[0] < start.validation_loss[0]
    assert found.test_loss[0] < start.test_loss[0]
    np.testing.assert_array_equal(np.stack(found), np.stack(again))

    # An example is all its fields together: a title may be that of two drawings.
    rows = []
    for part in task.splits:
        columns = [np.asarray(v) for _, v in sorted(part.items())]
        rows.append(
            {b"".join(c[i].tobytes() for c in columns) for i in range(len(columns[0]))}
        )
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]


@pytest.mark.parametrize("family", ["validation_titles_gru", "foreign_cars_regression"])
def test_a_training_loss_is_noisy_and_the_loss_is_not(family):
    task = built(family)
    with jax.numpy_rank_promotion("allow"):
        params = jax.jit(task.init)(jax.random.key(0))
        batch = {k: v[:32] for k, v in task.splits.train.items()}
        noisy, loss = jax.jit(task.loss_on_batch), jax.jit(task.loss)
        one, two = (noisy(params, batch, jax.random.key(i))[0] for i in (1, 2))
        clean = [loss(params, batch)[0] for _ in range(2)]
    assert one != two and clean[0] == clean[1]


def test_without_a_library_the_error_names_the_extra(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(data.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install meta-opt\[dev\]"):
        data.need("equinox")


@pytest.mark.parametrize("name", sorted(RAW_PACKAGES))
def test_missing_packages_name_the_command(name, tmp_path):
    with pytest.raises(MissingDataError, match=rf"make data.*--only {name}"):
        raw_folder(name, tmp_path)
    folder = tmp_path / "downloads" / "manual" / name / RAW_PACKAGES[name].folder
    folder.mkdir(parents=True)
    assert prepare_raw(name, tmp_path).endswith(str(folder))
    assert raw_folder(name, tmp_path) == folder


def test_tasks_name_the_data_they_miss(tmp_path):
    with pytest.raises(MissingDataError, match="--only oxygen"):
        make_task("foreign_icons_convnext", str(tmp_path))
    with pytest.raises(MissingDataError, match="--only manpages"):
        data.manual_pages(str(tmp_path))


def test_deal_and_characters():
    splits = data.deal({"x": np.arange(20)}, 10, 4, 6)
    assert sorted(np.concatenate([p["x"] for p in splits]).tolist()) == list(range(20))
    with pytest.raises(ValueError, match="only 20"):
        data.deal({"x": np.arange(20)}, 10, 4, 7)
    ids, size = data.ids_of_characters(["ab?", "b"], 4, "ab")
    assert ids.tolist() == [[2, 3, 1, 0], [3, 0, 0, 0]] and size == 4
    assert data.windows("a\u00e4b c", 3, 2).tobytes() == b"aabb c"
    parts = data.in_turn({"x": jnp.arange(9)}, 4, 2, 3)
    assert [p["x"].tolist() for p in parts] == [[0, 1, 2, 3], [4, 5], [6, 7, 8]]


def test_markup_is_left_out():
    page = '.de IX\n..\n.SH NAME\nls \\- list\n.PP\n\\fBls\\fP [\\fIA\\fP]\n.\\" no\n'
    assert data._without_markup(page) == "NAME\nls - list\nls [A]"


def test_a_builder_gives_the_same_task_twice():
    one, two = make_task("validation_iris_mlp"), make_task("validation_iris_mlp")
    assert jax.tree.all(jax.tree.map(jnp.array_equal, one.splits, two.splits))
    same = [jax.jit(t.init)(jax.random.key(3)) for t in (one, two)]
    assert jax.tree.all(jax.tree.map(jnp.array_equal, *same))
