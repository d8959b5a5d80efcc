"""Detokenisation of WordPiece tokens, which do not encode white space."""

import re

_QUOTED = re.compile(r'"\s*([^"]*?)\s*"')
_BEFORE = re.compile(r"\s+([}\])%:;])")
_AFTER = re.compile(r"([{\[(#$])\s+")
_HYPHEN = re.compile(r"(?<=\w) ([-/']) (?=\w)")


def joined(text: str) -> str:
    r"""Rejoins punctuation with the words that BERT's pre-tokenizer split it from.

    Every punctuation mark is a token, and decoding puts spaces between tokens. They are
    removed inside of brackets and double quotes (consecutive quotes are paired) and
    around hyphens, slashes and apostrophes in words. Such spaces in the original text
    are lost.

    Args:
        text: output of a tokenizer with a WordPiece decoder.

    >>> joined('{ " category " : " road sign " }')
    '{"category": "road sign"}'
    >>> joined("a t - shirt ( red ), and more")
    'a t-shirt (red), and more'
    """
    text = _QUOTED.sub(r'"\1"', text)
    return _HYPHEN.sub(r"\1", _AFTER.sub(r"\1", _BEFORE.sub(r"\1", text)))
