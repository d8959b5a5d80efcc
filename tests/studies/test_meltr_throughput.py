"""What MELTR costs: counts of compiled programs, the cost model, cells and report."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.meltr_throughput import get_config
from experiments.stored_results import StoredResult
from meta_opt.finetuning.hlo_totals import program_totals
from meta_opt.finetuning.planning import product_flops
from meta_opt.reporting.tables import to_markdown
from meta_opt.studies.meltr_throughput.answer import answer
from meta_opt.studies.meltr_throughput.bars import bars
from meta_opt.studies.meltr_throughput.cases import METHODS, Case
from meta_opt.studies.meltr_throughput.cost_model import HeldOut, Point, fit
from meta_opt.studies.meltr_throughput.measure import measure
from meta_opt.studies.meltr_throughput.report import write_throughput
from meta_opt.studies.meltr_throughput.subjects import loss_names, make_subject
from meta_opt.studies.meltr_throughput.summary import (
    fitted,
    on_one_device,
    over_devices,
    plain,
    read_cells,
)
from meta_opt.text_files import write_json
from meta_opt.types import from_config


def never(runs, rounds):
    raise AssertionError("nothing is to be timed")


@pytest.fixture(scope="module")
def traced():
    """Nano under its primary loss: the fewest operations to trace."""
    case = Case("nano", 1, batch_size=2, level="traced")
    return case, measure(case, never)


@pytest.mark.slow
def test_operations_are_those_of_the_algorithm(traced):
    """Of a product, gradients take two, and so does its tangent.

    With F the forward pass of all losses and P that of the primary one, a meta-step is
    3 P on its first batch, and F + 2 F + 2 F on its second.
    """
    _, record = traced
    flops = {k: v["flops"] for k, v in record["programs"].items()}
    assert flops["meta_primary"] == pytest.approx(flops["primary"], rel=1e-3)
    combiner = flops["meltr"] - flops["equal"]
    assert 0 < combiner < flops["equal"]
    second = flops["meta_finish"] - 5 * combiner
    assert second == pytest.approx(5 / 3 * flops["equal"], rel=0.1)


def test_the_primary_loss_comes_first():
    names = loss_names("nano")
    assert len(names) == 8 and names[0] == "align"
    assert make_subject("nano", 3).names == names[:3]
    losses = make_subject("nano", 2, "lora").workload(concrete=False, examples=1).losses
    assert losses.primary == "align"


def scanned(weights, x):
    def layer(x, w):
        return jnp.tanh(x @ w), None

    return jnp.sum(jax.lax.scan(layer, x, weights)[0] ** 2)


def test_a_loop_counts_as_often_as_it_runs():
    weights, x = jnp.ones((5, 32, 32)), jnp.ones((16, 32))
    function = jax.value_and_grad(scanned)
    compiled = jax.jit(function).lower(weights, x).compile()
    totals = program_totals(compiled.as_text())
    assert totals.dot_flops == product_flops(function, weights, x)
    assert totals.collectives == totals.collective_bytes == 0


def test_messages_in_a_loop_count_as_often_as_it_runs():
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    shard, whole = (
        jax.NamedSharding(mesh, jax.P(*axes)) for axes in ((None, "data"), ())
    )
    weights = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32, sharding=shard)
    x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=whole)
    compiled = jax.jit(scanned).lower(weights, x).compile()
    totals = program_totals(compiled.as_text())
    assert totals.collectives >= 5
    assert totals.collective_bytes >= 5 * 16 * 32 * 4
    assert totals.dot_flops == product_flops(scanned, weights, x) / 4


def test_a_loop_without_the_compilers_note():
    text = """
%body (p: f32[4]) -> f32[4] {
  %p = f32[4] parameter(0)
  %s = ((f32[1]), f32[4]) all-gather-start(%p), channel_id=1
  ROOT %d = f32[4] all-gather-done(%s), channel_id=1
}

%test (q: f32[4]) -> pred[] {
  %q = f32[4] parameter(0)
  %limit = s32[] constant(7)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4] parameter(0)
  ROOT %w = f32[4] while(%a), condition=%test, body=%body
}
"""
    assert program_totals(text) == (0.0, 7, 7 * 4 * 4)
    with pytest.raises(ValueError, match="no program entry in the text"):
        program_totals("HloModule x")


COEFFICIENTS = (3.0, 1.0, 5 / 3, 9.0)


def points(noise=0.0):
    rng = np.random.default_rng(0)
    combiner, primary, losses, constant = COEFFICIENTS
    for model, size in (("nano", 50.0), ("small", 900.0), ("base", 4e4)):
        for count in (1, 2, 4, 8):
            s1, st = size, size * (0.8 + 0.2 * count)
            meta = primary * s1 + losses * st + constant
            for interval in (1, 3, 10):
                factor = 1 + noise * rng.normal()
                yield Point(
                    model, count, interval, s1, st, st + combiner, factor * meta
                )


def test_the_fit_finds_the_formula():
    found = fit([p for p in points() if p.model != "base"])
    np.testing.assert_allclose(dataclasses.astuple(found), COEFFICIENTS, rtol=1e-6)
    assert max(found.step_error(p) for p in points()) < 1e-9
    noisy = fit(list(points(0.02)))
    assert 1e-4 < max(noisy.step_error(p) for p in points()) < 0.05


def test_too_few_cases_are_refused():
    few = [p for p in points() if p.model == "nano" and p.num_losses < 3]
    with pytest.raises(ValueError, match="2 cases of 6 points: the cost model needs"):
        fit(few)


def record(model, count, method="jvp_shared", level="traced", **changes):
    """A cell of the formula."""
    p = next(p for p in points() if (p.model, p.num_losses) == (model, count))
    costs = {"primary": p.primary, "equal": p.equal, "meltr": p.meltr}
    costs |= {"meta_primary": p.primary, "meta_finish": p.meta - p.primary}
    case = Case(model, count, method=method, level=level, **changes)
    rest = ("dot_flops", "peak_bytes", "temporary_bytes", "collectives")
    programs = {k: {"flops": v} | dict.fromkeys(rest) for k, v in costs.items()}
    if level != "traced":
        for number, program in enumerate(programs.values()):
            program |= dict.fromkeys(rest, 2**20 * (number + 1))
            program["dot_flops"] = program["flops"] / case.count
            program["collective_bytes"] = 2**20 * (case.count > 1)
    found = {"name": f"{model} {count} {method} {level}", "programs": programs}
    found |= {
        "case": dataclasses.asdict(case),
        "losses": list(loss_names(model))[:count],
    }
    if level == "timed":
        found["milliseconds"] = {k: v / 10 for k, v in costs.items()}
        found["loops"] = {"equal": p.equal / 10, "3": p.equal / 5}
    return {**found, "environment": {"git": "abc"}}


RECORDS = [
    *(record(m, t) for m in ("nano", "small", "base") for t in (1, 4, 8)),
    record("nano", 8, level="timed", intervals=(3,)),
    record("small", 8, "same_batch"),
    record("small", 8, "half_batch"),
    record("nano", 8, level="compiled"),
    record("nano", 8, level="compiled", devices=4),
    record("small", 8, level="compiled", topology="v5e:2x2"),
]


def test_what_is_held_out_is_not_fitted():
    held_out = HeldOut(models=("base",), num_losses=(4,), intervals=(3,))
    found = fitted(read_cells(RECORDS), (1, 3, 10), held_out)
    assert {(p.model, p.num_losses) for p in found.fitted} == {
        *((m, t) for m in ("nano", "small") for t in (1, 8))
    }
    assert {p.interval for p in found.fitted} == {1, 10}
    assert len(found.held_out) + len(found.fitted) == 27
    assert max(found.model.step_error(p) for p in found.held_out) < 1e-6
    assert fitted(read_cells(RECORDS[:2]), (1, 3), held_out) is None


def test_a_case_counts_once():
    cells = plain(read_cells(RECORDS))
    assert len(cells) == 9
    assert [c.case.model for c in plain(read_cells(RECORDS), "milliseconds")] == [
        "nano"
    ]


def test_the_report_answers_from_the_numbers(tmp_path):
    write = functools.partial(
        write_throughput,
        tmp_path,
        intervals=(1, 3, 10),
        held_out=HeldOut(models=("base",)),
        command="python -m x",
    )
    text = write(RECORDS, total=20)
    assert "**15 of 20 cells are measured.**" in text
    assert "the most of each of 3 models a step with equal weights becomes 2.40" in text
    costs = [c.point(10) for c in read_cells(RECORDS)[:9]]
    for count, share in ((1, 1.0), (8, 2.4)):
        found = [share * (1 + p.overhead) for p in costs if p.num_losses == count]
        assert f"{min(found):.2f} to {max(found):.2f}" in text
    assert "a meta-step of small, T=8, costs" in text and "same_batch" in text
    assert "with meta-batches of half a batch it is " in text
    assert "meta-step over base step, meta-batches of half a batch" in text
    assert "## Devices" in text and "nano, T=8, 4 devices: meta-step" in text
    assert "nano, T=8, K=3 | 2.000" in text
    assert {p.name for p in tmp_path.iterdir()} == {
        f"meltr_throughput{end}" for end in (".md", ".json", ".png", "_devices.png")
    }
    assert "Nothing is measured yet." in write([], total=20)


def test_devices_divide_the_work_and_send_messages():
    cells = read_cells(RECORDS)
    text = answer(cells, None)
    # Two programs of a meta-step send as much as a step each.
    assert "over 4 devices each does 0.250 of the operations of one" in text
    assert "sends 2.00 times the bytes of a step with equal weights" in text
    assert "makes 1.20 times at K=10 (nano, T=8, 4 devices; small, T=8, v5e" in text
    # The peaks are 5, of the meta-step, and 2, of equal weights.
    assert "Peak memory over equal weights: 2.50 (nano, T=8)" in text
    sharded = over_devices(cells)
    assert [c.case.count for c in sharded] == [4, 4]
    assert sharded[0].device_flops("equal") == cells[2].costs("operations")["equal"] / 4
    assert on_one_device(sharded[0], cells).case.count == 1
    assert on_one_device(sharded[0], cells[:9]) is None


def test_bars_of_memory_name_the_cell():
    table = to_markdown(bars(read_cells(RECORDS), None))
    assert "equal weights, small, T=8, v5e:2x2: missed | 1.150 | 2.500" in table
    assert "same with one batch for both, operations" in table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_losses": 9}, "num_losses=9: nano has 8 losses, align, joint"),
        ({"model": "nanno"}, "model='nanno' must be one of"),
        ({"method": "exact"}, "method='exact' must be one of jvp_shared"),
        ({"devices": 0}, "devices=0 must be at least 1"),
        (
            {"method": "quarter_batch", "batch_size": 6},
            "batch_size=6 must be a multiple of 4 for method='quarter_batch'",
        ),
        ({"topology": "v5e:2x2", "level": "timed"}, "can only be compiled for"),
        ({"intervals": (3,)}, r"intervals=\(3,\) must be at least 1, and need level"),
    ],
)
def test_cases_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        Case(**{"model": "nano", "num_losses": 2, **changes})


def test_every_method_is_a_meta_loss():
    for method in METHODS:
        config = Case("nano", 2, method=method).meta_loss("meltr")
        assert config.same_batch == method.startswith("same_")
        assert config.network.num_losses == 2
        size = 4 if "half" in method else 2 if "quarter" in method else 8
        assert config.batch_size == size


@pytest.mark.parametrize("variant", ["full", "smoke"])
def test_the_configs_are_cases(variant):
    config = get_config(variant).to_dict()
    cases = {k: from_config(Case, v, k) for k, v in config["cases"].items()}
    assert len(set(cases.values())) == len(cases)
    from_config(HeldOut, config["held_out"])


def test_a_cell_of_other_settings_is_measured_again(tmp_path):
    path, case = tmp_path / "cell.json", {"model": "nano", "num_losses": 2}
    cell = StoredResult(path, case)
    assert cell.stored() is None
    cell.write({"found": 1})
    assert StoredResult(path, dict(reversed(case.items()))).stored()["found"] == 1
    assert StoredResult(path, {**case, "num_losses": 3}).stored() is None
    write_json(path, {"found": 1})
    with pytest.raises(ValueError, match=r"cell.json is not a result; delete it"):
        cell.stored()
