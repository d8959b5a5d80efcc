"""Captions against COCO's own tools and against figures by hand.

``tests/golden/captions.json`` holds captions and what pycocoevalcap computes of them;
``pip install pycocoevalcap && PYTHONPATH=. python tests/golden/renew_captions.py``
renews the figures (in an environment of its own, with Java).
"""

import json
import math

import hypothesis.strategies as st
import numpy as np
import paths
import pytest
from hypothesis import given, settings

from meta_opt.metrics.captions import caption_metrics, words
from meta_opt.metrics.cider import cider_d
from meta_opt.metrics.meteor import align, meteor

EXPECTED = json.loads((paths.GOLDEN / "captions.json").read_text())
CANDIDATES = [case["candidate"] for case in EXPECTED["captions"]]
REFERENCES = [case["references"] for case in EXPECTED["captions"]]
EXPECTED = EXPECTED["expected"]

some = settings(max_examples=20, deadline=None)
captions = st.lists(
    st.lists(
        st.sampled_from("add the red fish to a pot".split()), min_size=4, max_size=7
    ).map(" ".join),
    min_size=2,
    max_size=5,
    unique=True,
)


# Against COCO's tools


def test_golden_set():
    assert len(CANDIDATES) >= 20
    assert len({len(several) for several in REFERENCES}) > 2


@pytest.mark.parametrize("name", ["bleu3", "bleu4", "rouge_l", "cider"])
def test_corpus_figures_are_those_of_cocos_tools(name):
    found = caption_metrics(CANDIDATES, REFERENCES)[name]
    assert found == pytest.approx(EXPECTED[name], rel=1e-8)


def test_meteor_is_that_of_the_tools_first_stages():
    found = caption_metrics(CANDIDATES, REFERENCES)["meteor"]
    assert found == pytest.approx(EXPECTED["meteor_exact_stem"], rel=1e-8)
    # What the docstring says: without synonyms and paraphrases it is lower.
    assert found < EXPECTED["meteor"] - 1


def test_words_are_those_of_stanfords_tokenizer():
    assert [" ".join(words(text)) for text in CANDIDATES] == EXPECTED["words"]


def test_cider_of_each_caption():
    ours, theirs = map(words, CANDIDATES), [list(map(words, r)) for r in REFERENCES]
    np.testing.assert_allclose(
        cider_d(list(ours), theirs), EXPECTED["cider_each"], rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize("i", range(len(CANDIDATES)))
def test_rouge_of_each_caption(i):
    found = caption_metrics([CANDIDATES[i]], [REFERENCES[i]])["rouge_l"]
    assert found == pytest.approx(100 * EXPECTED["rouge_l_each"][i], rel=1e-8)


# By hand


def test_bleu_by_hand():
    """Of "a b c d e" under "a b c d f": 4 of 5, 3 of 4, 2 of 3 and 1 of 2 n-grams."""
    metrics = caption_metrics(["k b c d e"], [["k b c d f"]])
    assert metrics["bleu3"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3) ** (1 / 3))
    assert metrics["bleu4"] == pytest.approx(100 * (1 / 5) ** (1 / 4))


def test_bleu_without_a_common_4_gram_is_zero():
    metrics = caption_metrics(["k b c d e"], [["k b c x e"]])
    assert metrics["bleu4"] == 0 < metrics["bleu3"]


def test_brevity_is_by_the_nearest_reference():
    metrics = caption_metrics(["k b c d"], [["k b c d e", "z y x w v u t"]])
    assert metrics["bleu4"] == pytest.approx(100 * math.exp(1 - 5 / 4))
    filled = caption_metrics(
        ["k b c d", "k b c d e"], [["k b c d e", "v"], ["k b c d e"]]
    )
    assert filled["bleu4"] == pytest.approx(100 * math.exp(1 - 10 / 9))


def test_rouge_takes_precision_and_recall_from_different_references():
    # Recall 1 by the first reference, precision 1 by the second: 100 in all.
    metrics = caption_metrics(["red fish"], [["red"]])
    one = caption_metrics(["red fish"], [["red fish swims"]])["rouge_l"]
    both = caption_metrics(["red fish"], [["red", "red fish swims"]])["rouge_l"]
    assert metrics["rouge_l"] == pytest.approx(100 * 2.44 * 0.5 / (1 + 1.44 * 0.5))
    assert one == pytest.approx(100 * 2.44 * (2 / 3) / (2 / 3 + 1.44))
    assert both == pytest.approx(100)


def test_cider_by_hand():
    """Two captions without a common word: each n-gram has the rarity log 2."""
    pot, fish = "fill one pot now".split(), "red fish".split()
    scores = cider_d([pot[:3], fish], [[pot], [["blue", "fish"]]])
    # 3 of 4 words, 2 of 3 pairs and 1 of 2 triples match; it is one word shorter.
    cosines = [3 / math.sqrt(3 * 4), 2 / math.sqrt(2 * 3), 1 / math.sqrt(1 * 2), 0]
    assert scores[0] == pytest.approx(10 * sum(cosines) / 4 * math.exp(-1 / 72))
    assert scores[1] == pytest.approx(10 * 0.5 / 4)


def test_cider_clips_repeated_words_and_penalises_length():
    reference, other = [["red", "fish"]], [["blue", "bird"]]
    said = [["red", "fish"], ["red"] * 2, ["red"] * 30]
    once, twice, often = (cider_d([c, ["bird"]], [reference, other])[0] for c in said)
    # ("red", "red") and ("red", "fish"): the bigrams share nothing; of the words, the
    # clipped product is 1 over the norms 2 and the square root of 2.
    assert once == pytest.approx(10 * 2 / 4)
    assert twice == pytest.approx(10 / 4 / (2 * math.sqrt(2)))
    assert often < 1e-4


def test_words_that_every_caption_has_count_nothing():
    assert cider_d([["a"], ["a"]], [[["a"]], [["a"]]]).tolist() == [0, 0]


def test_meteor_by_hand():
    # "the" and "on" are function words: 0.25; the others content words: 0.75.
    reference = "the cat sat on the mat".split()
    # Two chunks of two and one words: the cat | mat.
    found = meteor(["the cat mat".split()], [[reference]])
    precision, recall = 1.0, 1.75 / 3.0
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert found == pytest.approx((1 - 0.6 * (2 / 3) ** 0.2) * mean)
    assert meteor([["cats"]], [[["cat"]]]) == pytest.approx(0.6)
    # A function word whose synonym is a content word: 0.8 of 0.25 and of 0.75 + 0.75.
    found = meteor([["on"]], [[["atop", "red"]]], lambda _: ["on"])
    precision, recall = 0.8, 0.8 * 0.75 / 1.5
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert found == pytest.approx((1 - 0.6) * mean)
    assert meteor([["dog"]], [[["cat"]]]) == meteor([[]], [[["cat"]]]) == 0


def test_meteor_takes_the_best_reference_and_adds_up_sentences():
    fish, bird = "a red fish".split(), "the blue bird flies".split()
    assert meteor([fish], [[bird, fish]]) == 1
    # Matches 3 of 3 words and none of 4: weights 1.75 of 1.75 and 0 of 2.5.
    found = meteor([fish, fish], [[fish], [bird]])
    precision, recall = 1.75 / 3.5, 1.75 / 4.25
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert found == pytest.approx(mean)  # No chunks: no penalty.


def test_synonyms_match_in_either_direction():
    table = {"cook": ["prepare"]}

    def synonyms(word):
        return table.get(word, ())

    for a, b in (("cook", "prepare"), ("prepare", "cook")):
        assert meteor([[a]], [[[b]]]) == 0
        assert meteor([[a]], [[[b]]], synonyms) == pytest.approx(0.8)
    metrics = caption_metrics(["prepare rice"], [["cook rice"]], synonyms)
    assert (
        metrics["meteor"] > caption_metrics(["prepare rice"], [["cook rice"]])["meteor"]
    )


@pytest.mark.parametrize(
    ("candidate", "reference", "pairs"),
    [
        # One chunk rather than the nearest "the".
        ("the cat", "the dog the cat", [(0, 2), (1, 3)]),
        # Both are matched, though the second would like the first's.
        ("fish swim fish", "fish fish", [(0, 0), (2, 1)]),
        # Equal otherwise: the nearest.
        ("a fish", "b c fish d fish", [(1, 2)]),
        ("a b c fish", "fish d fish", [(3, 2)]),
        ("", "fish", []),
    ],
)
def test_alignment(candidate, reference, pairs):
    weights = [[float(a == b) for b in reference.split()] for a in candidate.split()]
    assert align(weights) == pairs


def test_alignment_prefers_exact_words_to_stems():
    assert align([[0.6, 1.0]]) == [(0, 1)]


# Properties


@some
@given(captions)
def test_a_caption_that_is_its_reference_has_the_highest_score(texts):
    metrics = caption_metrics(texts, [[text] for text in texts])
    for name in ("bleu3", "bleu4", "meteor", "rouge_l"):
        assert metrics[name] == pytest.approx(100)
    right = [text.split() for text in texts]
    shifted = cider_d(right[1:] + right[:1], [[r] for r in right])
    assert (cider_d(right, [[r] for r in right]) >= shifted - 1e-9).all()


@some
@given(captions, st.randoms(use_true_random=False))
def test_the_order_of_captions_and_of_references_changes_nothing(texts, random):
    candidates = [*texts[1:], texts[0]]
    references = [[text, *texts[:2]] for text in texts]
    order = random.sample(range(len(texts)), len(texts))
    assert caption_metrics(
        [candidates[i] for i in order], [references[i][::-1] for i in order]
    ) == pytest.approx(caption_metrics(candidates, references))


@some
@given(captions)
def test_figures_are_in_their_range(texts):
    metrics = caption_metrics(texts, [[texts[0]]] * len(texts))
    assert all(0 <= metrics[n] <= 100 + 1e-9 for n in metrics if n != "cider")
    assert 0 <= metrics["cider"] <= 1000


def test_case_and_punctuation_change_nothing():
    loud = [text.upper() + "!" for text in CANDIDATES]
    assert caption_metrics(loud, REFERENCES) == caption_metrics(CANDIDATES, REFERENCES)


# Empty captions and errors


@pytest.mark.parametrize("empty", ["", " ", "...", "?!"])
def test_a_caption_without_words_scores_zero(empty):
    assert set(caption_metrics([empty], [["a red fish"]]).values()) == {0.0}
    both = caption_metrics([empty, "a red fish"], [["a bird"], ["a red fish"]])
    assert both["rouge_l"] == pytest.approx(50)
    assert cider_d([words(empty), ["fish"]], [[["bird"]], [["fish"]]])[0] == 0


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([], [], "no captions to score; give at least one"),
        (["a", "b"], [["a"]], "2 candidates and 1 lists .* index 1"),
        (["a"], [["a"], ["b"]], "1 candidates and 2 lists .* index 1"),
        (["a", "b"], [["a"], []], r"references\[1\] is \[\]; give at least one"),
        (["a"], [["a", "..."]], r"references\[0\] is .*at least one word"),
        (["a"], ["a"], r"references\[0\] is the string 'a'; give a list"),
    ],
)
def test_errors(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        caption_metrics(candidates, references)
