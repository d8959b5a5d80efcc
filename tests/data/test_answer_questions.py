"""Questions about named images: what is asked, the files, and bad input."""

import collections
import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

from meta_opt.data.preprocessing.pictures import UnreadableFilesError
from meta_opt.data.preprocessing.prompts import TEMPLATES
from meta_opt.data.sources.answers.files import AnswersDataConfig, write_dataset
from meta_opt.data.sources.answers.pictures import NamedPicture
from meta_opt.data.sources.answers.questions import (
    KEYWORDS,
    NAMING,
    QuestionsConfig,
    ask,
)
from meta_opt.data.sources.image_text_rows import ImageTextRows
from meta_opt.metrics.category_answers import CategoryParser

GROUPS = {"food": 12, "animals": 4, "tools": 2}
SPLITS = ("train", "train", "validation", "test")


def picture(group, i, read=None):
    letter = "abcdefghijkl"[i]
    pixels = np.full((40, 20, 3), 10 * i, np.uint8)
    return NamedPicture(
        key=f"{group}/{i}",
        split=SPLITS[i % 4],
        name=f"{group} {letter}{letter}",
        keywords=("first", "second") if i % 2 else (),
        categories={"group": group, "letter": f"letter {letter}"},
        read=read or (lambda width: Image.fromarray(pixels).resize((width, width))),
    )


PICTURES = [picture(group, i) for group, n in GROUPS.items() for i in range(n)]
CONFIG = QuestionsConfig(per_picture=10, held_out=3, categories=(2, 5))


def choices(prompt):
    """The categories of a prompt of one of the templates."""
    for template in TEMPLATES.values():
        pattern = re.escape(template.replace("{{", "{").replace("}}", "}"))
        pattern = re.sub(r"\\\{(categories|lines)\\\}", "(.*)", pattern)
        if found := re.fullmatch(pattern, prompt, re.DOTALL):
            return re.split(r", |\n", found[1].replace("- ", ""))
    return None


def test_a_list_has_the_answer_and_others_of_its_kind():
    asked = [q for rows in ask(PICTURES, CONFIG).values() for q in rows]
    kinds = collections.Counter()
    for question in asked:
        names = choices(question.prompt)
        if names is None:
            wanted = question.prompt in NAMING, question.prompt == KEYWORDS
            assert wanted in ((True, False), (False, True))
            kinds["words"] += 1
            continue
        assert 2 <= len(names) <= 5 and len(set(names)) == len(names)
        answer = CategoryParser(names)(question.target)
        assert answer.status == "exact" and answer.well_formed
        right = names[answer.category]
        known = (question.picture.name, *question.picture.categories.values())
        assert right in known
        others = set(names) - {right}
        if right == question.picture.name:
            kinds["names"] += 1
            assert not set(right.split()) & {w for n in others for w in n.split()}
        elif right in GROUPS:
            assert others <= set(GROUPS)
        else:
            assert all(name.startswith("letter") for name in others)
    assert kinds["words"] and kinds["names"]


def test_no_place_of_a_list_is_the_right_one_more_often():
    many = dataclasses.replace(CONFIG, per_picture=200, categories=(3, 3))
    places = collections.Counter()
    for question in ask(PICTURES, many)["train"]:
        names = choices(question.prompt)
        if names is not None and len(names) == 3:
            places[names.index(json.loads(question.target)["category"])] += 1
    expected = sum(places.values()) / 3
    assert expected > 100
    # Four standard deviations of a fair draw.
    assert all(abs(places[i] - expected) < 4 * expected**0.5 for i in range(3))


def test_large_groups_do_not_outweigh_others():
    asked = collections.Counter(q.picture.key for q in ask(PICTURES, CONFIG)["train"])
    assert asked["tools/0"] == asked["animals/0"] == 10
    assert asked["food/0"] == round(10 * 6 / 12)
    held_out = ask(PICTURES, CONFIG)["validation"]
    assert set(collections.Counter(q.picture.key for q in held_out).values()) == {3}


def test_the_seed_decides():
    assert ask(PICTURES, CONFIG) == ask(PICTURES, CONFIG)
    other = dataclasses.replace(CONFIG, seed=1)
    assert ask(PICTURES, other) != ask(PICTURES, CONFIG)


def test_a_long_list_is_cut():
    config = dataclasses.replace(CONFIG, categories=(100, 100), prompt_characters=300)
    many = [
        dataclasses.replace(p, categories={"long": f"category number {p.key}" * 2})
        for p in PICTURES
    ]
    prompts = [q.prompt for q in ask(many, config)["train"]]
    assert 200 < max(map(len, prompts)) <= 300


def test_files(tmp_path):
    out = tmp_path / "answers"
    about = write_dataset(out, PICTURES, CONFIG, width=16)
    assert about["pictures"] == len(PICTURES)
    for split, count in about["questions"].items():
        rows = ImageTextRows(out / f"{split}.jsonl")
        assert len(rows) == count > 0
        assert {rows.split(i) for i in range(count)} == {split}
        assert all(rows[i].prompt and rows[i].captions[0] for i in range(count))
    with Image.open(out / "images/food/3.png") as image:
        assert image.size == (16, 16)
        assert image.getpixel((8, 8)) == (30, 30, 30)
    with pytest.raises(ValueError, match="already exists"):
        write_dataset(out, PICTURES, CONFIG)


def test_unreadable_pictures_are_counted_or_nothing_is_written(tmp_path):
    def broken(width):
        raise OSError("no picture")

    pictures = [*PICTURES, picture("tools", 4, broken), picture("tools", 5, broken)]
    with pytest.raises(UnreadableFilesError, match="tools/5: OSError"):
        write_dataset(tmp_path / "few", pictures, CONFIG, 8, max_unreadable=1)
    assert list(tmp_path.iterdir()) == []
    about = write_dataset(tmp_path / "all", pictures, CONFIG, 8, max_unreadable=2)
    assert set(about["unreadable"]) == {"tools/4", "tools/5"}
    assert about["pictures"] == len(PICTURES)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: QuestionsConfig(per_picture=0), "per_picture=0"),
        (lambda: QuestionsConfig(categories=(1, 3)), r"categories=\(1, 3\)"),
        (lambda: QuestionsConfig(prompt_characters=10), "prompt_characters=10"),
        (lambda: AnswersDataConfig(names=("emojis",)), "did you mean 'emoji'"),
        (lambda: AnswersDataConfig(names=()), "data.names is empty"),
        (lambda: AnswersDataConfig(every=0), "data.every=0"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
