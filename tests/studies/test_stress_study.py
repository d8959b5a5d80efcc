"""A stress test from models to predictions: what is asked, resumed, trained; faults."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
from classifiers_small import small_classifier
from flax import nnx
from generative_small import SMALL

import meta_opt
from configs.stress import get_config
from meta_opt.data.preprocessing.corruptions import corrupt
from meta_opt.data.preprocessing.image_fit import ImageFit
from meta_opt.data.preprocessing.images import decode, encode_png
from meta_opt.data.sources.few_shot.files import write_dataset
from meta_opt.data.sources.few_shot.items import by_class, read_items
from meta_opt.data.sources.few_shot.protocol import FewShotConfig
from meta_opt.inference import GenerativeModel
from meta_opt.models import huggingface, pretrained
from meta_opt.models.generative import Generative
from meta_opt.studies.stress import learners as learners_module
from meta_opt.studies.stress import predicting, subjects
from meta_opt.studies.stress.asked import changed, plain
from meta_opt.studies.stress.conditions import Condition
from meta_opt.studies.stress.facts import facts_of
from meta_opt.studies.stress.report import write_stress_report
from meta_opt.studies.stress.settings import TestsConfig, TrainingConfig, read_stress
from meta_opt.studies.stress.study import StressTest
from meta_opt.studies.stress.summary import summarise
from meta_opt.workloads.classification_export import write_classifier

CLASSES = ("hat", "shoe")
WIDTHS = (32, 48)
CLEAN = Condition(train_px=32, test_px=32)


def write_data(folder, classes):
    """Four, two and two pictures of each class, at two widths."""
    rng = np.random.default_rng(len(classes[0]))
    for name in classes:
        (folder / "all" / name).mkdir(parents=True)
        for i in range(8):
            blocks = np.kron(rng.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1)))
            picture = encode_png(blocks.astype(np.uint8))
            (folder / "all" / name / f"{i}.png").write_bytes(picture)
    config = FewShotConfig(
        train=4, validation=2, test=2, phases=2, widths=WIDTHS, candidates=8
    )
    write_dataset(folder / "data", by_class(read_items(folder / "all")), config)
    return folder / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("few_shot"), CLASSES)


@pytest.fixture(scope="module")
def other_data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("shift"), ("boot", "flag", "hat"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    model = small_classifier("resnet", CLASSES)
    write_classifier(folder, model, CLASSES[::-1], ImageFit(32))
    return folder


@pytest.fixture(scope="module")
def generative(tmp_path_factory):
    """Weights of a small model, whose answers do not matter."""
    decoder = dataclasses.replace(SMALL.decoder, vocab_size=2048)
    config = dataclasses.replace(SMALL, decoder=decoder)
    path = tmp_path_factory.mktemp("weights") / "small"
    pretrained.save(path, nnx.jit(lambda: Generative(config, rngs=nnx.Rngs(0)))())
    return path


@pytest.fixture
def settings(data, classifier):
    """Makes settings of a test of the classifier under one corruption."""

    def make(**sections):
        return {
            "data": {"folder": str(data)},
            "models": {"small": str(classifier)},
            "tests": {"corruptions": ["contrast"], "batch_size": 4},
            **sections,
        }

    return make


def by_condition(predictions):
    found = {}
    for one in predictions:
        found.setdefault(one.condition, []).append(one)
    return found


def test_predictions_are_the_models_of_the_pictures_that_are_shown(
    settings, classifier, data, tmp_path
):
    test = StressTest(read_stress(settings()), tmp_path)
    announced = []
    assert test.remaining() == 4 * 7
    test.run(lambda name, cost: announced.append(name))
    assert len(announced) == 7 and test.remaining() == 0
    found = by_condition(test.predictions())
    contrast = [Condition("contrast", s, train_px=32, test_px=32) for s in range(1, 6)]
    wider = Condition(train_px=32, test_px=48)
    assert list(found) == [CLEAN, wider, *contrast]
    model = meta_opt.load_exported(classifier, batch_size=4)
    for condition in (CLEAN, wider, contrast[2]):
        rows = [
            json.loads(line)
            for line in (data / f"{condition.test_px}" / "test.jsonl")
            .read_text()
            .splitlines()
        ]
        pictures = [
            np.asarray(
                decode((data / f"{condition.test_px}" / row["image"]).read_bytes())
            )
            for row in rows
        ]
        if condition.corruption:
            pictures = [
                corrupt(picture, "contrast", 3, row["image"])
                for picture, row in zip(pictures, rows, strict=True)
            ]
        expected = model.probabilities(pictures)
        ours = found[condition]
        assert [one.label for one in ours] == [row["label"] for row in rows]
        assert [one.prediction for one in ours] == model.predict(pictures)
        confidences = [one.confidence for one in ours]
        np.testing.assert_allclose(confidences, expected.max(axis=1), atol=1e-6)
        assert all((data / one.image).is_file() for one in ours)
    # The same examples at every width, which are compared.
    keys = [{one.example for one in ones} for ones in found.values()]
    assert all(key == keys[0] for key in keys)


def test_what_is_finished_is_not_run_again(settings, tmp_path, monkeypatch):
    calls = []
    real = predicting.open_subject

    class Stopped(Exception):
        pass

    def stop_after_two(name, cost):
        calls.append(name)
        if len(calls) == 3:
            raise Stopped

    test = StressTest(read_stress(settings()), tmp_path)
    with pytest.raises(Stopped):
        test.run(stop_after_two)
    assert len(by_condition(test.predictions())) == 2
    StressTest(read_stress(settings()), tmp_path).run(lambda n, c: calls.append(n))
    assert len(calls) == 3 + 5 and len(set(calls)) == 7

    def never(*arguments):
        raise AssertionError("a model is opened again")

    monkeypatch.setattr(predicting, "open_subject", never)
    StressTest(read_stress(settings()), tmp_path).run()
    # Further corruptions are added to what is there, other pictures refused.
    monkeypatch.setattr(predicting, "open_subject", real)
    wider = settings(tests={"corruptions": ["contrast", "grey"], "batch_size": 4})
    assert StressTest(read_stress(wider), tmp_path).remaining() == 4 * 5
    fewer = read_stress(settings(data={**settings()["data"], "per_class": 1}))
    with pytest.raises(ValueError, match=r"of other settings or data \(per_class: 0"):
        StressTest(fewer, tmp_path).run()


def test_a_report_before_the_baseline_is_tested(settings, classifier, tmp_path):
    """After an interruption the finished parts are reported without comparison."""
    models = {"small": str(classifier), "other": str(classifier)}
    made = settings(models=models, baseline="other", tests={"corruptions": []})
    test = StressTest(read_stress(made), tmp_path)
    test.run()
    predictions = test.predictions()
    assert test.baseline(predictions) == "other"
    first = [one for one in predictions if one.model == "small"]
    assert test.baseline(first) == "" and test.baseline([]) == ""
    summary = summarise(first, test.baseline(first))
    page = write_stress_report(tmp_path, summary, first)
    assert not summary.models and "small" in page
    by_default = StressTest(read_stress(settings(models=models)), tmp_path)
    assert by_default.baseline(predictions) == by_default.baseline(first) == "small"
    assert by_default.baseline([]) == ""
    # Predictions that were removed are not left out without a word.
    lost = next((tmp_path / "predictions" / "other").rglob("clean_32_px.jsonl"))
    lost.unlink()
    with pytest.raises(ValueError, match=r"clean_32_px.jsonl is missing, but clean"):
        test.predictions()


def test_models_at_several_widths_are_one_in_the_matrix(settings, data, tmp_path):
    models = {}
    for px in WIDTHS:
        write_classifier(
            tmp_path / f"{px}", small_classifier("resnet", CLASSES), CLASSES,
            ImageFit(px),
        )  # fmt: skip
        models[f"net_{px}"] = str(tmp_path / f"{px}")
    made = settings(models=models, tests={"corruptions": [], "batch_size": 4})
    test = StressTest(read_stress(made), tmp_path / "work")
    assert test.names == ["net"]
    test.run()
    predictions = test.predictions()
    matrix = {(one.condition.train_px, one.condition.test_px) for one in predictions}
    assert matrix == {(a, b) for a in WIDTHS for b in WIDTHS}
    report = tmp_path / "report"
    write_stress_report(report, summarise(predictions), predictions, data)
    assert decode((report / "widths.png").read_bytes()).width > 100


def test_pictures_reach_the_network_at_their_own_width(
    settings, classifier, data, tmp_path
):
    tests = {"corruptions": [], "fitted": False, "batch_size": 4}
    test = StressTest(read_stress(settings(tests=tests)), tmp_path)
    test.run()
    found = by_condition(test.predictions())
    wider = found[Condition(train_px=32, test_px=48)]
    pictures = [data / one.image for one in wider]
    model = meta_opt.load_exported(classifier, batch_size=4)
    expected = model.probabilities(pictures, image_size=48).max(axis=1)
    assert not np.allclose(expected, model.probabilities(pictures).max(axis=1))
    np.testing.assert_allclose([one.confidence for one in wider], expected, atol=1e-6)


def test_another_data_set_is_mapped_by_name(settings, other_data, data, tmp_path):
    shift = {"folder": str(other_data), "name": "photos", "labels": {"boot": "shoe"}}
    made = settings(shift=shift, tests={"corruptions": [], "batch_size": 4})
    test = StressTest(read_stress(made), tmp_path)
    test.run()
    predictions = test.predictions()
    found = by_condition(predictions)
    shifted = found[Condition(train_px=32, test_px=32, data="photos")]
    # All splits: no model was trained on them. The flags are left out.
    assert [one.label for one in shifted].count("shoe") == 8
    assert [one.label for one in shifted].count("hat") == 8 and len(shifted) == 16
    assert all(one.example.startswith("photos/") for one in shifted)
    assert "boot (as shoe), hat" in facts_of(test)["data photos"]
    # Its pictures are found from the folder of the data, and it has no reference.
    text = write_stress_report(
        tmp_path / "report", summarise(predictions), predictions, data
    )
    assert "clean, data photos, 32 px" in text.replace(
        "data photos", "clean, data photos"
    )
    page = (tmp_path / "report" / "wrong_answers.html").read_text()
    assert page.count("data:image/png") >= sum(not x.correct for x in shifted[:1])


def test_prompts_keep_what_they_ask():
    tests = TestsConfig(
        shuffles=2,
        synonyms={"shoe": "footwear"},
        distractors=("flag", "cup"),
        distractor_counts=(1, 2),
        templates=("question", "terse"),
    )
    template = "One of {categories}!"
    found = changed(CLASSES, template, tests)
    names = ["shuffled 1", "shuffled 2", "renamed", "1 distractor", "2 distractors"]
    assert [one.name for one in found] == [*names, "question", "terse"]
    assert plain(CLASSES, template).prompt == "One of hat, shoe!"
    for one in found:
        for place, name in enumerate(one.shown.names):
            expected = {"footwear": "shoe"}.get(name, name)
            assert one.category(place) == expected
            assert name in one.prompt
    assert found[2].prompt == "One of hat, footwear!"
    # What the data ask anyway is not a change.
    assert changed(CLASSES, plain_template(), TestsConfig(shuffles=0, templates=(
        "plain",))) == []  # fmt: skip


def plain_template():
    from meta_opt.data.preprocessing.prompts import TEMPLATES

    return TEMPLATES["plain"]


class Canned(GenerativeModel):
    """Always writes the last category of the list that it is asked with."""

    def __init__(self, asked):
        self._seen = asked

    def answer(self, images, prompts=""):
        self._seen.append(prompts)
        listed = prompts.partition("categories: ")[2].partition(".")[0]
        return [f'{{"category": "{listed.split(", ")[-1]}"}}' if listed else "?"] * len(
            images
        )


def test_answers_are_read_by_the_list_that_was_shown(
    settings, generative, tmp_path, monkeypatch
):
    asked, lengths = [], []

    def load(path, **options):
        lengths.append((options["prompt_length"], options["max_tokens"]))
        return Canned(asked)

    monkeypatch.setattr(subjects, "load_exported", load)
    tests = {
        "corruptions": [],
        "shuffles": 1,
        "synonyms": {"shoe": "footwear"},
        "distractors": ["flag"],
        "distractor_counts": [1],
        "templates": ["terse"],
    }
    made = settings(models={"writer_32": str(generative)}, tests=tests)
    test = StressTest(read_stress(made), tmp_path)
    assert [(m.name, m.train_px) for m in test.models] == [("writer", 32)]
    test.run()
    found = by_condition(test.predictions())
    said = {
        condition.prompt: {one.prediction for one in ones}
        for condition, ones in found.items()
        if condition.test_px == 32
    }
    # The synonym stands for its category; an answer without one cannot be read.
    assert said["plain"] == {"shoe"} and said["renamed"] == {"shoe"}
    assert said["terse"] == {None} and len(said) == 5
    assert said["1 distractor"] <= {"flag", "shoe"}
    # Loaded once, with room for the longest prompt.
    assert len(lengths) == 1 and lengths[0][0] >= max(len(p.split()) for p in asked)


def test_a_model_folder_is_known_by_its_contents(tmp_path):
    folder = tmp_path / "model"
    config = dataclasses.replace(SMALL, image_size=16)
    huggingface.save(folder, nnx.jit(lambda: Generative(config, rngs=nnx.Rngs(0)))())
    before = subjects.describe("models.a", folder).digest
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert subjects.describe("models.a", tmp_path / "elsewhere").digest == before
    # Other weights of the same size, as of the same model after more training.
    (file,) = folder.glob("*.safetensors")
    contents = bytearray(file.read_bytes())
    contents[-1] ^= 1
    file.write_bytes(contents)
    assert subjects.describe("models.a", folder).digest != before


def test_a_model_that_diverged_has_no_answer(monkeypatch):
    """Rather than the first category, with the confidence 1."""
    rows = np.array([[0.2, 0.8], [np.nan, np.nan], [0.4, np.nan]], np.float32)
    model = types.SimpleNamespace(
        class_names=CLASSES,
        probabilities=lambda pictures, px: rows,
        classify=lambda pictures, texts, prompt: rows,
    )
    monkeypatch.setattr(subjects, "PictureClassifier", types.SimpleNamespace)
    monkeypatch.setattr(subjects, "GenerativeModel", types.SimpleNamespace)
    monkeypatch.setattr(subjects, "load_exported", lambda *_, **__: model)
    monkeypatch.setattr(subjects, "read_preprocessing", lambda _: None)
    monkeypatch.setattr(subjects, "lengths_of", lambda *_: (1, 1))
    asked = plain(CLASSES, plain_template())
    for prompted in (False, True):
        described = subjects.Described("model", prompted, 32, CLASSES, "digest")
        subject = subjects.open_subject(described, [asked], "likelihood", 4)
        sure, *lost = subject.answer([], asked, 0)
        assert sure.category == "shoe" and sure.confidence == pytest.approx(0.8)
        assert lost == [subjects.Answer(None, None)] * 2


@pytest.fixture
def learner_settings(settings, classifier):
    learner = {
        "batch_size": 4,
        "pictures": {"augmented_views": 0},
        "network": {"name": "resnet50"},
        "optimizer": {"name": "adam"},
    }
    return settings(
        models={},
        learners={"net": learner},
        tests={"corruptions": [], "batch_size": 4, "widths": [32]},
        training={
            "train_px": [32],
            "seeds": [3],
            "shots": [1, 4],
            "label_noise": [0.25],
            "batch_sizes": [2, 4],
            "epochs": 2,
            "min_steps": 3,
        },
    )


def test_runs_are_on_changed_data_and_tested(
    learner_settings, tmp_path, monkeypatch, data
):
    runs = {}

    def train_quickly(config, folder):
        """In place of a run: writes an untrained network."""
        path = config.workload.pictures.task
        with open(path) as lines:
            rows = [json.loads(line) for line in lines]
        runs[folder.parent.name] = config, rows
        model = small_classifier("resnet", CLASSES, seed=len(runs))
        write_classifier(config.export.path, model, CLASSES, ImageFit(32))
        (folder / "checkpoints").mkdir(parents=True)
        return types.SimpleNamespace()

    monkeypatch.setattr(learners_module, "finetune", train_quickly)
    test = StressTest(read_stress(learner_settings), tmp_path)
    test.run()
    # Four shots are all there are, and a batch of four is its own.
    changes = ["1_shot_32_px", "25_wrong_labels_32_px", "batches_of_2_32_px"]
    assert sorted(runs) == sorted(["clean_32_px", *changes])
    clean = {r["image"]: r["label"] for r in runs["clean_32_px"][1]}
    folder = tmp_path / "trained" / "net" / "seed_3"
    for name, (config, rows) in runs.items():
        split = {s: [r for r in rows if r["split"] == s] for s in ("train", "test")}
        assert len(split["test"]) == 4
        at = folder / name / "data"
        assert all((at / row["image"]).resolve().is_file() for row in rows)
        wrong = sum(clean[row["image"]] != row["label"] for row in rows)
        assert wrong == (2 if "wrong" in name else 0)
        assert len(split["train"]) == (2 if "shot" in name else 8)
        size, steps = config.loop.batch_size, config.loop.num_steps
        of_name = {"1_shot_32_px": (2, 3), "batches_of_2_32_px": (2, 8)}
        assert (size, steps) == of_name.get(name, (4, 4))
        assert (config.loop.seed, config.optimizer.num_steps) == (3, steps)
        assert config.workload.pictures.image_size == 32
        # Of weights, those that are tested further are left.
        assert (folder / name / "model").is_dir() == (name == "clean_32_px")
        assert not (folder / name / "run" / "checkpoints").exists()
    predictions = test.predictions()
    rows = summarise(predictions).conditions
    assert [row.condition.shots for row in rows] == [0, 1, 0, 0]
    assert all(row.over_reference is not None for row in rows[1:])
    assert {one.seed for one in predictions} == {3}

    def never(config, folder):
        raise AssertionError(f"{folder} is run again")

    monkeypatch.setattr(learners_module, "finetune", never)
    StressTest(read_stress(learner_settings), tmp_path).run()
    learner_settings["learners"]["net"]["network"]["dropout"] = 0.1
    with pytest.raises(ValueError, match=r"network\.dropout: 0\.5 -> 0\.1"):
        StressTest(read_stress(learner_settings), tmp_path).run()


def test_what_training_data_do_not_have_is_found_at_once(learner_settings, tmp_path):
    for change, message in (
        ({"shots": [5]}, r"shots=5 of each class are more"),
        (
            {"shots": [], "batch_sizes": [16]},
            "training.batch_sizes=16 is more than the 8 training",
        ),
    ):
        made = {**learner_settings, "training": {"train_px": [32], **change}}
        with pytest.raises(ValueError, match=message):
            StressTest(read_stress(made), tmp_path).remaining()


def test_lengths_of_runs():
    training = TrainingConfig(epochs=3, min_steps=50, max_steps=100)
    assert training.steps(30, 16) == 50  # 3 are too few.
    assert training.steps(840, 16) == 100
    assert TrainingConfig(epochs=3, min_steps=50).steps(840, 16) == 156


@pytest.mark.parametrize("variant", ["reduced", "full", "smoke", "smoke_generative"])
def test_variants_have_the_learners_asked_for(variant):
    config = read_stress(get_config(variant).to_dict())
    for name, given in config.learners.items():
        learner = learners_module.read_learner(name, given, name)
        assert learner.classifies == (name == "efficientnet_lite0")
    if not variant.startswith("smoke"):
        assert set(config.learners) == {"efficientnet_lite0", "nano-generative"}
        assert set(config.training.batch_sizes) == {1, 4, 16, 64}
        assert set(config.training.shots) == {1, 2, 4, 7}
        assert config.training.label_noise == (0.1, 0.2)


def test_faults_are_named(settings, data, generative, classifier, tmp_path):
    def fails(message, **sections):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            StressTest(read_stress(settings(**sections)), tmp_path / "work")

    (tmp_path / "empty").mkdir()
    fails(r"models\.m='.*empty': .* is not a folder of a model", models={
        "m": str(tmp_path / "empty")})  # fmt: skip
    fails(r"models\.m='nowhere': no weights 'nowhere'", models={"m": "nowhere"})
    fails("models.m='nano': it is neither an image", models={"m": "nano"})
    fails("python -m experiments.few_shot_data", data={"folder": str(tmp_path)})
    (tmp_path / "dataset.json").write_text('{"classes": ["a"]}')
    fails("is damaged: it lacks 'settings'", data={"folder": str(tmp_path)})
    write_classifier(
        tmp_path / "other", small_classifier("resnet", CLASSES), ("hat", "shoes"),
        ImageFit(32),
    )  # fmt: skip
    fails("only the model has shoes; only the data have shoe; did you mean 'shoe'",
        models={"m": str(tmp_path / "other")})  # fmt: skip
    write_classifier(
        tmp_path / "wide", small_classifier("resnet", CLASSES), CLASSES, ImageFit(40)
    )
    fails(r"was trained at 40 pixels; .* has 32, 48", models={
        "m": str(tmp_path / "wide")})  # fmt: skip
    fails("its image tower only takes 8 pixels, not 32", models={"m": str(generative)},
        tests={"fitted": False})  # fmt: skip
    fails("width=33: .* has 32, 48 pixels", tests={"widths": [33]})
    two = {"m_32": str(classifier), "m": str(classifier)}
    fails("two models are 'm' at 32 pixels", models=two)
    fails("shift.folder has the classes hat, shoe|did you mean", shift={
        "folder": str(data), "labels": {"hatt": "hat"}})  # fmt: skip
    fails("config.tests has no setting 'corruption'; did you mean", tests={
        "corruption": []})  # fmt: skip
    fails("no model to test", models={})
    fails("baseline='x' must be one of small", baseline="x")
    # Their predictions would be read twice, which failed after all work was done.
    fails(r"tests\.widths has 32 more than once", tests={"widths": [32, 32]})
    fails(r"training\.seeds has 0 more than once", training={"seeds": [0, 0]})
    fails(r"config\.models must be settings by name, not \['m'\]", models=["m"])
    fails(r"config\.learners must be settings by name", learners=["net"])
    fails(r"learners\.net must be settings by name", learners={"net": "resnet"})
    fails(r"net\.pictures must be settings by name", learners={"net": {"pictures": 3}})
    fails("tests.synonyms must be settings by name", tests={"synonyms": ["hat"]})
    fails("shift.labels must be settings by name", shift={"labels": ["hat"]})
    fails("synonym of='shoo' must be one of hat", tests={"synonyms": {"shoo": "x"}})
    learner = {"batch_size": 4, "pictures": {}, "num_steps": 4}
    fails(r"learners\.net\.num_steps: training\.epochs", learners={"net": learner})
    learner = {"batch_size": 4, "pictures": {"task": "x"}}
    fails(
        r"net\.pictures\.task: data\.folder determines the data",
        learners={"net": learner},
    )
    learner = {"batch_size": 4, "pictures": {}}
    for px, message in ((64, "width=64: "), (16, "width=16: ")):
        training = {"train_px": [px]}
        fails(message, learners={"net": learner}, training=training)
