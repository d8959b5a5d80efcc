"""Costs are summed, priced and divided as on paper; what is unknown stays unknown."""

import dataclasses
import functools
import json
import signal

import pytest
from finetuning_toy import (
    CONFIG,
    SignallingBatches,
    loss_fn,
    make_batches,
    make_data,
    make_evaluate,
    make_params,
)

from meta_opt.data.token_counts import TokenCounter
from meta_opt.finetuning.accuracy_cost import cost_of_accuracy, markdown
from meta_opt.finetuning.energy import Counter, EnergyMeter, find_counters
from meta_opt.finetuning.ledger import (
    Amounts,
    Entry,
    Ledger,
    Prices,
    add_to_file,
    measure,
    read_ledger,
)
from meta_opt.finetuning.run_config import RunConfig
from meta_opt.finetuning.runs import finetune
from meta_opt.interruption import Interrupted
from meta_opt.optimizers.registry import OptimizerConfig
from meta_opt.workloads.workload import Workload

PRICES = Prices("EUR", device_hour=7.2, thousand_tokens_in=0.5, thousand_tokens_out=2.0)


def two_phases():
    ledger = Ledger(PRICES)
    for phase, seconds in (("phase 1", 100.0), ("phase 2", 50.0)):
        training = Amounts(
            seconds, 8 * seconds, 1e12 * seconds, 1e6, 4000, 0, 10 * seconds
        )
        ledger = ledger.add(phase, "training", training)
        ledger = ledger.add(phase, "validation", Amounts(1.0, 8.0, tokens_in=0))
        prediction = Amounts(9.0, 72.0, 1e12, 1e5, 1800, 900, 30.0)
        ledger = ledger.add(phase, "prediction", prediction, count=180)
    return ledger


def test_sums_by_name_and_kind():
    ledger = two_phases()
    assert ledger.total().seconds == 100 + 50 + 2 * (1 + 9)
    assert ledger.total("phase 2").device_seconds == 8 * 50 + 8 + 72
    assert ledger.total(kind="training").joules == 1500
    assert ledger.total("phase 1", "prediction").tokens_out == 900
    assert ledger.names() == ("phase 1", "phase 2")
    # The sum of the parts is the whole.
    parts = [ledger.total(name).seconds for name in ledger.names()]
    assert sum(parts) == ledger.total().seconds


def test_what_was_not_measured_makes_its_sum_unknown():
    total = two_phases().total()
    # Validation counted no operations, no joules and no tokens out.
    assert (total.flops, total.joules, total.tokens_out) == (None, None, None)
    assert total.tokens_in == 2 * (4000 + 1800)
    assert two_phases().money() is None  # Tokens out have a price.
    assert Ledger().total().known() == dict.fromkeys(Amounts().__dict__, 0.0)
    assert Ledger().add("a", "other", Amounts(seconds=1.0)).money() is None


def test_money_by_the_price_table():
    ledger = two_phases()
    # 800 device seconds of 7.2 an hour, 4,000 tokens of 0.5 a thousand.
    assert ledger.money("phase 1", "training") == pytest.approx(1.6 + 2.0)
    assert ledger.money(kind="prediction") == pytest.approx(
        2 * (72 * 7.2 / 3600 + 1.8 * 0.5 + 0.9 * 2.0)
    )
    energy = Prices("EUR", kilowatt_hour=0.3).money(Amounts(joules=7.2e6))
    assert energy == pytest.approx(0.6)


def test_of_each_prediction():
    each = two_phases().each("prediction")
    assert each.seconds == pytest.approx(0.05)
    assert each.tokens_out == 5
    with pytest.raises(ValueError, match="no entry of kind 'other'"):
        two_phases().each("other")


def test_entries_are_immutable():
    ledger = two_phases()
    ledger.add("phase 3", "training", Amounts())
    assert len(ledger.entries) == 6
    with pytest.raises(dataclasses.FrozenInstanceError):
        ledger.entries[0].amounts.seconds = 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prices(device_hour=1.0), "currency is empty: device_hour=1.0"),
        (lambda: Prices(" ", thousand_tokens_in=1.0), "currency is empty"),
        (lambda: Prices("EUR", device_hour=-1.0), "device_hour=-1.0 must be a fin"),
        (lambda: Prices("EUR", kilowatt_hour=float("nan")), "kilowatt_hour=nan"),
        (lambda: Amounts(seconds=-1.0), "seconds=-1.0 must be a finite"),
        (lambda: Amounts(joules=float("inf")), "joules=inf"),
        (lambda: Entry("a", "trainig", Amounts()), "did you mean 'training'"),
        (lambda: Entry(" ", "training", Amounts()), "needs a name"),
        (lambda: Entry("a", "training", Amounts(), 0), "count=0 of 'a'"),
        (lambda: two_phases().total("phase 9"), "name='phase 9' must be one of phase"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_written_is_read(tmp_path):
    ledger = dataclasses.replace(two_phases(), energy_sources=("gpu:0",))
    path = ledger.write(tmp_path)
    assert read_ledger(tmp_path) == ledger
    record = json.loads(path.read_text())
    # 1,200 device seconds and 8,000 tokens.
    assert record["total"]["training"]["money"] == pytest.approx(2.4 + 4.0)
    assert record["total"]["all"]["money"] is None
    # Another start of the run.
    added = add_to_file(tmp_path, PRICES, [Entry("phase 3", "training", Amounts())])
    assert added.entries[:6] == ledger.entries and read_ledger(tmp_path) == added


@pytest.mark.parametrize("text", ["[]", '{"entries": 3}', '{"entries": [{"nam": 1}]}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "ledger.json").write_text(text)
    with pytest.raises(ValueError, match=r"ledger\.json is damaged"):
        read_ledger(tmp_path)


def test_a_block_is_measured_if_it_raises_too():
    times, joules = iter((5.0, 8.0)), iter((0.0, 100.0, 160.0))
    meter = EnergyMeter({"cpu": Counter(lambda: next(joules))})
    with pytest.raises(RuntimeError):
        with measure(4, meter, lambda: next(times)) as measured:
            raise RuntimeError
    assert measured.amounts == Amounts(3.0, 12.0, joules=60.0)
    with pytest.raises(ValueError, match="devices=0"), measure(0):
        pass


def test_tokens_of_a_block():
    tokens = TokenCounter(read=100, written=7)
    with measure(1, tokens=tokens) as measured:
        tokens.add(read=20, written=3)
    assert (measured.amounts.tokens_in, measured.amounts.tokens_out) == (20, 3)
    with measure(1) as uncounted:
        tokens.add(read=1)
    assert uncounted.amounts.tokens_in is None


def write_counter(folder, name, microjoules, limit=1_000_000):
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{limit}\n")


def test_energy_of_the_packages_with_wraps(tmp_path):
    write_counter(tmp_path, "intel-rapl:0", 900_000)
    write_counter(tmp_path, "intel-rapl:1", 0)
    write_counter(tmp_path, "intel-rapl:0:0", 0)  # Of package 0, in its count.
    counters = {k: v for k, v in find_counters(tmp_path).items() if "rapl" in k}
    meter = EnergyMeter(counters)
    assert meter.sources == ("intel-rapl:0", "intel-rapl:1")
    write_counter(tmp_path, "intel-rapl:0", 100_000)  # Past 1,000,000.
    write_counter(tmp_path, "intel-rapl:1", 500_000)
    write_counter(tmp_path, "intel-rapl:0:0", 700_000)
    assert meter.joules() == pytest.approx(0.2 + 0.5)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.joules() is None


def test_no_energy_is_made_up(tmp_path):
    (tmp_path / "intel-rapl:0").mkdir()  # Its counter is root's.
    assert not [name for name in find_counters(tmp_path) if "rapl" in name]
    assert EnergyMeter({}).joules() is None


def test_cost_of_a_point_of_accuracy():
    accuracies = {"phase 1": 0.75, "phase 2": 0.70}
    first, second, together = cost_of_accuracy(two_phases(), accuracies, start=0.5)
    # Training and validation, not predictions.
    assert (first.points, first.cost["device_seconds"]) == (25.0, 808.0)
    assert first.cost_per_point["device_seconds"] == pytest.approx(808 / 25)
    assert first.cost["money"] is None and first.cost_per_point["money"] is None
    # Nothing was gained: no price of a point.
    assert second.points == -5.0 and second.cost["device_seconds"] == 408.0
    assert set(second.cost_per_point.values()) == {None}
    assert (together.name, together.points) == ("all", 20.0)
    assert together.cost_per_point["device_seconds"] == pytest.approx(1216 / 20)
    table = markdown([first, second, together], "EUR").splitlines()
    head = ("phase", "accuracy %", "points", "device s", "1000 tokens in")
    head += ("device s a point", "1000 tokens in a point")
    assert table[0] == f"| {' | '.join(head)} |"
    assert table[2] == "| phase 1 | 75.0 | +25.0 | 808 | 4 | 32.3 | 0.16 |"
    assert table[3] == "| phase 2 | 70.0 | -5.0 | 408 | 4 | - | - |"
    # Without texts there are no columns of tokens.
    amounts = Amounts(1.0, 2.0, tokens_in=0, tokens_out=0)
    rows = cost_of_accuracy(Ledger().add("a", "training", amounts), {"a": 0.6}, 0.5)
    assert "tokens" not in markdown(rows)


@pytest.mark.parametrize(
    ("accuracies", "message"),
    [
        ({}, "no phase"),
        ({"phase 1": 75.0}, "accuracy 75.0 of 'phase 1' must be in"),
        ({"all": 0.5}, "no phase can be named 'all'"),
        ({"phase 7": 0.5}, "phase 7"),
    ],
)
def test_accuracies_that_cannot_be_priced(accuracies, message):
    with pytest.raises(ValueError, match=message):
        cost_of_accuracy(two_phases(), accuracies, start=0.5)


@dataclasses.dataclass(frozen=True)
class Toy:
    """The toy as a configuration; it gets a signal while a step runs."""

    interrupt_at: int = 0

    def build(self, seed=0, mesh=None, export=None):
        def batches(batch_size, seed, rows):
            found = make_batches(make_data(), batch_size)
            if self.interrupt_at:
                return SignallingBatches(found, signal.SIGINT, self.interrupt_at)
            return found

        return Workload(
            params=make_params(),
            loss_fn=functools.partial(loss_fn),
            train_batches=batches,
            evaluate=make_evaluate(make_data(seed=1)),
            describe=lambda: {"examples": {"train": 40, "test": 16}},
        )


def test_every_start_of_a_run_is_in_its_ledger(tmp_path):
    def config(interrupt_at=0):
        return RunConfig(
            Toy(interrupt_at),
            CONFIG,
            OptimizerConfig("adamw", num_steps=CONFIG.num_steps),
            prices=Prices("USD", device_hour=36.0),
        )

    with pytest.raises(Interrupted):
        finetune(config(interrupt_at=7), tmp_path)
    (part,) = read_ledger(tmp_path).entries
    assert part.kind == "training" and part.amounts.seconds > 0
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["interrupt_at"] = 0  # Which alone differs.
    (tmp_path / "config.json").write_text(json.dumps(settings))

    finished = finetune(config(), tmp_path)
    ledger = read_ledger(tmp_path)
    assert [e.kind for e in ledger.entries] == ["training", "training", "prediction"]
    assert ledger.entries[0] == part and ledger.entries[2].count == 16
    total = ledger.total()
    assert total.device_seconds == pytest.approx(total.seconds)  # One device.
    assert total.seconds > finished.result.train_seconds
    assert ledger.money() == pytest.approx(total.device_seconds / 100)

    # Exported again, without training: nothing is added.
    finetune(config(), tmp_path)
    assert read_ledger(tmp_path) == ledger
