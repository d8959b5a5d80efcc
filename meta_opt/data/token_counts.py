"""Counts of the text tokens that a model reads and writes, without padding."""

import dataclasses

import numpy as np

from meta_opt.types import PyTree


@dataclasses.dataclass
class TokenCounter:
    """Sums of tokens, for the costs of a run (`meta_opt.finetuning.ledger`).

    A text counts once for each batch or evaluation that has it, however often the model
    reads it there. Images, audio and video have no tokens.

    Attributes:
        read: number of tokens of texts that a model was given.
        written: number of tokens that it generated, with those that end a text.

    Example:
        >>> tokens = TokenCounter()
        >>> tokens.add(read=30)
        >>> tokens.add(read=10, written=4)
        >>> tokens
        TokenCounter(read=40.0, written=4.0)
    """

    read: float = 0.0
    written: float = 0.0

    def add(self, read: float = 0, written: float = 0) -> None:
        """Adds to the sums."""
        self.read += read
        self.written += written


def count_tokens(texts: PyTree, pad_id: int = 0, *, ends_in_pad: bool = False) -> int:
    """Returns the number of tokens of texts, without padding.

    Args:
        texts: token ids, int [..., S]; or their features [..., S, D] and a mask bool
            [..., S] that is False for padding.
        pad_id: id of the padding token.
        ends_in_pad: whether the padding token also ends each text, as in the
            vocabularies of CLIP and SigLIP; the first one of a row then counts.

    >>> count_tokens(np.array([[2, 7, 3, 0], [2, 3, 0, 0]]))
    5
    >>> count_tokens(np.array([[2, 7, 3, 3], [2, 3, 3, 3]]), 3, ends_in_pad=True)
    5
    >>> count_tokens((np.zeros((1, 3, 8)), np.array([[True, True, False]])))
    2
    """
    if isinstance(texts, tuple):
        _, real = texts
        return int(np.count_nonzero(real))
    padding = np.asarray(texts) == pad_id
    count = padding.size - np.count_nonzero(padding)
    if ends_in_pad:
        count += np.count_nonzero(padding.any(axis=-1))
    return int(count)
