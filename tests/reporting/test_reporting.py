"""Reports are made of what the logs say, and open offline."""

import base64
import io
import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from meta_opt.metrics.convergence import steps_to_target
from meta_opt.reporting.comparison import write_report
from meta_opt.reporting.runs import Run, is_finished, read_run
from meta_opt.reporting.tables import comparison, to_text

STEPS = (0, 10, 20)
CURVES = {
    "ours": (5.0, 3.0, 2.5),
    "reference": (5.0, 4.0, 3.0),
    "slow": (5.0, 4.9, math.nan),
}
TEST = {
    "ours": dict(i2t_r1=0.25, i2t_medr=3.0, zero_shot_accuracy=0.5),
    "reference": dict(i2t_r1=0.2, i2t_medr=3.0, zero_shot_accuracy=0.40001),
    "slow": dict(i2t_r1=0.1, i2t_medr=9.5, zero_shot_accuracy=0.4),
}


def write_json(path, value):
    path.write_text(json.dumps(value))


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def png(color):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), color, np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def folders(tmp_path):
    """Directories of three runs, as runs leave them."""
    for number, (name, losses) in enumerate(CURVES.items()):
        folder = tmp_path / name
        folder.mkdir()
        records = [
            {
                "step": step,
                "validation/loss": None if math.isnan(loss) else loss,
                "validation/i2t_r5": 0.1 * i,
                "validation/t2i_r5": 0.2 * i,
            }
            for i, (step, loss) in enumerate(zip(STEPS, losses, strict=True))
        ]
        records.insert(1, {"step": 10, "train/loss": 1.0})
        write_lines(folder / "metrics.jsonl", records)
        timing = [{"step": s, "train_seconds": s * (1.0 + number)} for s in STEPS[1:]]
        write_lines(folder / "timing.jsonl", timing)
        result = {
            "test": TEST[name],
            "validation": records[-1],
            "train_seconds": 20.04 * (1 + number),
            "compile_seconds": 4.0,
            "optimizer_bytes": 2000 * (1 + number),
            "trainable": 1000,
            "nonfinite": 0,
        }
        write_json(folder / "result.json", result)
        config = {
            "loop": {"num_steps": 20, "batch_size": 8, "seed": 7},
            "model": {"weights": "nano", "size": "nano"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-3,
                "weight_decay": 0.01,
                "momentum": 0.9,
                "warmup_fraction": 0.05,
            },
        }
        write_json(folder / "config.json", config)
        environment = {
            "git": "abc",
            "started": "today",
            "versions": {"jax": "1", "flax": None, "optax": "2"},
            "python": "3",
            "platform": "p",
            "device": "cpu",
            "device_count": 1,
        }
        write_json(folder / "environment.json", [{}, environment])
    before = tmp_path / "before"
    before.mkdir()
    write_json(
        before / "result.json",
        {
            "pairs": {"train": 40, "validation": 20, "test": 20},
            "validation": {"validation/loss": 5.0},
            "test": {"i2t_r1": 0.05},
        },
    )
    titles = {"0": "a <b>bold</b> cat", "1": "dog & co"}
    found = {"text_to_image": [[0, 1]], "image_to_text": [[1, 0]]}
    write_json(
        before / "examples.json",
        {
            "queries": [0],
            "models": {"before": found, "after": found},
            "titles": titles,
            "images": {"0": png(0), "1": png(200)},
        },
    )
    return tmp_path


def read_all(folders):
    return {name: read_run(folders / name, name) for name in CURVES}


def cells(table):
    return {
        row.label: dict(zip(table.columns, row.cells, strict=True))
        for section in table.sections
        for row in section.rows
    }


@pytest.mark.parametrize(
    ("values", "target", "expected"),
    [
        ((5, 4, 3), 4.0, 10),
        ((5, 4, 3), 3.5, 20),
        ((5, 2, 6), 2.5, 10),
        ((5, 4, 3), 6.0, 0),
        ((5, 4, 3), 2.9, None),
        ((math.nan, math.nan, 3), 3.0, 20),
        ((5, 4, 3), math.nan, None),
    ],
)
def test_steps_to_target(values, target, expected):
    assert steps_to_target(STEPS, values, target) == expected


def test_table_says_what_the_logs_say(folders):
    runs = read_all(folders)
    before = read_run(folders / "before", "before")
    table = comparison([before, *runs.values()], runs["reference"])
    assert table.columns == ("before", "ours", "reference", "slow")
    shown = cells(table)
    texts = {
        label: tuple(cell.text for cell in row.values()) for label, row in shown.items()
    }
    assert texts["loss"] == ("5.000", "2.500", "3.000", "nan")
    steps = texts["steps to the last loss of reference"]
    assert steps == ("-", "10", "20", "not reached")
    assert texts["image to text, R@1 (%)"] == ("5.0", "25.0", "20.0", "10.0")
    assert texts["image to text, median rank"] == ("-", "3.0", "3.0", "9.5")
    assert texts["training (seconds)"] == ("-", "20.0", "40.1", "60.1")
    state = texts["optimizer state (bytes a parameter)"]
    assert state == ("-", "2.00", "4.00", "6.00")
    best = {
        label: [name for name, cell in row.items() if cell.best]
        for label, row in shown.items()
    }
    assert best["loss"] == ["ours"]
    assert best["image to text, median rank"] == ["ours", "reference"]
    # All are the same.
    assert best["compilation (seconds)"] == []
    # 40.001 and 40.0 both read 40.0.
    assert texts["zero-shot accuracy (%)"] == ("-", "50.0", "40.0", "40.0")
    assert "steps with non-finite loss" not in shown


def test_nonfinite_steps_are_not_kept_quiet(folders):
    runs = read_all(folders)
    runs["slow"].result["nonfinite"] = 3
    shown = cells(comparison(list(runs.values()), runs["reference"]))
    assert shown["steps with non-finite loss"]["slow"].text == "3"


def test_text_has_one_line_a_row_in_columns(folders):
    runs = read_all(folders)
    table = comparison(list(runs.values()), runs["reference"])
    lines = to_text(table).splitlines()
    rows = [line for line in lines if line.startswith("  ") and "↑" in line[:60]]
    rows += [line for line in lines if line.startswith("  ") and "↓" in line[:60]]
    assert len(rows) == sum(len(section.rows) for section in table.sections)
    assert max(map(len, lines)) == len(next(x for x in lines if x.startswith("---")))
    assert any("25.0*" in line and "20.0 " in line for line in rows)


def test_runs_are_read_from_their_folder(folders):
    run = read_run(folders / "ours", "ours")
    assert run.curve("validation/loss") == ([0, 10, 20], [5.0, 3.0, 2.5])
    assert run.seconds([0, 10, 20]) == [0.0, 10.0, 20.0]
    assert math.isnan(run.seconds([15])[0])
    assert run.environment["git"] == "abc"
    (folders / "ours" / "result.json").unlink()
    assert not is_finished(folders / "ours")
    with pytest.raises(ValueError, match="ours is not finished"):
        read_run(folders / "ours", "ours")
    empty = Run("empty", {})
    with pytest.raises(ValueError, match="'empty' has no validation/loss"):
        comparison([empty], empty)


class Loaded(HTMLParser):
    """Collects what a browser would load or run, and the text."""

    def __init__(self):
        super().__init__()
        self.sources, self.tags, self.text = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_holds_everything_and_escapes_titles(folders):
    text = write_report(
        folders / "report",
        title="A & B",
        summary="What was done.",
        runs={name: folders / name for name in CURVES},
        reference="reference",
        before=folders / "before",
        facts={"search": "there.json"},
    )
    files = sorted(path.name for path in (folders / "report").iterdir())
    assert files == ["curves.png", "index.html", "table.txt"]
    with Image.open(folders / "report" / "curves.png") as figure:
        assert figure.width > 1000
    page = (folders / "report" / "index.html").read_text("utf-8")
    assert (folders / "report" / "table.txt").read_text("utf-8") == text + "\n"
    loaded = Loaded()
    loaded.feed(page)
    # 1 figure, 2 x 2 pictures, 1 query.
    assert len(loaded.sources) == 6
    assert all(s.startswith("data:image/png;base64,") for s in loaded.sources)
    assert not loaded.tags & {"script", "link", "iframe", "b"}
    assert not any(word in page for word in ("http:", "https:", "url(", "@import"))
    shown = " ".join(loaded.text)
    for expected in ("A & B", "a <b>bold</b> cat", "dog & co", "there.json"):
        assert expected in shown
    assert "not reached" in shown and "25.0" in shown
    assert "20 steps of 8 pairs (4.0 epochs)" in shown
