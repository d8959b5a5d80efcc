"""Caption tokenizer: lower-case byte-pair encoding with the bundled vocabulary."""

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from meta_opt.data.bundled import BUNDLED
from meta_opt.data.preprocessing.panics import panics_as_errors
from meta_opt.text_files import read_text

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
"""The special tokens, whose ids are 0, 1, 2 and 3."""


class TextTokenizer(Protocol):
    """The interface of tokenizers for batches and evaluations."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def pad_id(self) -> int:
        """The id of the padding token."""

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of the special tokens around a text, in their order."""

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Turns B texts into int32 [B, length]."""

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without special tokens."""

    def decode(self, ids: np.ndarray | Sequence[Sequence[int]]) -> list[str]:
        """Decodes rows of ids into texts, without special tokens."""


def check_texts(texts: Sequence[str], length: int, least: int) -> None:
    """Checks the arguments of ``encode``.

    Raises:
        ValueError: if ``length`` is below ``least``.
        TypeError: if ``texts`` is one string.
    """
    if isinstance(texts, str):
        raise TypeError(f"encode takes a list of texts, not the string {texts!r}")
    if length < least:
        raise ValueError(f"a row needs at least {least} tokens, not {length}")


_MAX_ID = 2**31 - 1
"""Largest token id, that of int32."""
_UNKNOWN = "\ue000"
"""A private-use character that is in no vocabulary."""


class CaptionTokenizer:
    """Encodes texts as rows of token ids: begin, the text's tokens, end, padding.

    Attributes:
        vocab_size: number of tokens, including special tokens.
        pad_id: 0.
        bos_id: id of the token that begins each row.
        eos_id: id of the token that ends each text.
        special_ids: ``bos_id`` and ``eos_id``.
    """

    pad_id, unk_id, bos_id, eos_id = range(4)
    special_ids: tuple[int, ...] = (bos_id, eos_id)

    def __init__(self, tokenizer: Tokenizer):
        """Wraps a tokenizer whose first ids are :data:`SPECIAL_TOKENS`.

        Raises:
            ValueError: if the first ids are other tokens.
        """
        found = tuple(tokenizer.id_to_token(i) for i in range(len(SPECIAL_TOKENS)))
        if found != SPECIAL_TOKENS:
            raise ValueError(
                f"the vocabulary must begin with {SPECIAL_TOKENS}, not {found}"
            )
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Encodes texts; truncated texts keep the end token.

        Args:
            texts: B texts.
            length: S, number of tokens of a row, at least 2.

        Returns:
            int32 [B, S], padded with 0.

        Raises:
            ValueError: if ``length`` is below 2.
            TypeError: if ``texts`` is one string.

        >>> load_tokenizer().encode(["a cat"], 6).shape
        (1, 6)
        """
        check_texts(texts, length, least=2)
        rows = np.full((len(texts), length), self.pad_id, np.int32)
        rows[:, 0] = self.bos_id
        for row, ids in zip(rows, self.pieces(texts), strict=True):
            ids = ids[: length - 2]
            row[1 : len(ids) + 1] = ids
            row[len(ids) + 1] = self.eos_id
        return rows

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without begin and end tokens."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: np.ndarray | Sequence[Sequence[int]]) -> list[str]:
        """Decodes rows of ids into texts, without special tokens.

        Args:
            ids: integers [B, S].

        Returns:
            B texts in lower case, possibly truncated.
        """
        rows = ids if isinstance(ids, list) else np.atleast_2d(ids).tolist()
        return [text.strip() for text in self._tokenizer.decode_batch(rows)]


@functools.cache
def load_tokenizer(path: str | os.PathLike | None = None) -> CaptionTokenizer:
    """Returns the bundled tokenizer, or the one at ``path``.

    Raises:
        FileNotFoundError: if there is no file at ``path``.
        ValueError: a damaged file, or one with other special tokens; the message names
            it.
    """
    path = Path(path) if path is not None else BUNDLED / "tokenizer.json"
    found = read_tokenizer(path)
    try:
        return CaptionTokenizer(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Reads a ``tokenizer.json``.

    Raises:
        FileNotFoundError: if there is no file at ``path``.
        ValueError: a damaged file; the message names it.
    """
    text = read_text(path)
    try:
        with panics_as_errors("the reader"):
            tokenizer = Tokenizer.from_str(text)
            # Bypasses the normalizer, which may drop the character. Without this check,
            # the first text with an unknown character would fail if the unknown token
            # is missing.
            tokenizer.model.tokenize(_UNKNOWN)
    except Exception as error:  # The package raises no narrower type.
        raise ValueError(f"{path} is damaged: {error}") from None
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest > _MAX_ID:
        raise ValueError(f"{path} is damaged: a token has the id {largest}")
    return tokenizer


def train(texts: Iterable[str], vocab_size: int = 2048) -> Tokenizer:
    """Trains lower-case byte-pair encoding (Sennrich et al. 2016) on texts.

    Accents are dropped and each digit is a token.

    Args:
        texts: captions.
        vocab_size: largest number of tokens, including special tokens.
    """
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789▁.,-'!?()&/+#"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
