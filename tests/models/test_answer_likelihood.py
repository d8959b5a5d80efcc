"""Likelihoods of a list of answers equal those of each one, teacher-forced."""

import jax
import numpy as np
import pytest
from generative_small import SMALL, logits, small_batch, small_model

from meta_opt.data.preprocessing.answers import AnswerTokenizer
from meta_opt.evaluators.category_likelihood import answer_scores
from meta_opt.models.answer_likelihood import answer_log_likelihoods

END, PAD = SMALL.end_id, SMALL.pad_id
# The first answer is a prefix of the second; only the end token distinguishes them.
ANSWERS = np.array(
    [
        [5, 6, END, PAD, PAD],
        [5, 6, 7, END, PAD],
        [9, END, PAD, PAD, PAD],
        [11, 12, 13, 14, END],
    ],
    np.int32,
)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def batch():
    return {k: v for k, v in small_batch().items() if k != "text"}


@pytest.fixture(scope="module")
def teacher_forced(model, batch):
    """Sums of the log-probabilities of an answer's tokens, an answer at a time."""
    columns = []
    for answer in ANSWERS:
        text = np.tile(answer, (4, 1))
        log_p = np.asarray(jax.nn.log_softmax(logits(model, {**batch, "text": text})))
        each = np.take_along_axis(log_p, text[..., None], axis=-1)[..., 0]
        columns.append((each * (text != PAD)).sum(axis=1))
    return np.stack(columns, axis=1)


@pytest.fixture(scope="module")
def scores(model, batch):
    return np.asarray(
        answer_log_likelihoods(model, batch["image"], batch["prompt"], ANSWERS)
    )


def test_equal_to_teacher_forcing(scores, teacher_forced):
    np.testing.assert_allclose(scores, teacher_forced, atol=2e-5)
    # Prompts are of 5, 3, 1 and 0 tokens: the rows differ.
    assert np.ptp(scores, axis=0).min() > 1e-3


def test_the_choice_is_that_of_brute_force(scores, teacher_forced):
    best = [max(range(4), key=lambda k: row[k]) for row in teacher_forced]
    assert scores.argmax(axis=1).tolist() == best


def test_likelihoods_of_all_first_tokens_sum_to_one(model, batch):
    every = np.arange(1, 32, dtype=np.int32)[:, None]
    found = answer_log_likelihoods(model, batch["image"], batch["prompt"], every)
    text = np.zeros((4, 1), np.int32)
    of_padding = jax.nn.softmax(logits(model, {**batch, "text": text}))[:, 0, PAD]
    np.testing.assert_allclose(np.exp(found).sum(axis=1) + of_padding, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (np.zeros(3, np.int32), r"must be \[K, S\]"),
        (np.zeros((0, 2), np.int32), r"must be \[K, S\]"),
        (np.array([[5, END], [PAD, PAD]]), "no tokens but padding"),
    ],
)
def test_answers_that_cannot_be_scored(model, batch, answers, message):
    with pytest.raises(ValueError, match=message):
        answer_log_likelihoods(model, batch["image"], batch["prompt"], answers)


class Letters:
    """A token for a letter, a from 4 on."""

    special_ids = (END,)
    vocab_size = 32

    def pieces(self, texts):
        return [[ord(letter) - ord("a") + 4 for letter in text] for text in texts]


def test_answers_in_words(model, batch):
    tokenizer = AnswerTokenizer(Letters(), END, PAD, prompt_length=5, separator="")
    # The third fills no batch: three rows at a time.
    found = answer_scores(model, batch, ["bc", "bcd", "f"], tokenizer, batch_size=3)
    expected = answer_log_likelihoods(
        model,
        batch["image"],
        batch["prompt"],
        np.array([[5, 6, END, PAD], [5, 6, 7, END], [9, END, PAD, PAD]]),
    )
    assert found.shape == (4, 3)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    with pytest.raises(ValueError, match="'bc' and 'bc' are the same tokens"):
        answer_scores(model, batch, ["bc", "f", "bc"], tokenizer)
    with pytest.raises(ValueError, match="no answers"):
        answer_scores(model, batch, [], tokenizer)
