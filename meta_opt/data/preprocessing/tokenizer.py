"""Caption tokens: lower-case byte-pair encoding with the vocabulary that ships here."""

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
"""Their ids are 0, 1, 2, 3."""


class TextTokenizer(Protocol):
    """What batches and evaluations need of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def pad_id(self) -> int:
        """The id that fills rows up."""

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that are put around a text, in their order."""

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Turns B texts into int32 [B, length]."""

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts, nothing put around them."""

    def decode(self, ids: np.ndarray | Sequence[Sequence[int]]) -> list[str]:
        """Turns rows of ids into texts, special tokens left out."""


def check_texts(texts: Sequence[str], length: int, least: int) -> None:
    """Checks what ``encode`` is given.

    Raises:
        ValueError: if ``length`` is below ``least``.
        TypeError: if ``texts`` is one string.
    """
    if isinstance(texts, str):
        raise TypeError(f"encode takes a list of texts, not the string {texts!r}")
    if length < least:
        raise ValueError(f"a row needs at least {least} tokens, not {length}")


_MAX_ID = 2**31 - 1
"""Largest token id: ids are int32."""
_UNKNOWN = "\ue000"
"""A private-use character, in no vocabulary."""


class CaptionTokenizer:
    """Texts to rows of token ids: begin, the text's tokens, end, padding.

    Attributes:
        vocab_size: number of tokens, the special ones counted.
        pad_id: 0.
        bos_id: of the token that begins each row.
        eos_id: of the token that ends each text.
        special_ids: these two.
    """

    pad_id, unk_id, bos_id, eos_id = range(4)
    special_ids: tuple[int, ...] = (bos_id, eos_id)

    def __init__(self, tokenizer: Tokenizer):
        """Wraps a tokenizer whose first ids are :data:`SPECIAL_TOKENS`.

        Raises:
            ValueError: if they are others.
        """
        found = tuple(tokenizer.id_to_token(i) for i in range(len(SPECIAL_TOKENS)))
        if found != SPECIAL_TOKENS:
            raise ValueError(
                f"the vocabulary must begin with {SPECIAL_TOKENS}, not {found}"
            )
        self._tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Encodes texts; the end token stays where a long text is cut.

        Args:
            texts: B texts.
            length: S, the tokens of a row, at least 2.

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
        """The ids of texts, without the tokens that begin and end a row."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: np.ndarray | Sequence[Sequence[int]]) -> list[str]:
        """Returns the texts of rows of ids, special tokens left out.

        Args:
            ids: integers [B, S].

        Returns:
            B texts, lower case, as far as they were not cut.
        """
        rows = ids if isinstance(ids, list) else np.atleast_2d(ids).tolist()
        return [text.strip() for text in self._tokenizer.decode_batch(rows)]


@functools.cache
def load_tokenizer(path: str | os.PathLike | None = None) -> CaptionTokenizer:
    """Returns the tokenizer that ships with the package, or the one at ``path``.

    Raises:
        FileNotFoundError: if there is no file at ``path``.
        ValueError: a damaged file, or one of another vocabulary; it is named.
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
        ValueError: a damaged file; it is named.
    """
    text = read_text(path)
    try:
        with panics_as_errors("the reader"):
            tokenizer = Tokenizer.from_str(text)
            # Past the normalizer, which may drop it: the first text with an unknown
            # character would fail where the token for it is missing.
            tokenizer.model.tokenize(_UNKNOWN)
    except Exception as error:  # The package raises nothing narrower.
        raise ValueError(f"{path} is damaged: {error}") from None
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest > _MAX_ID:
        raise ValueError(f"{path} is damaged: a token has the id {largest}")
    return tokenizer


def train(texts: Iterable[str], vocab_size: int = 2048) -> Tokenizer:
    """Trains lower-case byte-pair encoding (Sennrich et al. 2016) on texts.

    Accents are dropped and digits are tokens of their own.

    Args:
        texts: captions.
        vocab_size: the most tokens, the special ones counted.
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
