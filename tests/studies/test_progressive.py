"""Progressive fine-tuning: phases that go on from each other, resume, and a report."""

import dataclasses
import json
import shutil
import signal
import types

import jax
import numpy as np
import pytest
from finetuning_toy import SignallingBatches
from flax import nnx
from generative_small import SMALL

from configs.progressive import get_config
from meta_opt.data.preprocessing.images import encode_png
from meta_opt.data.sources.few_shot.files import write_dataset
from meta_opt.data.sources.few_shot.items import by_class, read_items
from meta_opt.data.sources.few_shot.protocol import FewShotConfig
from meta_opt.finetuning.ledger import Amounts, Ledger, Prices
from meta_opt.interruption import Interrupted
from meta_opt.models import pretrained
from meta_opt.models.generative import Generative
from meta_opt.studies.progressive import phases as phases_module
from meta_opt.studies.progressive.phases import Phases
from meta_opt.studies.progressive.policy import PhasePolicy
from meta_opt.studies.progressive.predictions import Examples, Predictions
from meta_opt.studies.progressive.report import (
    decisions_table,
    results_table,
    write_progressive,
)
from meta_opt.studies.progressive.study import read_study
from meta_opt.studies.progressive.summary import PUBLISHED, read_arms
from meta_opt.text_files import write_json
from meta_opt.workloads.continued import load_params, save_params
from meta_opt.workloads.image_text import ImageTextConfig

CLASSES = ("hat", "shoe")
PER_PHASE = 4  # 2 of each class.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two phases of two classes."""
    folder = tmp_path_factory.mktemp("few_shot")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / "all" / name).mkdir(parents=True)
        for i in range(10):
            blocks = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((4, 4, 1)))
            picture = encode_png(blocks.astype(np.uint8))
            (folder / "all" / name / f"{i}.png").write_bytes(picture)
    config = FewShotConfig(
        train=4, validation=2, test=2, phases=2, widths=(8, 16), candidates=20
    )
    write_dataset(folder / "data", by_class(read_items(folder / "all")), config)
    return folder / "data"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small model for the tokenizer that ships here."""
    decoder = dataclasses.replace(SMALL.decoder, vocab_size=2048)
    config = dataclasses.replace(SMALL, decoder=decoder)
    path = tmp_path_factory.mktemp("weights") / "small"
    pretrained.save(path, nnx.jit(lambda: Generative(config, rngs=nnx.Rngs(0)))())
    return str(path)


@pytest.fixture
def study(data, weights):
    """Makes a study, of AdamW alone: its steps compile sooner."""

    def make(**changes):
        config = get_config("smoke").to_dict()
        config["study"] = {"folder": str(data), "width": 8, "epochs": 3, **changes}
        config["model"]["weights"] = weights
        config["optimizers"] = {"adamw": {"name": "adamw"}}
        config["batch_size"] = 1
        config["loop"].update(log_every=4, checkpoint_every=4, progress=False)
        config["pipeline"]["num_threads"] = 0
        return read_study(config)

    return make


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def record_runs(monkeypatch, finetune):
    """Puts a trainer in place; returns the runs to come, with their last parameters."""
    runs = []

    def spy(config, folder):
        finished = finetune(config, folder)
        params = jax.tree.map(np.asarray, finished.result.state.params)
        runs.append((config, params))
        return finished

    monkeypatch.setattr(phases_module, "finetune", spy)
    return runs


def train_quickly(config, folder):
    """In place of a run: moves all parameters a little."""
    workload = config.workload.build(config.loop.seed)
    params = jax.tree.map(lambda x: x * 1.01, workload.params)
    state = types.SimpleNamespace(params=params, frozen=workload.frozen, step=1)
    history = [{"step": 1, "train/loss": 2.0}, {"step": 1, "validation/loss": 1.0}]
    result = types.SimpleNamespace(state=state, history=history, figures=dict)
    return types.SimpleNamespace(result=result)


def never(config, folder):
    raise AssertionError(f"{folder} is run again")


def digest(workdir, phase):
    path = workdir / "adamw" / f"phase_{phase}" / "phase.json"
    return json.loads(path.read_text())["weights"]


def test_phases_from_zero_shot_on(study, data, tmp_path, monkeypatch):
    runs, names = record_runs(monkeypatch, train_quickly), []
    made = study()
    Phases(made, tmp_path).run(names.append)
    assert names == ["zero-shot", "adamw, phase 1", "adamw, phase 2"]

    (first, after_first), (second, after_second) = runs
    assert first.loop.num_steps == second.loop.num_steps == 3 * PER_PHASE
    assert (first.loop.batch_size, first.loop.eval_every) == (1, PER_PHASE)
    # Bit for bit: the second starts where the first ended, and goes on from there.
    start = second.workload.build().params
    assert same(start, after_first)
    assert not same(start, first.workload.build().params)
    assert not same(start, after_second)
    assert second.workload.workload.data.name.endswith("8/phase_2.jsonl")

    # Every example is in the predictions, with an answer and a likelihood.
    folder = tmp_path / "adamw" / "phase_2"
    record = json.loads((folder / "phase.json").read_text())
    for split in ("validation", "test"):
        text = (folder / f"predictions_{split}.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        assert [row["label"] for row in rows] == [c for c in CLASSES for _ in range(2)]
        for row in rows:
            best = CLASSES[int(np.argmax(row["log_likelihoods"]))]
            assert row["likeliest"] == best and isinstance(row["answer"], str)
        right = np.mean([row["likeliest"] == row["label"] for row in rows])
        assert record["metrics"][split]["likelihood"]["accuracy"] == right
    (arm,) = read_arms(tmp_path, ["adamw"], 2)
    assert [o.name for o in arm.outcomes] == ["zero-shot", "phase 1", "phase 2"]
    assert all(o.prediction().seconds > 0 for o in arm.outcomes)
    # All prompts are the same. Answers end with a token or at the largest length.
    lengths = record["setup"]["pipeline"]
    each = [o.prediction() for o in arm.outcomes]
    assert {x.tokens_in for x in each} == {lengths["prompt_length"]}
    assert all(1 <= x.tokens_out <= lengths["text_length"] for x in each)
    assert arm.costs() == []  # No run, no ledger.

    # What is finished is not run again, and not taken for something else.
    monkeypatch.setattr(phases_module, "finetune", never)
    Phases(made, tmp_path).run()
    with pytest.raises(ValueError, match=r"loop.num_steps: 12 -> 8.*another --workdir"):
        Phases(study(epochs=2), tmp_path).run()
    Phases(made, tmp_path).check()
    shutil.move(tmp_path / "adamw" / "phase_2", tmp_path / "aside")
    weights = tmp_path / "adamw" / "phase_1" / "weights.safetensors"
    weights.rename(tmp_path / "weights")
    with pytest.raises(ValueError, match=rf"phase 2 starts from {weights}, which does"):
        Phases(made, tmp_path).run()
    (tmp_path / "weights").rename(weights)
    shutil.move(tmp_path / "aside", tmp_path / "adamw" / "phase_2")
    for changes, message in (
        ({"epochs": 2}, r"loop.num_steps: 12 -> 8"),
        ({"width": 16}, r"width: 8 -> 16"),
    ):
        with pytest.raises(ValueError, match=message):
            Phases(study(**changes), tmp_path).check()
    picture = next((data / "8" / "images").rglob("*.png"))
    before = picture.read_bytes()
    picture.write_bytes(before + b" ")
    with pytest.raises(ValueError, match=r"files\..*another --workdir"):
        Phases(made, tmp_path).check()
    picture.write_bytes(before)
    path = tmp_path / "adamw" / "phase_1" / "phase.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "weights": "0" * 64}))
    with pytest.raises(ValueError, match=r"start: .* -> 000000"):
        Phases(made, tmp_path).run()


def test_a_policy_takes_wider_pictures_and_stops(study, tmp_path, monkeypatch):
    # Zero-shot, then phases of a track with fixed phases and of one with a policy.
    accuracies = iter((0.25, 0.5, 0.75, 0.5, 0.52))

    def predict(self, folder, model):
        answers = {"answers": {"accuracy": next(accuracies)}}
        return {"metrics": {"validation": answers, "test": answers}}

    def train(config, folder):
        folder.mkdir(parents=True, exist_ok=True)
        took = Amounts(1800.0, 1800.0)
        ledger = Ledger(Prices("EUR")).add("run", "training", took)
        write_json(folder / "ledger.json", ledger.record())
        return train_quickly(config, folder)

    runs = record_runs(monkeypatch, train)
    monkeypatch.setattr(Phases, "_predict", predict)
    policy = {"widths": (8, 16), "widen_below": 30.0, "point_value": 1.0}

    def with_prices(device_hour):
        made = study()
        prices = Prices("USD", device_hour=device_hour)
        run = dataclasses.replace(made.run, prices=prices)
        policies = {"dynamic": PhasePolicy(**policy)}
        return dataclasses.replace(made, run=run, policies=policies)

    Phases(with_prices(10.0), tmp_path).run()
    used = [c.workload.workload.data.name.split("/")[-2:] for c, _ in runs]
    # Half of 25 points, 12.5 USD, pays for half an hour at 10 USD.
    fixed, chosen = used[:2], used[2:]
    assert fixed == [["8", "phase_1.jsonl"], ["8", "phase_2.jsonl"]]
    assert chosen == [["8", "phase_1.jsonl"], ["16", "phase_2.jsonl"]]
    tests = {c.workload.workload.data.test.split("/")[-2] for c, _ in runs}
    assert tests == {"8"}
    arms = read_arms(tmp_path, ["adamw", "adamw_dynamic"], 2)
    assert [arm.stopped for arm in arms] == ["", ""]
    assert "under 30" in arms[1].outcomes[2].record["reason"]
    assert "worth 12.5, and cost 5" in decisions_table(arms)
    assert arms[0].ledger().prices == Prices("EUR")
    (arm,) = read_arms(tmp_path, ["adamw"], 2, Prices("USD", device_hour=7.0))
    assert arm.ledger().prices == Prices("USD", device_hour=7.0)

    # At ten times the price it does not: phases that are there are let be.
    monkeypatch.setattr(phases_module, "finetune", never)
    Phases(with_prices(100.0), tmp_path).run()
    (arm,) = read_arms(tmp_path, ["adamw_dynamic"], 2)
    assert "worth 12.5, and cost 50" in arm.stopped
    Phases(with_prices(10.0), tmp_path).run()
    assert not (tmp_path / "adamw_dynamic" / "stopped.json").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"widths": (200, 100)}, "ascending order"),
        ({"widths": (0,)}, "ascending order"),
        ({"widen_below": float("nan")}, "widen_below=nan must be at least 0"),
        ({"decay": 0.0}, "decay=0.0 must be above 0"),
        ({"example_price": 1.0}, "compared with point_value"),
    ],
)
def test_policies_that_will_not_do(changes, message):
    with pytest.raises(ValueError, match=message):
        PhasePolicy(**changes)


def test_policies_need_prices_and_names_of_their_own():
    settings = get_config("smoke").to_dict()
    policies = {"dynamic": {"point_value": 1.0}}
    with pytest.raises(ValueError, match=r"policies.dynamic.point_value.*prices"):
        read_study({**settings, "policies": policies})
    # Else the error would come after the first phase.
    with pytest.raises(ValueError, match=r"policies.dynamic.point_value.*prices"):
        read_study({**settings, "policies": policies, "prices": {"currency": "USD"}})
    optimizers = {"a": {"name": "adamw"}, "a_b": {"name": "adamw"}}
    with pytest.raises(ValueError, match="the name of another"):
        read_study({**settings, "optimizers": optimizers, "policies": {"b": {}}})


@pytest.mark.slow
def test_an_interrupted_phase_ends_in_the_same_bits(study, tmp_path, monkeypatch):
    runs = record_runs(monkeypatch, phases_module.finetune)
    made, whole, parts = study(), tmp_path / "whole", tmp_path / "parts"
    Phases(made, whole).run()
    record = json.loads((whole / "adamw" / "phase_2" / "phase.json").read_text())
    assert len(record["validation_loss"]) == 3  # One an epoch.
    assert not (whole / "adamw" / "phase_2" / "checkpoints").exists()
    (arm,) = read_arms(whole, ["adamw"], 2)
    rows = arm.costs()
    assert [row.name for row in rows] == ["phase 1", "phase 2", "all"]
    assert rows[-1].cost["device_seconds"] > rows[0].cost["device_seconds"] > 0

    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "adamw" / "phase_2")
    build = ImageTextConfig.build

    def interrupted(self, *args):
        workload = build(self, *args)

        def batches(*args, **options):
            made = workload.train_batches(*args, **options)
            return SignallingBatches(made, signal.SIGINT, 7)

        return dataclasses.replace(workload, train_batches=batches)

    with monkeypatch.context() as patch:
        patch.setattr(ImageTextConfig, "build", interrupted)
        with pytest.raises(Interrupted):
            Phases(made, parts).run()
    assert not (parts / "adamw" / "phase_2" / "phase.json").exists()
    _, (_, after_second) = runs
    Phases(made, parts).run()
    assert len(runs) == 3 and same(runs[2][1], after_second)
    assert digest(parts, 2) == digest(whole, 2)


def test_cumulative_phases_start_again_on_all_examples(study, tmp_path, monkeypatch):
    seen = []

    class Stop(Exception):
        pass

    def run(config, folder):
        seen.append(config)
        # As if it were finished, with the weights that it starts from.
        raise Stop

    monkeypatch.setattr(phases_module, "finetune", run)
    monkeypatch.setattr(Phases, "_zero_shot", lambda self: None)
    made = study(mode="cumulative")
    with pytest.raises(Stop):
        Phases(made, tmp_path).run()
    phases = Phases(made, tmp_path)
    # The first phase, finished by hand.
    config = seen.pop()
    folder = phases.folder("adamw", 1)
    setup = phases._setup(config, phases.data.train(1), "", 8)
    write_json(folder / "phase.json", {"setup": setup, "weights": "1" * 64})
    with pytest.raises(Stop):
        phases.run()
    second = seen.pop()
    assert (config.workload.start, second.workload.start) == ("", "")
    lines = {n: set(phases.data.train(n).read_text().splitlines()) for n in (1, 2)}
    with open(second.workload.workload.data.name, encoding="utf-8") as file:
        assert set(file.read().splitlines()) == lines[1] | lines[2]
    assert len(lines[1] & lines[2]) == 0
    assert second.loop.num_steps == 2 * config.loop.num_steps == 3 * 2 * PER_PHASE
    assert second.loop.eval_every == 2 * PER_PHASE


def test_weights_are_kept_exactly(tmp_path):
    params = {"a": {"kernel": jax.numpy.arange(6.0).reshape(2, 3) / 7}}
    params["b"] = jax.numpy.asarray([0.1, -3], jax.numpy.bfloat16)
    path = tmp_path / "weights.safetensors"
    found = save_params(path, params)
    again = load_params(path, params, found)
    assert same(params, again) and again["b"].dtype == params["b"].dtype
    with pytest.raises(ValueError, match=r"of another model.*lacks c"):
        load_params(path, {**params, "c": params["b"]}, found)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="is damaged: its SHA-256 is"):
        load_params(path, params, found)


def test_missing_data_name_the_command(study, data, tmp_path):
    command = r"few_shot_data --config configs/few_shot_data.py:own --config.out="
    gone = study(folder=str(tmp_path / "gone"), variant="own")
    with pytest.raises(FileNotFoundError, match=command):
        Phases(gone, tmp_path)
    file = data / "8" / "phase_2.jsonl"
    file.rename(tmp_path / "aside")
    try:
        with pytest.raises(FileNotFoundError, match=rf"phase_2.jsonl is .*{command}"):
            Phases(study(variant="own"), tmp_path)
    finally:
        (tmp_path / "aside").rename(file)
    with pytest.raises(ValueError, match=r"width=100: .* has 8, 16 pixels"):
        Phases(study(width=100), tmp_path)
    with pytest.raises(ValueError, match=r"phases=3: .* has 2"):
        Phases(study(phases=3), tmp_path)
    made = study()
    loop = dataclasses.replace(made.run.loop, batch_size=99)
    large = dataclasses.replace(made, run=dataclasses.replace(made.run, loop=loop))
    with pytest.raises(ValueError, match=r"batch_size=99: phase 1 has \d+ examples"):
        Phases(large, tmp_path)
    with pytest.raises(ValueError, match="longest right answer has"):
        Phases(study(answer_tokens=2), tmp_path)
    loop = dataclasses.replace(made.run.loop, accumulation_steps=2)
    uneven = dataclasses.replace(made, run=dataclasses.replace(made.run, loop=loop))
    with pytest.raises(ValueError, match="batch_size=1 must be a positive multiple"):
        Phases(uneven, tmp_path / "uneven").run()
    assert not (tmp_path / "uneven").exists()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("study", {"folder": "x", "mode": "continu"}, "did you mean 'continue'"),
        ("study", {"folder": "x", "epoch": 3}, "did you mean 'epochs'"),
        ("study", {}, "needs a value for folder"),
        ("study", {"folder": ""}, "study.folder is empty"),
        ("seed", -1, "seed=-1 must be at least 0"),
        (
            "optimizers",
            {"a": {"name": "adamw", "learning_rate": -1.0}},
            "learning_rate=-1.0 must be a finite number of 0 or more",
        ),
        (
            "optimizers",
            {"a": {"name": "adamw", "weight_decay": float("inf")}},
            "weight_decay=inf must be a finite",
        ),
        ("optimizers", {"a": {"name": "adamw", "momentum": 1.0}}, "momentum=1.0 must"),
        (
            "optimizers",
            {"a": {"name": "adamw", "warmup_fraction": 5.0}},
            "warmup_fraction=5.0 must be from 0 to 1",
        ),
        ("num_steps", 10, "num_steps: the phases' examples"),
        ("data", {"name": "x.jsonl"}, "data.name: study.folder determines the data"),
        ("batch_size", 0, "batch_size=0 must be at least 1"),
        ("model", {"loss": "clip"}, "is trained with 'captioning'"),
        ("optimizers", {}, "name one or more"),
        ("optimizers", {"a": {"name": "adamv"}}, "unknown optimizer 'adamv'"),
        ("optimizers", {"a/b": {"name": "adamw"}}, "letters, digits"),
        ("optimizers", {"zero_shot": {"name": "adamw"}}, "letters, digits"),
        ("optimizers", ["adamw"], r"config.optimizers must be settings by name, not"),
        ("optimizers", {"a": None}, r"config.optimizers.a must be settings by name"),
        ("policies", "stop", r"config.policies must be settings by name, not 'stop'"),
        ("data", "renamed", r"config.data must be settings by name, not 'renamed'"),
    ],
)
def test_settings_that_will_not_do(key, value, message):
    settings = get_config("smoke").to_dict()
    with pytest.raises(ValueError, match=message):
        read_study({**settings, key: value})


@pytest.mark.parametrize("variant", ["openclipart_small", "openclipart_paligemma"])
def test_variants_have_the_published_protocol(variant):
    study = read_study(get_config(variant).to_dict())
    assert (study.config.epochs, study.run.loop.batch_size) == (3, 1)
    assert list(study.optimizers) == ["learned", "adamw", "adamw_tuned"]


def test_errors_of_format_and_of_knowledge(tmp_path):
    examples = Examples(("a", "b", "c", "d"), {}, np.array([0, 0, 1, 1]), CLASSES)
    written = ('{"category": "hat"}', "shoe", "no idea", '{"category": "Shoe"}')
    scores = np.array([[-1, -2], [-1, -2], [-2, -1], [-1, -3]], np.float32)
    predictions = Predictions(examples, written, scores)
    found = predictions.metrics()
    answers = found["answers"]
    assert answers["accuracy"] == 0.5 and answers["knowledge_errors"] == 0.25
    assert answers["unparseable"] == 0.25 and answers["well_formed"] == 0.5
    # Precision 1 and 1/2, recall 1/2 and 1/2.
    assert answers["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["likelihood"]["accuracy"] == 0.75
    predictions.write(tmp_path / "p.jsonl")
    rows = [json.loads(x) for x in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["category"] for row in rows] == ["hat", "shoe", None, "shoe"]
    assert rows[2]["status"] == "unparseable" and rows[3]["likeliest"] == "hat"
    # A model that diverged is not right about the first class.
    scores = np.where(np.arange(4)[:, None] < 2, np.nan, scores)
    predictions = Predictions(examples, written, scores)
    assert predictions.metrics()["likelihood"]["accuracy"] == 0.25
    predictions.write(tmp_path / "p.jsonl")
    rows = [json.loads(x) for x in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["likeliest"] for row in rows] == [None, None, "shoe", "hat"]


def made_up(folder, accuracy, seconds=0.0, count=180):
    """A finished phase of that accuracy."""
    way = {"accuracy": accuracy}
    for average in ("weighted", "macro"):
        way |= {
            f"{average}_{x}": accuracy - 0.01 for x in ("precision", "recall", "f1")
        }
    fractions = ("knowledge_errors", "unlisted", "unparseable", "nearest")
    answers = {**way, **dict.fromkeys(fractions, 0.0), "well_formed": 1.0}
    metrics = {
        s: {"answers": answers, "likelihood": way} for s in ("validation", "test")
    }
    amounts = {"seconds": 18.0, "device_seconds": 36.0}
    write_json(
        folder / "phase.json",
        {
            "metrics": metrics,
            "examples": {"validation": count, "test": count},
            "prediction": {"count": count, "amounts": amounts},
            "validation_loss": [[1, 2.0], [2, 1.5]],
        },
    )
    if seconds:
        ledger = Ledger(Prices("EUR", device_hour=3.6))
        ledger = ledger.add("run", "training", Amounts(seconds / 2, seconds))
        # The run's own test, which is not a cost of training.
        ledger = ledger.add("run", "prediction", Amounts(1.0, 1000.0), count)
        ledger.write(folder)


@pytest.fixture
def arms(tmp_path):
    made_up(tmp_path / "zero_shot", 0.5)
    for name, accuracies in {"learned": (0.7, 0.75), "adamw": (0.6,)}.items():
        for i, accuracy in enumerate(accuracies):
            made_up(tmp_path / name / f"phase_{i + 1}", accuracy, 1000.0 * (i + 1))
    return read_arms(tmp_path, ["learned", "adamw"], 2)


def test_the_summary_of_made_up_phases(arms, tmp_path):
    learned, adamw = arms
    assert [len(arm.outcomes) for arm in arms] == [3, 2]
    first, second, together = learned.costs()
    assert (first.points, second.points, together.points) == (20.0, 5.0, 25.0)
    assert first.cost_per_point["money"] == pytest.approx(1.0 / 20)
    assert together.cost_per_point["device_seconds"] == pytest.approx(3000 / 25)
    assert adamw.outcomes[1].prediction().seconds == pytest.approx(0.1)
    # A currency without a price does not replace the prices of the runs.
    again = read_arms(tmp_path, ["learned"], 2, Prices("USD"))[0].costs()
    assert again == learned.costs()
    # Wilson's interval, by its formula.
    p, n, z = 0.75, 180, 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    found = learned.outcomes[2].interval()
    assert found == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert learned.outcomes[2].last("validation_loss") == 1.5
    assert read_arms(tmp_path / "nothing", ["learned"], 2) == []
    (tmp_path / "learned" / "phase_1" / "phase.json").write_text("{}")
    with pytest.raises(ValueError, match=r"phase_1.*is damaged: it lacks"):
        read_arms(tmp_path, ["learned"], 2)


def test_the_report(arms, tmp_path):
    settings = {"model": "nano", "width": 100, "mode": "continue", "epochs": 3}
    settings |= {"batch_size": 1, "trainable": "all"}
    text = write_progressive(
        tmp_path, arms, count=2, settings=settings, command="python -m x"
    )
    assert "**3 of 4 phases are finished.**" in text
    row = next(x for x in text.splitlines() if x.startswith("| learned, answers"))
    assert ".500/.490" in row and ".700/.690" in row and ".750/.740" in row
    row = next(x for x in text.splitlines() if x.startswith("| adamw, answers"))
    assert row.endswith("| - |")
    assert "| *published, small model* | .656/.635 | .772/.755 | .811/.793 |" in text
    # Half a second of a device at 3.6 EUR an hour: 0.2 s x 1000 predictions.
    assert "EUR 0.2 |" in text
    for name in ("learning_curve", "accuracy_cost"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    values = json.loads((tmp_path / "progressive.json").read_text())
    assert [len(arm["phases"]) for arm in values["arms"]] == [3, 2]
    empty = write_progressive(
        tmp_path / "empty", [], count=2, settings=settings, command="x"
    )
    assert "Nothing is finished yet." in empty


def test_published_figures_stand_in_all_columns(arms):
    table = results_table(arms, 4, 400)
    assert "| *published, ResNet-50* | - | - | - | - | .589/.572 |" in table
    assert "| *published, large model* | .750/.739 | - | - | - | - |" in table
    assert set(PUBLISHED) == {100, 200, 400}
    assert "published" not in results_table(arms, 4, 32)
