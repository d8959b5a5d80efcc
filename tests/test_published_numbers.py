"""Numbers in the README, the docs and the cards are those of the stored records.

What a page should say is written from the records: whole rows of tables, and sentences.
Each must be on its page, and each row with a number in a section of `COMPLETE` must be
one of them, so that no row is left unchecked. A number that changes is changed in the
record by its command (``docs/reproduce.md``), and then on the pages that fail here.
"""

import json
import re

import numpy as np
import pytest
from paths import ROOT

from meta_opt.meta_training.scoring import over_tasks
from meta_opt.optimizers.weights import DEFAULT

RESULTS = ROOT / "results"
README = "README.md"
TABLES = "docs/results.md"
MEMORY = "docs/memory.md"
PRUNING = "docs/token_pruning.md"
SAFEGUARD = "docs/safeguard.md"
MULTIMODAL = "docs/multimodal.md"
LOSSES = "docs/losses.md"
FIT = "docs/fit.md"
LOG = "docs/meta_training.md"
CARD = f"meta_opt/optimizers/weights/{DEFAULT}.md"
GIB = 2**30
WORDS = ("no", "one", "two", "three", "four", "five", "six")

COPIED = [
    (TABLES, "## Six optimizers on the multimodal suite", "table1/table1.md"),
    (TABLES, "## The framework and its parts", "framework/framework.md"),
    (TABLES, "## Other libraries", "peers/small/peers.md"),
    (TABLES, "## Other libraries on images", "peers/images/peers.md"),
    (LOSSES, "## The comparison with all parameters", "meltr_all/meltr.md"),
    (LOG, "## Leave-one-style-out", "style_choice/style_choice.md"),
    (
        LOG,
        "## The same candidates on style validation",
        "style_choice/style_validation/style_choice.md",
    ),
    (MULTIMODAL, "### Comparison", "balancing/tuxpaint_trimodal/balancing.md"),
    (SAFEGUARD, f"## Result, `{DEFAULT}`", "safeguard/safeguard.md"),
]
"""Sections whose rows are rows of a report."""

COMPLETE = [
    (README, "## When to use it, and when not"),
    (TABLES, "## Foreign suite"),
    (TABLES, "## Meta-test"),
    (MEMORY, "## Published plans"),
    (PRUNING, "## Measured"),
    (LOSSES, "## Comparison of the combiners"),
]
"""Sections in which every row with a number is written from the records."""


def read(path):
    return json.loads((RESULTS / path).read_text())


def plain(text):
    """Text without emphasis, in one line."""
    return re.sub(r"\s+", " ", text.replace("*", "")).strip()


def section(page, heading):
    """A page's text from a heading to the next of its level or above."""
    text = (ROOT / page).read_text()
    level = heading.split(" ")[0]
    start = re.search(rf"^{re.escape(heading)}$", text, re.MULTILINE)
    assert start, f"{page} has no heading {heading!r}"
    rest = text[start.end() :]
    end = re.search(rf"^#{{1,{len(level)}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def numbered_rows(text):
    """Rows below the heads of tables with a number in a cell after the first."""
    below = re.sub(r"^\|.*\n(?=\|[-:|]+$)", "", text, flags=re.MULTILINE)
    rows = [plain(x) for x in below.splitlines() if x.startswith("|")]
    return [x for x in rows if re.search(r"\d", x.split("|", 2)[2])]


class Summary:
    """One untuned optimizer in a meta-test's report, as the pages write it."""

    def __init__(self, suite, subject):
        report = read(f"{suite}/meta_test.json")
        (s,) = [x for x in report["summaries"] if x["subject"] == subject]
        count = s["tasks"]
        seeds = len(report["facts"]["seeds"].split(","))
        self.budget = f"{s['budget_to_adamw']:.2f}"
        self.to_best = f"{s['budget_to_best_of_five']:.2f}"
        self.missed = s["misses"]
        self.misses = f"{s['misses']} of {count}"
        self.points = f"{s['accuracy_over_adamw']['mean']:+.1f}"
        self.accuracy = self.interval(s["accuracy_over_adamw"])
        self.over_best = self.interval(s["accuracy_over_best_of_five"])
        self.over_all = self.interval(s["accuracy_over_best_of_all"])
        as_accurate = round(count * s["share_as_accurate_as_best_of_five"])
        self.as_accurate = f"{as_accurate} of {count}"
        self.close = f"{round(count * s['share_close_to_best_of_all'])} of {count}"
        self.poor = s["poor_runs"]
        self.runs = seeds * count
        self.worst = f"{s['worst_over_hand_designed']:.1f}"

    @staticmethod
    def interval(x):
        return f"{x['mean']:+.1f} [{x['low']:+.1f}, {x['high']:+.1f}]"


def of_meta_tests():
    f, r = Summary("foreign", DEFAULT), Summary("foreign", "hand_designed")
    m, q = Summary("meta_test", DEFAULT), Summary("meta_test", "hand_designed")
    steps = "steps to tuned AdamW's final validation loss, as a multiple of AdamW's"
    points = "test accuracy minus tuned AdamW's, points (95% interval"
    for ours, rule in ((f, r), (m, q)):
        missed = f"| tasks that never reach it | {ours.misses} | {rule.misses} |"
        values = f"| {ours.accuracy} | {rule.accuracy} |"
        mean = "(geometric mean, a miss counts as 4)"
        for page, label, over in (
            (README, steps, ""),
            (TABLES, f"{steps} {mean}", " over tasks"),
        ):
            yield page, f"| {label} | {ours.budget} | {rule.budget} |"
            yield page, missed
            yield page, f"| {points}{over}) {values}"
        poor = f"runs under 0.9 of AdamW's accuracy, of {ours.runs}"
        yield TABLES, f"| {poor} | {ours.poor} | {rule.poor} |"
    five = "SGD, Adam, AdamW, RMSProp and Lion"
    most, best = "the most accurate of", "the best of eight tuned optimizers"
    others = "(Muon, schedule-free AdamW and Prodigy too)"
    over_all = f"{f.over_all} | {r.over_all} |"
    for page, label, values in (
        (
            TABLES,
            f"the same steps, to the best of {five} on each task",
            f"{f.to_best} | {r.to_best} |",
        ),
        (
            TABLES,
            f"the same points, against {most} the five on each task",
            f"{f.over_best} | {r.over_best} |",
        ),
        (
            TABLES,
            f"the same, against {most} all eight tuned optimizers {others}",
            over_all,
        ),
        (README, f"the same, against {best} on each task", over_all),
    ):
        yield page, f"| {label} | {values}"
    for label, a, b in (
        (f"the same steps, to the best of {five} on each task", m.to_best, q.to_best),
        (
            "the same, against the most accurate of the five on each task",
            m.over_best,
            q.over_best,
        ),
        (
            "tasks where it is at least as accurate as that one",
            m.as_accurate,
            q.as_accurate,
        ),
        (
            "tasks where its loss is within 5% of the best of all eight baselines "
            "(Muon, schedule-free AdamW and Prodigy too)",
            m.close,
            q.close,
        ),
    ):
        yield TABLES, f"| {label} | {a} | {b} |"
    yield TABLES, f"untuned, {f.budget} of the steps of tuned AdamW; {f.misses} tasks"
    yield TABLES, f"({m.points} points, within the interval), at a higher loss; "
    yield TABLES, f"at a higher loss; {m.misses} tasks miss its loss"
    yield (
        CARD,
        f"budget to tuned AdamW's loss {f.budget} (the hand-designed rule {r.budget}), "
        f"accuracy {f.points} points ({r.points}), {WORDS[f.poor]} failed run, at "
        f"worst {f.worst} of the rule's loss",
    )
    yield (
        CARD,
        f"budget {m.budget} ({q.budget}; {WORDS[m.missed]} tasks miss tuned AdamW's "
        f"loss), accuracy {m.points} points over tuned AdamW ({q.points}), "
        f"{WORDS[m.poor]} of {m.runs} runs under 0.9 of its accuracy ({WORDS[q.poor]})",
    )


def of_rivals():
    subjects = [x["subject"] for x in read("foreign/meta_test.json")["summaries"]]
    rivals = {
        x: Summary("foreign", x)
        for x in subjects
        if x.endswith(("_calibrated", "_default"))
    }
    assert len(rivals) == 10
    for name, s in rivals.items():
        yield (
            TABLES,
            f"| `{name}` | {s.budget} | {s.missed} | {s.accuracy} | {s.poor} |",
        )
    best = min(rivals.values(), key=lambda s: float(s.budget))
    assert best is rivals["muon_calibrated"]
    yield (
        README,
        "Of ten untuned rivals the best, calibrated Muon, is at "
        f"{best.budget} and {best.points} points on the 11 tasks.",
    )
    yield TABLES, f"the best of ten untuned rivals needs {best.budget}"


def of_plans():
    ratios = []
    for path in sorted((RESULTS / "plans").glob("*/memory_plan.json")):
        record = json.loads(path.read_text())
        facts = record["facts"]
        label = f"| {facts['model']}, {facts['examples a shard']} examples per chip "
        label += f"| {facts['topology']} |"
        for trainable in ("all", "lora"):
            rows = [x for x in record["rows"] if x["trainable"] == trainable]
            peaks = [x["total"] / GIB for x in rows]
            if trainable == "lora" and rows:
                yield MEMORY, f"{label} {min(peaks):.2f} to {max(peaks):.2f} |"
            elif rows:
                assert [x["name"] for x in rows] == ["adamw", "lion", "learned"]
                ratios.append(peaks[2] / peaks[0])
                largest = [x["largest_examples"] for x in rows]
                most = "-" if None in largest else " / ".join(map(str, largest))
                cells = " | ".join(f"{x:.2f}" for x in (*peaks, ratios[-1]))
                yield MEMORY, f"{label} {cells} | {most} |"
    span = f"{min(ratios):.2f} to {max(ratios):.2f} of AdamW's"
    yield TABLES, f"| {span} peak in full fine-tuning"
    yield README, f"full fine-tuning peaks at {span} memory"


def of_pruning():
    names = {"100% of the patches": "all patches"}
    for model in ("univl", "all_in_one"):
        rows = read(f"token_pruning/{model}/token_pruning.json")["rows"]
        (whole,) = [x["step_ms"] for x in rows if x["name"] in names]
        for x in rows:
            name = names.get(x["name"], x["name"].replace("the patches", "them"))
            cells = [x["tokens"], f"{x['flops'] / 1e9:.2f}", f"{x['step_ms']:.0f}"]
            if x["test"]:
                (test,) = x["test"]
                cells.append(f"{test['loss']:.2f}")
                cells += [f"{test[f't2v_r{k}']:.3f}" for k in (1, 5, 10)]
            else:
                cells.append(f"{whole / x['step_ms']:.2f}")
            yield PRUNING, f"| {name} | {' | '.join(map(str, cells))} |"


def of_combiners():
    """Gains over equal weights; the mean absolute error has two decimals."""
    rows = read("meltr/meltr.json")["rows"]
    gains = {(x["task"], x["combiner"]): x["over_equal"] for x in rows}
    tasks = {
        "univl_captioning": ("captions, CIDEr", 1),
        "univl_retrieval": ("retrieval, R@10", 1),
        "violet_question_answering": ("question answering, accuracy", 1),
        "univl_sentiment": ("sentiment, mean absolute error", 2),
    }
    for task, (name, digits) in tasks.items():
        cells = []
        for combiner in ("primary", "uncertainty", "meltr", "meltr_residual"):
            gain = gains.get((task, combiner))
            if gain is None:
                cells.append("-")
                continue
            half = (gain["high"] - gain["low"]) / 2
            cells.append(f"{gain['mean']:+.{digits}f} ± {half:.{digits}f}")
        yield LOSSES, f"| {name} | {' | '.join(cells)} |"
    yield LOSSES, f"{len(rows)} of the 56 cells are measured so far"


def of_table1():
    claims = {
        (x["trainable"], x["unseen"]): x for x in read("table1/table1.json")["claims"]
    }
    full, lora = claims["all", False], claims["lora", False]
    yield (
        TABLES,
        f"{full['accuracy_over_best']:+.1f} points with all parameters, "
        f"{lora['accuracy_over_best']:+.1f} with LoRA",
    )
    saved = 100 * (1 - full["memory_over_adamw"])
    yield TABLES, f"the peak falls by {saved:.0f}%"


def of_framework():
    rows = read("framework/framework.json")["rows"]
    (gain,) = [x["gain"]["mean"] for x in rows if x["stage"] == "framework"]
    tasks = {5: "five", 6: "six", 7: "seven", 8: "eight"}[rows[0]["tasks"]]
    yield TABLES, f"gain over AdamW is 3.9 points; this one is {gain:+.1f}"
    yield README, f"On {tasks} tasks it is {gain:.1f} points more accurate than tuned"
    yield FIT, f"`fit` is {gain:.1f} points more accurate than AdamW"


def of_style_choice():
    paths = ("style_choice", "style_choice/style_validation")
    rows = [x for path in paths for x in read(f"{path}/style_choice.json")["rows"]]
    tasks = [x["scores"] for x in rows if "scores" in x]
    less, shipped = (
        over_tasks(np.array([x[name] for x in tasks]), 0.5)
        for name in ("loss_low 2.8", "as shipped")
    )
    yield (
        LOG,
        f"Over all {len(tasks)} tasks together the score is {less:.3f} with a weight "
        f"of 2.8 and {shipped:.3f} with 6, that of `lstm-v3`.",
    )


QUOTES = (
    *(of_meta_tests, of_rivals, of_plans, of_pruning, of_table1, of_framework),
    *(of_combiners, of_style_choice),
)
WRITTEN = [(page, plain(text)) for quotes in QUOTES for page, text in quotes()]


@pytest.mark.parametrize("page", dict.fromkeys(page for page, _ in WRITTEN))
def test_pages_say_what_the_records_say(page):
    text = plain((ROOT / page).read_text())
    expected = [x for of, x in WRITTEN if of == page]
    assert [x for x in expected if x not in text] == []


@pytest.mark.parametrize(("page", "heading"), COMPLETE)
def test_every_row_is_written_from_the_records(page, heading):
    expected = {x for of, x in WRITTEN if of == page}
    rows = numbered_rows(section(page, heading))
    assert rows and [x for x in rows if x not in expected] == []


@pytest.mark.parametrize(("page", "heading", "report"), COPIED)
def test_copied_tables_are_those_of_the_report(page, heading, report):
    expected = set(numbered_rows((RESULTS / report).read_text()))
    rows = numbered_rows(section(page, heading))
    assert rows and [x for x in rows if x not in expected] == []


def test_a_wrong_number_is_found():
    text = "| | `v3` |\n|---|---:|\n| loss | **1.5** |\n| name | |\n\n| loss | 2 |\n"
    assert numbered_rows(text) == ["| loss | 1.5 |", "| loss | 2 |"]
    assert plain("a *b*\n  c") == "a b c"


def test_results_stay_small_enough_to_clone():
    """Figures below 0.5 MB each, records without curves of every step."""
    sizes = {p: p.stat().st_size for p in RESULTS.rglob("*") if p.is_file()}
    assert sum(sizes.values()) < 8e6
    assert {str(p): n for p, n in sizes.items() if n > 5e5} == {}
