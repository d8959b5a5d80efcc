"""From samples to a predictor: what it answers, keeps, writes and refuses."""

import importlib
import json
import time
import tomllib

import jax
import numpy as np
import pytest
import safetensors
from own_data import write_folder
from own_data import write_pictures as write_captioned
from paths import ROOT
from predictor_toy import (
    COLOURS,
    NAMES,
    SMALL,
    write_pictures,
    write_samples,
)

import meta_opt
from meta_opt.data.samples import Samples
from meta_opt.predictor.columns import Columns
from meta_opt.predictor.command import main
from meta_opt.workloads.multimodal_inputs import InputReader, InputsConfig


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("samples"))


def fit(data, root, **changes):
    settings = {"preset": SMALL, "encoders": NAMES, "progress": False, **changes}
    return meta_opt.fit(data, data_dir=root, **settings)


@pytest.fixture(scope="module")
def predictor(root, samples, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("work") / "new"
    return fit(samples, root, workdir=workdir), workdir


def decided(predictor, name):
    return next(one.value for one in predictor.decisions if one.name == name)


def test_colours_are_told_apart(predictor, samples):
    found, _ = predictor
    assert found.record.metrics["test"]["accuracy"] > 0.5
    assert decided(found, "target") == "category"
    assert decided(found, "task") == "classify"
    assert decided(found, "modalities") == ["image", "text"]
    assert decided(found, "ignored_column") == "number"
    every = found.evaluate(samples)
    assert every["examples"] == 36 and every["accuracy"] > 0.8


def test_answers_agree_with_each_other(predictor, samples):
    found, _ = predictor
    probabilities = found.predict_proba(samples)
    assert probabilities.shape == (36, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    answers = found.predict(samples)
    assert list(found.classes) == sorted(COLOURS)
    assert list(answers) == list(found.classes[probabilities.argmax(axis=1)])
    labels = [json.loads(x)["category"] for x in samples.read_text().splitlines()]
    assert np.mean(answers == labels) == pytest.approx(
        found.evaluate(samples)["accuracy"]
    )
    assert found.embed(samples).shape == (36, SMALL.fusion_width)


def test_the_best_evaluation_is_what_is_kept(predictor):
    found, _ = predictor
    seen = {
        r["step"]: r["validation/accuracy"]
        for r in found.record.history
        if "validation/accuracy" in r and r["step"]
    }
    validation = found.record.metrics["validation"]["accuracy"]
    assert validation >= max(seen.values()) - 1e-6
    assert seen[decided(found, "best_step")] == max(seen.values())


def test_a_saved_predictor_answers_the_same(predictor, samples, root, tmp_path):
    found, workdir = predictor
    found.save(tmp_path / "again")
    for folder in (workdir, tmp_path / "again"):
        loaded = meta_opt.Predictor.load(folder)
        np.testing.assert_allclose(
            loaded.predict_proba(samples), found.predict_proba(samples), atol=1e-6
        )
        assert loaded.decisions == found.decisions
        assert loaded.record == found.record
    with pytest.raises(ValueError, match="has no predictor"):
        meta_opt.Predictor.load(root)
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        fit(samples, root, workdir=workdir, seed=1)


def test_a_model_has_encoders_of_its_own(samples, root):
    for call in (meta_opt.fit, meta_opt.plan):
        with pytest.raises(ValueError, match="model='m' has its own encoders; leave"):
            call(samples, model="m", encoders=NAMES, data_dir=root)


def test_the_plan_is_what_is_done(predictor, samples, root):
    found, workdir = predictor
    outline = meta_opt.plan(samples, preset=SMALL, encoders=NAMES, data_dir=root)
    # Only what training finds out is missing.
    assert set(map(str, outline.decisions)) < set(map(str, found.decisions))
    (best,) = (workdir / "run" / "evaluations").glob("best-*.safetensors")
    with safetensors.safe_open(best, "numpy") as arrays:
        sizes = [arrays.get_tensor(name).size for name in arrays.keys()]
    assert outline.trained_parameters == sum(sizes)
    assert outline.num_steps == decided(found, "num_steps")
    assert outline.memory.parameters == 4 * sum(sizes)
    assert outline.sample_bytes % 36 == 0
    assert f"trained parameters: {sum(sizes):,} of" in str(outline)


def test_an_image_that_is_too_large_is_left_out_of_the_sizes(root, tmp_path):
    write_pictures(tmp_path / "pictures")
    # The header of a PPM file, whatever the file is called.
    large = b"P6 40000 40000 255\n"
    (tmp_path / "pictures" / "red" / "large.png").write_bytes(large)
    outline = meta_opt.plan(
        tmp_path / "pictures", preset=SMALL, encoders=NAMES, data_dir=root
    )
    (found,) = [x for x in outline.decisions if x.name == "image_size"]
    assert "have a median of 24 pixels" in found.reason


def test_a_plan_for_other_devices(samples, root):
    def planned(devices):
        return meta_opt.plan(
            samples, preset=SMALL, encoders=NAMES, data_dir=root, devices=devices
        )

    one, many = planned(1), planned(1000)
    # Every device has all parameters and a share of the batch.
    assert (one.devices, many.devices) == (1, one.batch_size)
    assert many.memory.parameters == one.memory.parameters
    assert many.memory.activations < one.memory.activations
    assert f"memory of each of {many.devices} devices: about" in str(many)
    with pytest.raises(ValueError, match="devices=0 must be at least 1"):
        planned(0)
    with pytest.raises(ValueError, match="devices=1000, but there are only 8"):
        fit(samples, root, devices=1000)


@pytest.mark.slow
def test_a_fit_on_several_devices_is_that_on_one(predictor, samples, root):
    found, _ = predictor
    many = fit(samples, root, devices=3)
    assert decided(many, "devices") == 2  # It divides the batch.
    np.testing.assert_allclose(
        many.predict_proba(samples), found.predict_proba(samples), atol=2e-3
    )


def test_shapes_are_those_of_the_arrays(root):
    config = InputsConfig(
        "samples.jsonl",
        data_dir=str(root),
        image_size=32,
        audio_seconds=0.4,
        text_length=8,
        encoders=NAMES,
        trainable_layers=dict.fromkeys(NAMES, 1),
        pool_size={"audio": 4},
    )
    reader = InputReader(config, "score", ("image", "text", "audio", "video"))
    samples = Samples(
        image=np.zeros((2, 32, 32, 3), np.uint8),
        text=["a red", "a"],
        audio=[np.zeros(6400, np.int16)] * 2,
        video=np.zeros((2, 8, 32, 32, 3), np.uint8),
        score=np.zeros(2, np.float32),
    )
    arrays, shapes = reader(samples), reader.shapes(samples)
    assert jax.tree.structure(arrays) == jax.tree.structure(shapes)
    for array, shape in zip(*map(jax.tree.leaves, (arrays, shapes)), strict=True):
        assert (array.shape, array.dtype) == (shape.shape, shape.dtype)


def test_samples_of_other_forms(predictor, samples):
    found, _ = predictor
    folder = samples.parent
    rows = [json.loads(line) for line in samples.read_text().splitlines()][1:4]
    for row in rows:
        row.pop("category")
        row["photo"] = str(folder / row["photo"])
    assert list(found.predict(rows)) == list(found.predict(samples)[1:4])
    with pytest.raises(ValueError, match="photo, words"):
        found.predict([{"text": "a red"}])
    with pytest.raises(ValueError, match=r"row 2: nothing to read"):
        found.predict([{"words": "a red"}, {"words": None}])
    with pytest.raises(ValueError, match=r"none.png"):
        found.predict([{"photo": "none.png"}])


def test_the_page_opens_offline(predictor, tmp_path):
    found, _ = predictor
    page = tmp_path / "report.html"
    found.report(page)
    text = page.read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("data:image/png;base64,") >= 2
    for word in (
        "Confusion",
        "Which modality mattered",
        "Decisions and reasons",
        "batch_size",
    ):
        assert word in text
    for decision in found.decisions:
        assert decision.name in text


def test_the_command(predictor, samples, root, tmp_path, capsys):
    _, workdir = predictor
    where = ["--data-dir", str(root)]
    assert main(["predict", str(workdir), str(samples), *where]) == 0
    lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert len(lines) == 36 and {x["prediction"] for x in lines} <= set(COLOURS)
    assert main(["evaluate", str(workdir), str(samples), *where]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 36
    page = tmp_path / "page.html"
    assert main(["report", str(workdir), str(page), *where]) == 0
    assert page.is_file()
    capsys.readouterr()
    assert main(["fit", "nowhere.jsonl", "--out", str(tmp_path / "x")]) == 1
    assert not (tmp_path / "x").exists()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    for name in ("kept", "empty", "new/er/est"):
        assert main(["fit", "nowhere.jsonl", "--out", str(tmp_path / name)]) == 1
    assert (tmp_path / "kept" / "notes.txt").is_file()
    assert (tmp_path / "empty").is_dir() and not (tmp_path / "new").exists()
    assert main(["plan", "nowhere.jsonl"]) == 1
    error, *_, of_plan = capsys.readouterr().err.strip().splitlines()
    assert of_plan == "meta-opt plan: there is no file nowhere.jsonl"
    assert error == "meta-opt fit: there is no file nowhere.jsonl"
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    assert "(default: good)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_folder_of_pictures_within_its_time(root, tmp_path):
    """Also: files that are not pictures are left out, and a limit that is too short."""
    write_pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "red" / "broken.png").write_bytes(b"nothing")
    started = time.perf_counter()
    found = fit(tmp_path / "pictures", root, time_limit=60.0)
    assert time.perf_counter() - started < 66
    assert decided(found, "unreadable_left_out") == 1
    assert decided(found, "num_steps_in_time") <= SMALL.steps[1]
    assert found.predict([tmp_path / "pictures" / "red" / "00.png"]).shape == (1,)
    too_short = r"time_limit=0.01 s is too short: reading \d+ samples took"
    with pytest.raises(ValueError, match=too_short):
        fit(tmp_path / "pictures", root, time_limit=0.01)


class Sides:
    """Vectors of pictures and of texts as a retrieval model gives them, also where
    a row has none."""

    def outputs(self, samples, what):
        return np.stack([np.eye(3), np.roll(np.eye(3), 1, axis=0)], 1)[: len(samples)]


def test_only_rows_with_a_text_are_retrieved(tmp_path):
    columns = Columns("retrieve", {"image": "photo"}, ("words",))
    predictor = meta_opt.Predictor(Sides(), columns, (), [], None)
    both = [{"photo": f"{i}.png", "words": f"picture {i}"} for i in range(3)]
    # The vector of picture i is that of text i + 1.
    assert predictor.predict(both).tolist() == [1, 2, 0]
    cut = [both[0], {"photo": "1.png"}, {"words": "picture 2"}]
    assert predictor.predict(cut).tolist() == [0, 2, -1]
    pictures, texts = predictor.embed(cut)
    assert pictures.any(axis=1).tolist() == [True, True, False]
    assert texts.any(axis=1).tolist() == [True, False, True]
    with pytest.raises(ValueError, match=r"no row has a text to retrieve, .* words"):
        predictor.predict([{"photo": "1.png"}])


class Scores:
    """Scores of any samples."""

    def outputs(self, samples, what):
        return np.zeros(len(samples))


def test_columns_of_other_samples(caplog):
    columns = Columns("score", {}, ("title", "body"), "price")
    predictor = meta_opt.Predictor(Scores(), columns, (), [], None)
    rows = [{"more": 1, "body": "new", "title": "a lamp"}, {"body": "old"}]
    assert predictor.predict(rows).tolist() == [0, 0] and not caplog.messages
    assert predictor.predict([{"Title": "a lamp", "body": "new"}]).tolist() == [0]
    assert caplog.messages == [
        "samples has no values in 'title', which the model also reads "
        "(columns: Title, body)"
    ]
    with pytest.raises(ValueError, match="samples has the columns more; the model"):
        predictor.predict([{"more": 1}])


ARGUMENTS = [
    ({"target": ["label"]}, TypeError, r"target=\['label'\] of type list"),
    ({"time_limit": "10m"}, TypeError, "time_limit='10m' must be a number"),
    ({"seed": "a"}, TypeError, "seed='a' must be an integer"),
    ({"seed": -1}, ValueError, r"seed=-1 must be from 0 to 2\*\*63 - 1"),
    ({"data": None}, ValueError, "data of type NoneType must be a path"),
]


@pytest.mark.parametrize("given, error, message", ARGUMENTS)
def test_arguments_of_the_wrong_type(given, error, message):
    data = [{"text": f"day {i}", "label": i % 2} for i in range(20)]
    with pytest.raises(error, match=message):
        meta_opt.fit(**{"data": data, "progress": False, **given})


@pytest.mark.slow
def test_a_folder_of_the_users_learns_pairs(tmp_path):
    siglip = write_folder(tmp_path / "siglip")
    pairs = write_captioned(tmp_path / "pictures")
    found = meta_opt.fit(pairs, model=siglip, preset=SMALL, progress=False)
    assert decided(found, "task") == "retrieve"
    image, text = found.embed(pairs)
    assert image.shape == text.shape == (40, 32)
    nearest = found.predict(pairs)
    np.testing.assert_array_equal(nearest, (image @ text.T).argmax(axis=1))
    assert found.evaluate(pairs)["examples"] == 40
    lines = [json.loads(line) for line in pairs.read_text().splitlines()[:3]]
    rows = [{**row, "image": str(pairs.parent / row["image"])} for row in lines]
    (text_alone := dict(rows[1])).pop("image")
    answers = found.predict([rows[0], text_alone, rows[2]])
    assert answers[1] == -1 and -1 not in answers[[0, 2]]
    assert not found.embed([rows[0], text_alone])[0][1].any()
    found.save(tmp_path / "saved")
    loaded = meta_opt.Predictor.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.embed(pairs)[0], image, atol=1e-5)
    found.report(tmp_path / "page.html")
    with pytest.raises(
        ValueError, match=r"is for the task 'retrieve' on images, and the task of"
    ):
        meta_opt.fit(write_samples(tmp_path / "own"), model=siglip, preset=SMALL)


def test_settings_that_do_not_fit_are_named(samples, root):
    for changes, message in (
        ({"preset": "god"}, "did you mean 'good'"),
        ({"time_limit": -1.0}, "time_limit=-1.0 must be above 0"),
        ({"encoders": {"sound": "x"}}, "encoders has no setting 'sound'"),
        ({"validation": [{"words": "a red"}]}, "validation has no column 'category'"),
        ({"target": "categories"}, "did you mean 'category'"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(samples, root, **changes)


def test_many_files_that_cannot_be_read_are_an_error(root, tmp_path):
    files = write_pictures(tmp_path / "pictures")
    for file, _ in files[::2]:
        file.write_bytes(b"nothing")
    with pytest.raises(
        ValueError, match=r"more than 20% of 36 samples .*\.png \("
    ) as e:
        fit(tmp_path / "pictures", root)
    assert "\n" not in str(e.value)
    # One file of many samples counts for each of them.
    rows = [{"photo": str(f), "label": colour} for f, colour in files[1::2]]
    rows += [{"photo": str(files[0][0]), "label": "red"}] * 6
    with pytest.raises(ValueError, match=r"more than 20% of 24 samples .*00\.png \("):
        fit(rows, root)


@pytest.mark.slow
def test_numbers_come_back_in_their_unit(root, tmp_path):
    files = write_pictures(tmp_path / "pictures", each=20)
    prices = {"red": 1000.0, "green": 1200.5, "blue": 1500.0}
    rows = [{"photo": str(f), "price": prices[c]} for f, c in files]
    found = fit(rows, root, target="price")
    assert decided(found, "task") == "score"
    assert 1000 < decided(found, "score_center") < 1500
    answers = found.predict([str(f) for f, _ in files])
    errors = answers - [row["price"] for row in rows]
    # The standard deviation is 205.
    assert np.mean(np.abs(errors)) < 150
    metrics = found.evaluate(rows)
    assert metrics["mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-4)
    # Prices have no sign whose accuracy would say something.
    assert metrics.keys() == {"loss", "mae", "correlation", "examples", "left_out"}
    found.save(tmp_path / "saved")
    loaded = meta_opt.Predictor.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.predict(rows), answers, rtol=1e-5)


def test_the_wheel_has_the_command():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    module, name = settings["project"]["scripts"]["meta-opt"].split(":")
    assert getattr(importlib.import_module(module), name) is main
    assert (ROOT / "meta_opt" / "predictor" / "report.html").is_file()
