"""Texts out of WordPiece tokens, whose white space BERT's pre-tokenizer leaves out."""

import re

_QUOTED = re.compile(r'"\s*([^"]*?)\s*"')
_BEFORE = re.compile(r"\s+([}\])%:;])")
_AFTER = re.compile(r"([{\[(#$])\s+")
_HYPHEN = re.compile(r"(?<=\w) ([-/']) (?=\w)")


def joined(text: str) -> str:
    r"""Puts marks back to the words that BERT's pre-tokenizer split them off.

    Every mark is a token of its own, and decoding puts spaces between tokens. They are
    removed inside of brackets and double quotes (a quote and the next one are a pair)
    and around hyphens, slashes and apostrophes in words. A text that had such spaces
    loses them.

    Args:
        text: as a tokenizer with a WordPiece decoder gives it.

    >>> joined('{ " category " : " road sign " }')
    '{"category": "road sign"}'
    >>> joined("a t - shirt ( red ), and more")
    'a t-shirt (red), and more'
    """
    text = _QUOTED.sub(r'"\1"', text)
    return _HYPHEN.sub(r"\1", _AFTER.sub(r"\1", _BEFORE.sub(r"\1", text)))
