"""A model's answers about all images of a split, and their metrics."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meta_opt.data.pipeline import as_arrays
from meta_opt.data.preprocessing.answers import AnswerTokenizer
from meta_opt.data.preprocessing.pictures import Pictures, Unreadable
from meta_opt.data.sources.few_shot.files import answer_of
from meta_opt.data.sources.image_text_rows import ImageTextRows
from meta_opt.data.token_counts import TokenCounter
from meta_opt.evaluators.answers import write_answers
from meta_opt.evaluators.category_likelihood import answer_scores
from meta_opt.metrics.category_answers import CategoryParser, report_answers
from meta_opt.metrics.classification import class_averages
from meta_opt.models.decoding import DecodingConfig
from meta_opt.models.generative import Generative
from meta_opt.text_files import write_jsonl
from meta_opt.types import Batch
from meta_opt.workloads.image_text_preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Examples:
    """All examples of a split, in memory.

    Attributes:
        keys: paths of the N images, relative to the data.
        data: ``image`` [N, h, w, 3] and ``prompt`` int [N, P].
        labels: class indices, int [N].
        classes: names of the K classes.
    """

    keys: tuple[str, ...]
    data: Batch
    labels: np.ndarray
    classes: tuple[str, ...]


def read_examples(
    path: str | os.PathLike, classes: Sequence[str], preprocessing: Preprocessing
) -> Examples:
    """Reads a split of few-shot data.

    Args:
        path: JSONL file of the split.
        classes: names of the K classes, in the order of the label indices.
        preprocessing: preprocessing of the model.

    Raises:
        ValueError: a label is not among the classes.
        UnreadableFilesError: an image cannot be read. Skipping it would make metrics of
            different runs incomparable.
    """
    rows = ImageTextRows(path)
    if unknown := sorted(set(rows.class_names) - set(classes)):
        raise ValueError(f"{path} has labels of unknown classes: {', '.join(unknown)}")
    source = Pictures(rows, preprocessing.fit, Unreadable(0)).in_memory()
    arrays = as_arrays(
        source,
        preprocessing.tokenizer,
        preprocessing.text_length,
        preprocessing.prompts,
    )
    places = np.asarray([list(classes).index(name) for name in rows.class_names])
    return Examples(
        tuple(map(rows.key, range(len(rows)))),
        {k: arrays[k] for k in ("image", "prompt")},
        places[arrays["label"]],
        tuple(classes),
    )


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A model's predictions for N examples, by generation and by likelihood.

    Attributes:
        examples: the examples.
        written: N generated answers.
        scores: log-likelihood of each class's correct answer in nats, float [N, K].
            Where one is NaN, as of a model whose training diverged, no class is the
            likeliest, which counts as wrong.
    """

    examples: Examples
    written: tuple[str, ...]
    scores: np.ndarray

    def metrics(self) -> dict[str, dict[str, float]]:
        """Returns metrics of leniently parsed ``answers`` and of ``likelihood``.

        Each has ``accuracy``, and weighted and macro averages of precision, recall and
        F1, prefixed by ``weighted_`` and ``macro_``; ``answers`` also has the fractions
        of `meta_opt.metrics.category_answers.AnswerReport`.
        """
        labels, classes = self.examples.labels, self.examples.classes
        report = report_answers(self.written, labels, classes)
        return {
            "answers": {
                **report.metrics(),
                **_averages(labels, report.predictions),
            },
            "likelihood": _averages(labels, self._likeliest()),
        }

    def _likeliest(self) -> np.ndarray:
        """Returns the index of the class of the likeliest answer; -1 for none."""
        undefined = np.isnan(self.scores).any(axis=1)
        return np.where(undefined, -1, np.argmax(self.scores, axis=1))

    def write(self, path: str | os.PathLike) -> None:
        """Writes a JSON line for each example, atomically."""
        classes = self.examples.classes
        parser = CategoryParser(classes)
        likeliest = self._likeliest()

        def row(i: int) -> dict[str, Any]:
            text = self.written[i]
            read = parser(text)
            return {
                "image": self.examples.keys[i],
                "label": classes[self.examples.labels[i]],
                "answer": text,
                "category": classes[read.category] if read.category >= 0 else None,
                "status": read.status,
                "likeliest": classes[likeliest[i]] if likeliest[i] >= 0 else None,
                "log_likelihoods": [
                    round(float(x), 4) if np.isfinite(x) else None
                    for x in self.scores[i]
                ],
            }

        write_jsonl(path, map(row, range(len(self.written))))


def _averages(labels: np.ndarray, found: np.ndarray) -> dict[str, float]:
    averages = class_averages(labels, found)
    return {name: float(value) for name, value in averages.items()}


def answers_to(
    model: Generative,
    examples: Examples,
    preprocessing: Preprocessing,
    batch_size: int,
    tokens: TokenCounter | None = None,
) -> tuple[str, ...]:
    """Generates answers of at most ``preprocessing.text_length`` tokens.

    Args:
        model: the model.
        examples: N examples.
        preprocessing: preprocessing of the model.
        batch_size: number of examples per batch.
        tokens: counter of the tokens of prompts and answers.
    """
    tokenizer = _answer_tokenizer(preprocessing)
    config = DecodingConfig(max_tokens=preprocessing.text_length)
    return tuple(
        write_answers(model, examples.data, tokenizer, config, batch_size, tokens)
    )


def scores_of(
    model: Generative,
    examples: Examples,
    preprocessing: Preprocessing,
    batch_size: int,
) -> np.ndarray:
    """Computes log-likelihoods of the classes' answers in nats, float32 [N, K]."""
    answers = [answer_of(name) for name in examples.classes]
    tokenizer = _answer_tokenizer(preprocessing)
    return answer_scores(model, examples.data, answers, tokenizer, batch_size)


def _answer_tokenizer(preprocessing: Preprocessing) -> AnswerTokenizer:
    assert isinstance(preprocessing.tokenizer, AnswerTokenizer)
    return preprocessing.tokenizer


def needed_lengths(
    paths: Sequence[Path], classes: Sequence[str], preprocessing: Preprocessing
) -> tuple[int, int]:
    """Returns the number of tokens of the longest prompt and longest correct answer.

    Args:
        paths: JSONL files of the data.
        classes: names of the K classes.
        preprocessing: preprocessing whose tokenizer is used; its lengths are ignored.
    """
    asked: set[str] = set()
    for path in paths:
        rows = ImageTextRows(path)
        asked |= {rows[i].prompt for i in range(len(rows))}
    return lengths_of(sorted(asked), classes, preprocessing)


def lengths_of(
    prompts: Sequence[str], classes: Sequence[str], preprocessing: Preprocessing
) -> tuple[int, int]:
    """Returns the number of tokens of the longest prompt and longest correct answer.

    Args:
        prompts: all prompts.
        classes: names of the classes, the possible answers.
        preprocessing: preprocessing whose tokenizer is used; its lengths are ignored.
    """
    tokenizer = _answer_tokenizer(preprocessing)
    # Besides the text, a prompt has a start token and a separator, which may be several
    # tokens, and an answer has an end token.
    (separator,) = tokenizer.pieces(["\n"])
    prompt = max(map(len, tokenizer.pieces(list(prompts))))
    answer = max(map(len, tokenizer.pieces([answer_of(name) for name in classes])))
    return prompt + len(separator) + 1, answer + 1
