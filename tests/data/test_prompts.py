"""Changes of a prompt's categories keep what each stands for; noise and shots nest."""

import json
import re

import numpy as np
import pytest

from meta_opt.data.preprocessing.label_noise import noisy_labels
from meta_opt.data.preprocessing.prompts import TEMPLATES, CategoryList
from meta_opt.data.preprocessing.shots import few_shots

NAMES = ("bird", "ship", "road sign", "fruit", "hammer")
PLAIN = CategoryList.of(NAMES)
LABELS = np.repeat(np.arange(30), 7)
KEYS = [f"picture {i}" for i in range(len(LABELS))]


def test_shuffled_lists_have_the_same_classes():
    shuffled = PLAIN.shuffled(1)
    assert sorted(shuffled.names) == sorted(NAMES) and shuffled.names != NAMES
    assert all(shuffled.name_of(k) == name for k, name in enumerate(NAMES))
    assert PLAIN.shuffled(1) == shuffled
    assert len({PLAIN.shuffled(seed) for seed in range(20)}) > 10


def test_synonyms_change_names_only():
    renamed = PLAIN.renamed({"ship": "boat", "hammer": "mallet"}).shuffled(0)
    assert renamed.name_of(1) == "boat" and renamed.name_of(4) == "mallet"
    assert renamed.name_of(0) == "bird"


def test_distractors_belong_to_no_class_and_nest():
    pool = ["cloud", "cup", "tree", "door"]
    few, more = (PLAIN.with_distractors(pool, n, seed=3) for n in (2, 4))
    for shown, count in ((few, 2), (more, 4)):
        real = [n for n, k in zip(shown.names, shown.classes, strict=True) if k >= 0]
        assert tuple(real) == NAMES and shown.classes.count(-1) == count
    assert set(few.names) < set(more.names)
    assert PLAIN.with_distractors(pool, 0, seed=3) == PLAIN


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_has_all_categories_and_the_form_of_the_answer(template):
    text = PLAIN.prompt(template)
    positions = [text.index(name) for name in NAMES]
    assert positions == sorted(positions)
    (answer,) = re.findall(r"\{.*?\}", text)
    assert json.loads(answer) == {"category": "NAME"}


def test_templates_differ():
    assert len({PLAIN.prompt(template) for template in TEMPLATES}) == len(TEMPLATES)


def test_braces_in_a_name_stay():
    assert "{x}, b" in CategoryList.of(["{x}", "b"]).prompt()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CategoryList.of([]), "there must be one"),
        (lambda: CategoryList.of(["a", " "]), "is not a name"),
        (lambda: CategoryList.of(["a", "A "]), "'a' and 'A ' cannot be told apart"),
        (lambda: PLAIN.renamed({"brid": "x"}), "did you mean 'bird'"),
        (lambda: PLAIN.renamed({"bird": "Ship"}), "'Ship' and 'ship'"),
        (lambda: PLAIN.with_distractors(["x"], 2, 0), "count=2 of 1"),
        (lambda: PLAIN.with_distractors(["HAMMER"], 1, 0), "cannot be told apart"),
        (lambda: PLAIN.prompt("polit"), "did you mean 'polite'"),
        (lambda: PLAIN.name_of(9), "class 9 is not among"),
        (lambda: PLAIN.name_of(-1), "class -1 is not among"),
        (lambda: noisy_labels([0], ["a"], 1.1, 2), "rate=1.1"),
        (lambda: noisy_labels([0], ["a"], 0.1, 1), "no wrong label"),
        (lambda: noisy_labels([2], ["a"], 0.1, 2), "from 2 to 2"),
        (lambda: noisy_labels([0, 1], ["a", "a"], 0.1, 2), "1 different keys"),
        (lambda: few_shots([0, 0, 1], ["a", "b", "c"], 2), r"\{1: 1\}"),
        (lambda: few_shots([0], ["a"], 0), "shots=0"),
        (lambda: few_shots([0], ["a", "b"], 1), "1 examples have 2"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_noise_is_exact_and_stratified(rate, seed):
    noisy = noisy_labels(LABELS, KEYS, rate, 30, seed)
    wrong = noisy != LABELS
    assert wrong.sum() == round(rate * len(LABELS))
    of_class = np.bincount(LABELS, weights=wrong, minlength=30)
    assert set(of_class) <= {np.floor(7 * rate), np.ceil(7 * rate)}
    assert noisy.min() >= 0 and noisy.max() < 30


def test_noise_of_a_higher_rate_holds_that_of_a_lower():
    ten, twenty = (noisy_labels(LABELS, KEYS, rate, 30) for rate in (0.1, 0.2))
    changed = ten != LABELS
    np.testing.assert_array_equal(ten[changed], twenty[changed])


def test_wrong_labels_are_all_as_likely():
    labels = np.zeros(3000, int)
    noisy = noisy_labels(labels, [str(i) for i in range(3000)], 1.0, 4)
    assert np.bincount(noisy)[0] == 0
    # Three standard deviations of a binomial count.
    assert np.abs(np.bincount(noisy)[1:] - 1000).max() < 3 * np.sqrt(3000 * 2 / 9)


@pytest.mark.parametrize("shots", [1, 2, 4, 7])
def test_shots_are_of_every_class_and_nest(shots):
    chosen = few_shots(LABELS, KEYS, shots)
    assert np.bincount(LABELS[chosen]).tolist() == [shots] * 30
    assert np.all(np.diff(chosen) > 0)
    assert set(chosen) <= set(few_shots(LABELS, KEYS, min(7, 2 * shots)))


def test_neither_depends_on_the_order_of_examples():
    order = np.random.default_rng(0).permutation(len(LABELS))
    keys = [KEYS[i] for i in order]
    noisy = noisy_labels(LABELS, KEYS, 0.2, 30)
    np.testing.assert_array_equal(
        noisy_labels(LABELS[order], keys, 0.2, 30), noisy[order]
    )
    chosen = {KEYS[i] for i in few_shots(LABELS, KEYS, 3)}
    assert {keys[i] for i in few_shots(LABELS[order], keys, 3)} == chosen
    other = {KEYS[i] for i in few_shots(LABELS, KEYS, 3, seed=1)}
    assert other != chosen
