"""The stress test's summary has the numbers of its definition; its report is whole."""

import base64
import dataclasses
import io
import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from stress_toy import golden_picture, made_up, stress_predictions

from meta_opt.data.preprocessing.corruptions import corrupt
from meta_opt.metrics.intervals import wilson
from meta_opt.metrics.paired_tests import mcnemar
from meta_opt.reporting.wrong_answers import choose_wrong
from meta_opt.studies.stress.conditions import Condition
from meta_opt.studies.stress.predictions import (
    Prediction,
    cells,
    parse_prediction,
    read_predictions,
    write_predictions,
)
from meta_opt.studies.stress.report import corruptions_table, write_stress_report
from meta_opt.studies.stress.summary import summarise
from meta_opt.studies.stress.wrong_answers import picture_reader, write_wrong_answers

CLEAN = Condition()
LINE = {"example": "a", "label": "x", "prediction": "y", "model": "m"}


def with_severities(model, by_corruption, clean=(), **options):
    """Predictions of a model that errs on the first examples, as many as given."""
    found = made_up(model, CLEAN, clean, **options)
    for name, counts in by_corruption.items():
        for severity, wrong in enumerate(counts, start=1):
            condition = Condition(name, severity)
            found += made_up(model, condition, range(wrong), **options)
    return found


@pytest.mark.parametrize(
    ("settings", "name", "reference"),
    [
        ({}, "clean", None),
        ({"train_px": 100, "test_px": 100}, "clean, 100 px", None),
        (
            {"train_px": 100, "test_px": 400},
            "clean, 100 px to 400 px",
            {"train_px": 100, "test_px": 100},
        ),
        ({"corruption": "grey", "severity": 2, "shots": 4}, "grey 2, 4 shots",
         {"shots": 4}),
        ({"shots": 1}, "1 shot", {}),
        ({"label_noise": 0.2, "prompt": "polite"}, "prompt polite, 20% wrong labels",
         {"label_noise": 0.2}),
        ({"label_noise": 0.1}, "10% wrong labels", {}),
    ],
)  # fmt: skip
def test_conditions_have_a_name_and_what_they_are_compared_with(
    settings, name, reference
):
    condition = Condition(**settings)
    assert condition.name == name
    expected = None if reference is None else Condition(**reference)
    assert condition.reference == expected
    assert condition.to_json() == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruption": "jpg"}, "corruption='jpg' must be one of"),
        ({"corruption": "grey"}, "severity=0 of corruption='grey'"),
        ({"severity": 1}, "severity=1 of corruption=''"),
        ({"train_px": 100}, "train_px=100 and test_px=0"),
        ({"shots": -1}, "shots=-1"),
        ({"label_noise": 1.0}, r"label_noise=1.0"),
        ({"prompt": ""}, "prompt=''"),
    ],
)
def test_conditions_that_there_are_not(settings, message):
    with pytest.raises(ValueError, match=message):
        Condition(**settings)


def test_predictions_are_read_as_written(tmp_path):
    written = stress_predictions(5) + made_up("ünïcode", CLEAN, [0], unread=[1])
    write_predictions(tmp_path / "x" / "a.jsonl", written)
    assert read_predictions([tmp_path / "x" / "a.jsonl"]) == written
    first = json.loads((tmp_path / "x" / "a.jsonl").read_text().splitlines()[0])
    assert first["condition"] == {"train_px": 100, "test_px": 100}


def test_confidence_is_the_probability_of_the_prediction():
    assert parse_prediction(LINE).confidence is None
    line = LINE | {"probabilities": {"x": 0.25, "y": 0.75}}
    assert parse_prediction(line).confidence == 0.75
    assert parse_prediction(line | {"prediction": None}).confidence is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lable": "x"}, "no setting 'lable'; did you mean 'label'"),
        ({"label": 3}, "prediction.label=3 must be a string"),
        ({"label": ""}, "label is empty"),
        ({"confidence": 1.5}, "confidence=1.5"),
        ({"condition": {"severty": 1}}, "did you mean 'severity'"),
        ({"probabilities": {"y": 0.5}}, "sum to 0.5"),
        ({"probabilities": {"x": 1.0}}, "lack the prediction, 'y'"),
        ({"probabilities": [0.5, 0.5]}, "must be an object"),
        ({"probabilities": {"y": 1.0}, "confidence": 0.5}, "give one of them"),
    ],
)
def test_lines_that_will_not_do_are_named(tmp_path, change, message):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE | change) + "\n")
    with pytest.raises(ValueError, match=rf"p.jsonl, line 2: .*{message}"):
        read_predictions([path])


def test_lines_that_lack_a_key_or_are_no_object(tmp_path):
    with pytest.raises(ValueError, match="needs a value for prediction"):
        parse_prediction({k: v for k, v in LINE.items() if k != "prediction"})
    with pytest.raises(ValueError, match="not a JSON object"):
        parse_prediction([1])
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no prediction"):
        read_predictions([tmp_path / "none.jsonl"])


def test_predictions_that_do_not_fit_together():
    some = made_up("m", CLEAN, [])
    with pytest.raises(ValueError, match=r"'arrow/000.png' occurs twice .* seed 0"):
        cells(some + some[:1])
    relabelled = dataclasses.replace(some[0], label="ship", seed=1)
    with pytest.raises(ValueError, match="the labels 'arrow' and 'ship'"):
        cells([*some, relabelled])
    with pytest.raises(ValueError, match="seeds 0 and 1 do not have the same examples"):
        cells(some + made_up("m", CLEAN, [], seed=1)[:-1])
    with pytest.raises(ValueError, match="not have the same examples; 1 are in one"):
        summarise(some + made_up("m", Condition("grey", 1), [])[:-1], samples=10)
    with pytest.raises(ValueError, match="did you mean 'm1'"):
        summarise(made_up("m1", CLEAN, []), baseline="m2")


def test_the_order_of_lines_does_not_matter():
    lines = stress_predictions(10)
    shuffled = [lines[i] for i in np.random.default_rng(0).permutation(len(lines))]
    one, other = (summarise(x, "resnet", samples=5) for x in (lines, shuffled))
    for part in ("conditions", "corruptions", "models"):
        rows = [
            {(row.model, row.condition): row for row in getattr(found, part)}
            for found in (one, other)
        ]
        assert rows[0] == rows[1] and rows[0]


def test_metrics_of_a_condition_by_hand():
    (row,) = summarise(
        made_up("m", CLEAN, range(8), unread=[0, 1]), samples=400
    ).conditions
    assert (row.examples, row.seeds, row.unread) == (40, 1, 0.05)
    assert row.metrics["accuracy"] == wilson(32, 40)
    assert row.metrics["weighted_recall"].mean == pytest.approx(0.8)
    # 38 were read with confidence 0.8, 32 of them right.
    assert row.calibration_error == pytest.approx(32 / 38 - 0.8)
    for found in row.metrics.values():
        assert found.low < found.mean < found.high
    assert row.over_reference is None


def test_several_seeds_are_averaged_and_widen_the_interval():
    halves = made_up("m", CLEAN, range(20)) + made_up("m", CLEAN, (), seed=1)
    same = made_up("m", CLEAN, range(10)) + made_up("m", CLEAN, range(10), seed=1)
    (apart,), (alike,) = (summarise(x, samples=1000).conditions for x in (halves, same))
    for row in (apart, alike):
        assert row.seeds == 2 and row.metrics["accuracy"].mean == 0.75
    a, b = apart.metrics["accuracy"], alike.metrics["accuracy"]
    assert a.high - a.low > 1.5 * (b.high - b.low)


def test_a_condition_is_paired_with_its_reference():
    # Clean errs on 0 to 3, grey on 2 to 11: it loses 8 and wins 2.
    lines = made_up("m", CLEAN, range(4)) + made_up(
        "m", Condition("grey", 5), range(2, 12)
    )
    _, row = summarise(lines, samples=2000).conditions
    over = row.over_reference
    assert over.accuracy.mean == pytest.approx(-6 / 40)
    clean, grey = (~np.isin(np.arange(40), list(x)) for x in (range(4), range(2, 12)))
    assert (
        over.p_value == pytest.approx(mcnemar(clean, grey)) == pytest.approx(0.109375)
    )
    assert over.q_value == over.p_value
    # The paired standard error, of which the interval has four.
    half = 1.96 * np.std(grey.astype(float) - clean) / 40**0.5
    assert over.accuracy.low == pytest.approx(-0.15 - half, abs=0.03)
    assert over.accuracy.high == pytest.approx(-0.15 + half, abs=0.03)


def test_models_are_compared_under_every_condition_of_both():
    grey, contrast = Condition("grey", 1), Condition("contrast", 1)
    lines = [
        *made_up("base", CLEAN, range(10)),
        *made_up("base", grey, range(10)),
        *made_up("good", CLEAN, ()),
        *made_up("good", grey, range(10)),
        *made_up("good", contrast, ()),
        *itertools.chain(*(made_up("seeds", CLEAN, (), seed=s) for s in (0, 1))),
    ]
    found = summarise(lines, "base", samples=100).models
    by_key = {(row.model, row.condition): row.over_baseline for row in found}
    assert set(by_key) == {("good", CLEAN), ("good", grey), ("seeds", CLEAN)}
    better, equal = by_key["good", CLEAN], by_key["good", grey]
    assert better.accuracy.mean == 0.25 and better.p_value == pytest.approx(2 / 2**10)
    # Two tests: the smaller p counts twice.
    assert better.q_value == pytest.approx(2 * better.p_value)
    assert equal.accuracy == dataclasses.replace(equal.accuracy, mean=0, low=0, high=0)
    assert equal.p_value == 1
    # One seed against two: no pairs of runs.
    other = by_key["seeds", CLEAN]
    assert other.p_value is None and other.accuracy.mean == 0.25


def test_corruption_errors_by_hand():
    ours = with_severities(
        "m", {"grey": (0, 2, 4, 6, 8), "contrast": (4,) * 5}, clean=[0, 1]
    )
    base = with_severities(
        "b", {"grey": (8,) * 5, "contrast": (8,) * 5}, clean=[0, 1, 2, 3]
    )
    partial = made_up("m", Condition("rotation", 3), [])
    rows = summarise(ours + base + partial, "b", samples=200).corruptions
    row = next(row for row in rows if row.model == "m")
    assert set(row.corruptions) == {"grey", "contrast"}
    assert row.incomplete == ("rotation",)
    assert row.error.mean == pytest.approx((20 + 20) / 10 / 40)
    assert row.error.low < row.error.mean < row.error.high
    assert row.mce.mean == pytest.approx((20 / 40 + 20 / 40) / 2)
    # What is added to 2 errors, over what is added to the baseline's 4.
    assert row.relative_mce.mean == pytest.approx((10 / 20 + 10 / 20) / 2)
    of_base = next(row for row in rows if row.model == "b")
    assert (of_base.mce.mean, of_base.mce.low, of_base.mce.high) == (1, 1, 1)
    assert all(r.mce is None for r in summarise(ours, samples=10).corruptions)


def test_relative_mce_does_not_apply_to_a_model_at_chance():
    """It loses nothing to corruption, and would look robust with a ratio of 0."""
    four_categories = {"grey": (30,) * 5}
    chance = with_severities("guess", four_categories, clean=range(30))
    good = with_severities("m", {"grey": (10,) * 5}, clean=range(4))
    base = with_severities("b", {"grey": (8,) * 5}, clean=range(4))
    found = summarise(chance + good + base, "b", samples=100)
    rows = {row.model: row for row in found.corruptions}
    assert rows["guess"].at_chance and rows["guess"].relative_mce is None
    assert rows["guess"].mce.mean == pytest.approx(30 / 8)
    assert not rows["m"].at_chance
    assert rows["m"].relative_mce.mean == pytest.approx(6 / 4)
    (section,) = corruptions_table(found).sections
    shown = {row.label: row.cells[-1].text for row in section.rows}
    assert shown["guess, clean"] == "n/a (chance)"
    assert shown["m, clean"].startswith("150.0")
    # Over a baseline at chance the ratio means nothing for any model.
    over_chance = summarise(chance + good, "guess", samples=100).corruptions
    assert all(row.at_chance and row.relative_mce is None for row in over_chance)


def test_mce_needs_the_corruptions_of_the_baseline_and_its_errors():
    ours = with_severities("m", {"grey": (4,) * 5, "contrast": (4,) * 5})
    less = with_severities("b", {"grey": (8,) * 5})
    flawless = with_severities("b", {"grey": (0,) * 5, "contrast": (4,) * 5})
    for base in (less, flawless):
        rows = summarise(ours + base, "b", samples=10).corruptions
        row = next(row for row in rows if row.model == "m")
        assert row.mce is None and row.error.mean == pytest.approx(0.1)


class Page(HTMLParser):
    """Text, pictures and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.pictures, self.links, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.pictures.append(attrs["src"])
        self.links += [attrs[k] for k in ("href", "src") if k in attrs and tag != "img"]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(40):
        rolled = np.roll(golden_picture(24), i, axis=1)
        Image.fromarray(rolled).save(folder / f"{i:03}.png")
    return folder


def test_wrong_answers_are_shown_as_the_model_saw_them(tmp_path, images):
    lines = made_up("<b>m</b>", Condition("contrast", 5), [3, 7], unread=[9])
    path = tmp_path / "wrong.html"
    write_wrong_answers(path, lines, picture_reader(images))
    page = Page(path.read_text())
    assert len(page.pictures) == 3 and page.links == []
    text = " ".join(page.text)
    assert "<b>m</b>" in text and "3 of 40 wrong" in text
    assert "no category read" in text and "80%" in text
    shown = {
        np.asarray(Image.open(io.BytesIO(base64.b64decode(x.split(",")[1])))).tobytes()
        for x in page.pictures
    }
    assert shown == {
        corrupt(
            np.roll(golden_picture(24), i, axis=1), "contrast", 5, lines[i].example
        ).tobytes()
        for i in (3, 7, 9)
    }


def test_the_surest_wrong_answers_come_first():
    lines = made_up("m", CLEAN, range(30))
    sure = dataclasses.replace(lines[20], confidence=0.99)
    chosen = choose_wrong([*lines[:20], sure, *lines[21:]], 4)
    assert chosen[0] == sure and len(chosen) == 4
    assert not any(one.correct for one in choose_wrong(lines, 100))
    assert choose_wrong(lines[::-1], 5) == choose_wrong(lines, 5)


def test_a_picture_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"003.png of example 'road sign/003.png'"):
        write_wrong_answers(
            tmp_path / "wrong.html",
            made_up("m", CLEAN, [3]),
            picture_reader(tmp_path),
        )
    assert not list(tmp_path.glob("*wrong*"))


def test_report_has_tables_figures_and_pictures(tmp_path, images):
    lines = stress_predictions()
    summary = summarise(lines, "resnet", samples=50)
    text = write_stress_report(
        tmp_path / "out", summary, lines, images, {"data": "made up"}
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "stress.md", "stress.json", "widths.png", "corruptions.png",
        "wrong_answers.html",
    }  # fmt: skip
    markdown = (tmp_path / "out" / "stress.md").read_text()
    for part in ("100 px to 400 px", "## Against resnet", "mCE over resnet", "made up"):
        assert part in markdown
    assert {*re.findall(r"\]\((.*?)\)", markdown)} <= names
    assert "jpeg_compression 5, 200 px" in text
    values = json.loads((tmp_path / "out" / "stress.json").read_text())
    accuracy = {
        (row["model"], json.dumps(row["condition"])): row["metrics"]["accuracy"]["mean"]
        for row in values["conditions"]
    }
    for row in summary.conditions:
        key = row.model, json.dumps(row.condition.to_json())
        assert accuracy[key] == row.metrics["accuracy"].mean
    for name in ("widths.png", "corruptions.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert min(image.size) > 300


def test_report_of_one_condition_has_no_figures(tmp_path):
    lines = made_up("m", CLEAN, [1])
    write_stress_report(tmp_path, summarise(lines, samples=20), lines)
    assert {path.name for path in tmp_path.iterdir()} == {
        "stress.md", "stress.json", "wrong_answers.html",
    }  # fmt: skip
    assert "no picture" in (tmp_path / "wrong_answers.html").read_text()


def test_a_line_of_the_documentation_is_read():
    from meta_opt.studies.stress import predictions

    line = re.search(r"::\n\n(.*?\})\n\n", predictions.__doc__, re.DOTALL).group(1)
    found = parse_prediction(json.loads(line))
    assert isinstance(found, Prediction)
    assert found.condition == Condition("contrast", 3, train_px=100, test_px=100)


@pytest.mark.parametrize(("added", "known"), [(1, False), (8, True)])
def test_a_ratio_to_nearly_nothing_has_no_interval(added, known):
    """Where a third of the samples lack the one error that was added."""
    wrong = {"grey": (4 + added,) * 5}
    lines = [
        *with_severities("m", wrong, clean=range(4)),
        *with_severities("b", wrong, clean=range(4)),
    ]
    rows = summarise(lines, "b", samples=500).corruptions
    row = next(row for row in rows if row.model == "m")
    assert row.relative_mce.mean == pytest.approx(1)
    assert (row.relative_mce.low is not None) == known
