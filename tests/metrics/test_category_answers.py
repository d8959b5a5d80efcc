"""Answers in any dressing are read as what they say; what says nothing is counted."""

import json
import time

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from meta_opt.metrics.category_answers import (
    CategoryParser,
    edit_distance,
    report_answers,
)
from meta_opt.metrics.classification import class_averages

CATEGORIES = (
    "fruit",
    "dress",
    "dress shoes",
    "men's shoes",
    "Arts, Crafts & Sewing",
    "road sign",
    "café",
    "bird",
    "json",
    "category",
    "T.V.",
    '5" tablet',
)
PARSER = CategoryParser(CATEGORIES)
OBJECT = '{{"category": {json}}}'
DRESSINGS = {
    "strict": OBJECT,
    "spaced": '  {{ "category" :{json} }}\n',
    "upper": '{{"CATEGORY": "{upper}"}}',
    "smart": "{{\u201ccategory\u201d: \u201c{name}\u201d}}",
    "single": "{{'category': '{name}'}}",
    "unquoted": "{{category: {name}}}",
    "unopened": '"category": "{name}"}}',
    "unclosed": '{{"category": {json}',
    "cut off": '{{"category": "{name}',
    "fence": '```json\n{{"category": {json}}}\n```',
    "plain fence": '```\n{{"category": {json}}}\n```',
    "fenced name": "```\n{name}\n```",
    "before": 'Sure! Here it is:\n{{"category": {json}}}',
    "after": '{{"category": {json}}}\nIt shows what I said, since it is round.',
    "other keys": '{{"category": {json}, "confidence": 0.9}}',
    "keys before": '{{"confidence": 0.9, "category": {json}}}',
    "nested": '{{"answer": {{"category": {json}}}}}',
    "object": '{{"category": {{"name": {json}}}}}',
    "list": '[{{"category": [{json}]}}]',
    "escaped": '"{{\\"category\\": \\"{name}\\"}}"',
    "bare": "{name}",
    "full stop": "{name}.",
    "bold": "**{name}**",
    "list item": "- {name}",
    "list after": '{{"category": {json}}}\n- bird (not in the picture)',
    "item of an answer": "Answer:\n- {name}",
    "numbered": "1. {name}",
    "answer": "Answer: {name}",
    "bold answer": "**Answer:** {name}",
    "sentence of an answer": "The correct answer is '{name}'.",
    "quoted": "'{name}'",
    "sentence": "The category is {name}.",
    "reason": "{name} - it is what the picture shows",
    "lines": "{name}\n\nThe picture shows it.",
}


def dressed(name, dressing):
    return DRESSINGS[dressing].format(
        name=name, upper=name.upper().replace('"', '\\"'), json=json.dumps(name)
    )


def own_quotes(name, dressing):
    """Whether the dressing's quote is in the name, which nobody could read."""
    return '"' in name and dressing in ("smart", "unopened", "cut off", "escaped")


@pytest.mark.parametrize("dressing", DRESSINGS)
def test_every_category_in_every_dressing_is_itself(dressing):
    for i, name in enumerate(CATEGORIES):
        if own_quotes(name, dressing):
            continue
        text = dressed(name, dressing)
        found = PARSER(text)
        assert (found.category, found.status) == (i, "exact"), text
        assert found.well_formed == (dressing in ("strict", "spaced")), text


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789äéßñçøяж"
NAMES = st.from_regex(
    rf"[{LETTERS}]([{LETTERS} &/'-]{{0,18}}[{LETTERS}])?", fullmatch=True
)


def fold(name):
    return " ".join(name.split()).casefold()


@settings(max_examples=200, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=6, unique_by=fold), st.data())
def test_any_known_category_is_itself(names, data):
    name = data.draw(st.sampled_from(names))
    dressing = data.draw(st.sampled_from(sorted(DRESSINGS)))
    found = CategoryParser(names)(dressed(name, dressing))
    assert names[found.category] == name and found.status == "exact"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("1. 0", "0"),
        ("1. 1", "1"),
        ("1.", "1"),
        ("1) It is what the picture shows.", "1"),
        ("1. FC Union", "1. FC Union"),
        ("2. 1. FC Union", "1. FC Union"),
        ("Answer: 0", "0"),
        ("The answer", None),
        ("answer", "answer"),
        ("1. 0\n2. 1", None),
    ],
)
def test_list_markers_and_labels_that_are_categories(text, name):
    names = ("0", "1", "1. FC Union", "answer")
    found = CategoryParser(names)(text).category
    assert (None if found < 0 else names[found]) == name


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=200),
        st.lists(
            st.sampled_from(
                [
                    *"{}[]\"'`:=,\\\n .",
                    "category",
                    '"category":',
                    "fruit",
                    "\\u00",
                    "```",
                ]
            ),
            max_size=30,
        ).map("".join),
    )
)
def test_garbage_never_raises(text):
    found = PARSER(text)
    assert -1 <= found.category < len(CATEGORIES)
    assert (found.category < 0) == (found.status in ("unlisted", "unparseable"))


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", "unparseable"),
        ("```json\n```", "unparseable"),
        ("I cannot tell what this is.", "unparseable"),
        ("this is no fruit", "unparseable"),
        ('{"category": ""}', "unparseable"),
        ('{"category": null}', "unlisted"),
        ('{"category": "fruit salad"}', "unlisted"),
        ('{"category": "fruit, red"}', "unlisted"),
        ("{'category': 'men's hats'}", "unlisted"),
        ('{"category": ["fruit", "bird"]}', "unlisted"),
        ('{"category": "fruit", "bird"}', "unlisted"),
        ('{"category": "fruit, bird"}', "unlisted"),
        ('{"category": ["fruit", "banana", "bird"]}', "unlisted"),
        ('{"category": ["fruit", "birds"]}', "unlisted"),
        ('{"category": ["fruits", "bird"]}', "unlisted"),
        ("fruit, bird", "unparseable"),
        ("Fruit; fruit or bird", "unparseable"),
        ("- fruit\n- bird", "unparseable"),
        ("1. fruit\n2. bird\n", "unparseable"),
        ("Answer: fruit or bird", "unparseable"),
        ("Answer: a fruit salad", "unparseable"),
        ('{"subcategory": "fruit"}', "unparseable"),
        ('{"label": "fruit"}', "unparseable"),
    ],
)
def test_what_names_no_category_is_wrong(text, status):
    assert PARSER(text).status == status
    assert PARSER(text).category == -1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"category": "frut"}', "fruit"),
        ('{"category": "raod sign"}', None),  # Two edits of nine letters.
        ('{"category": "road_sign"}', "road sign"),
        ("dresses shoes", "dress shoes"),
        ("byrd", None),  # Four letters: no edit.
        ('{"category": "fruitys"}', None),
    ],
)
def test_the_nearest_category_within_the_bound(text, name):
    found = PARSER(text)
    assert (None if found.category < 0 else CATEGORIES[found.category]) == name
    assert found.status == ("nearest" if name else found.status)


@pytest.mark.parametrize(
    "part",
    ['{"category": ', '{"category": "x', '"', "category:{", "\\", " ", "a", "fruit,"],
)
def test_endless_answers_take_no_time(part):
    many = CategoryParser([*CATEGORIES, *(f"category number {i}" for i in range(500))])
    started = time.process_time()
    PARSER(part * 100_000)
    many(part * 100_000)
    assert time.process_time() - started < 4


def test_a_tie_is_no_category():
    parser = CategoryParser(["plane", "plate"])
    assert parser("plaxe").category == -1  # One edit from both.
    assert parser("planee").category == 0


def test_the_first_value_counts():
    assert PARSER('{"category": "bird"} and not {"category": "fruit"}').category == (
        CATEGORIES.index("bird")
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"sub category": "fruit", "category": "bird"}',
        '{"reason": "its category: fruit", "category": "bird"}',
        'I considered category: fruit but {"category": "bird"}',
        '{"category": "bird", "fruit": false}',
        '{"category": ["bird", "bird"]}',
        "bird, not a fruit",
        'Use {"category": "<name>"}.\nThe category is bird.',
        '{"category": ""}\nThe category is bird',
        '{"category": null} so category: bird',
    ],
)
def test_the_key_of_an_object_counts(text):
    assert CATEGORIES[PARSER(text).category] == "bird"


@settings(max_examples=50, deadline=None)
@given(*[st.text("abc", max_size=6)] * 3)
def test_edit_distance_is_a_metric(a, b, c):
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_errors_of_format_are_apart_from_errors_of_knowledge():
    names = ["fruit", "bird", "road sign"]
    written = [
        '{"category": "fruit"}',  # Right, as asked for.
        "Bird",  # Right.
        "road-sign",  # Right, misspelt.
        '{"category": "bird"}',  # Wrong.
        '{"category": "boat"}',  # No category.
        "no idea",  # Nothing.
    ]
    report = report_answers(written, np.array([0, 1, 2, 0, 0, 0]), names)
    assert report.predictions.tolist() == [0, 1, 2, 1, -1, -1]
    assert report.metrics() == {
        "accuracy": 3 / 6,
        "knowledge_errors": 1 / 6,
        "unlisted": 1 / 6,
        "unparseable": 1 / 6,
        "nearest": 1 / 6,
        "well_formed": 3 / 6,
    }


def test_weighted_averages_count_what_was_not_read():
    labels, predictions = np.array([0, 0, 0, 1, 2]), np.array([0, 0, -1, 0, -1])
    found = class_averages(labels, predictions)
    # Class 0 has precision 2/3 and recall 2/3; the other classes have no hits.
    names = ("accuracy", "weighted_precision", "weighted_recall", "weighted_f1")
    assert {name: found[name] for name in names} == pytest.approx(
        dict.fromkeys(names, 0.4)
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no category"),
        (["a", " "], "category 1, ' ', has no letters"),
        (["Dress  shoes", "dress shoes"], "cannot be told apart"),
    ],
)
def test_lists_that_cannot_be_answered_from(names, message):
    with pytest.raises(ValueError, match=message):
        CategoryParser(names)


def test_labels_must_fit():
    with pytest.raises(ValueError, match="needs one label"):
        report_answers(["a"], np.array([0, 0]), ["a", "b"])
    with pytest.raises(ValueError, match="labels run from 2 to 2"):
        report_answers(["a"], np.array([2]), ["a", "b"])
