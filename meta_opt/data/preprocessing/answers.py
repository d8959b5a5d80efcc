"""Tokenisation of prompts and answers for generative models."""

from collections.abc import Sequence

import numpy as np

from meta_opt.data.preprocessing.tokenizer import TextTokenizer, check_texts


class AnswerTokenizer:
    """Encodes prompts and answers as rows of token ids with a model's tokenizer.

    A prompt consists of the tokenizer's prefix (such as a beginning-of-sequence token),
    the text and a separator; an answer consists of its text and the end token. This is
    the format PaliGemma was trained on (Beyer et al. 2024), with a line break as
    separator.

    Args:
        tokenizer: tokenizer of the texts.
        end_id: id of the token that ends an answer.
        pad_id: id of the padding token, which must differ from the end token.
        prompt_length: P, number of tokens of a prompt.
        prompt: default prompt for records without one.
        separator: text after a prompt.

    Example:
        >>> from meta_opt.data.preprocessing.tokenizer import load_tokenizer
        >>> tokenizer = AnswerTokenizer(load_tokenizer(), 3, 0, prompt_length=8)
        >>> rows = tokenizer.encode(["a cat"], 6)
        >>> tokenizer.decode(rows), int(rows[0, -1]), tokenizer.encode_prompts([""])[0]
        (['a cat'], 0, array([2, 0, 0, 0, 0, 0, 0, 0], dtype=int32))
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        end_id: int,
        pad_id: int,
        prompt_length: int,
        prompt: str = "",
        separator: str = "\n",
    ) -> None:
        self._tokenizer = tokenizer
        self._begin = [i for i in tokenizer.special_ids if i != end_id]
        self._prompt, self._separator = prompt, separator
        self._prompt_length = prompt_length
        self.end_id, self.pad_id = end_id, pad_id
        self.vocab_size = tokenizer.vocab_size
        self.special_ids: tuple[int, ...] = (end_id,)
        check_texts([], prompt_length, len(self._begin) + 1)

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Encodes answers; truncated answers keep their end token.

        Args:
            texts: B answers.
            length: S, at least 2.

        Returns:
            int32 [B, S], padded.

        Raises:
            ValueError: if ``length`` is below 2.
            TypeError: if ``texts`` is one string.
        """
        check_texts(texts, length, least=2)
        return self._rows(texts, length, [], [self.end_id])

    def encode_prompts(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes prompts, int32 [B, P]; truncation keeps prefix and separator."""
        asked = [text or self._prompt for text in texts]
        check_texts(texts, self._prompt_length, least=1)
        (separator,) = self.pieces([self._separator])
        return self._rows(asked, self._prompt_length, self._begin, separator)

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without special tokens."""
        return self._tokenizer.pieces(texts)

    def decode(self, ids: np.ndarray | Sequence[Sequence[int]]) -> list[str]:
        """Decodes answers [B, S], each up to its end token."""
        answers = []
        for row in np.atleast_2d(np.asarray(ids)).tolist():
            end = row.index(self.end_id) if self.end_id in row else len(row)
            answers.append([i for i in row[:end] if i != self.pad_id])
        return self._tokenizer.decode(answers)

    def _rows(
        self, texts: Sequence[str], length: int, before: list[int], after: list[int]
    ) -> np.ndarray:
        rows = np.full((len(texts), length), self.pad_id, np.int32)
        room = length - len(before) - len(after)
        for row, ids in zip(rows, self.pieces(texts), strict=True):
            ids = [*before, *ids[: max(room, 0)], *after][:length]
            row[: len(ids)] = ids
        return rows
