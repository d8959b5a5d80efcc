"""Deterministic splits by hash of a key."""

import hashlib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# The salt, of 0 to 299, with which the classes of Open Clip Art are closest to a tenth
# in validation and in test; the smallest classes have two items in each.
_SALT = "51"


_NAMED = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def named_split(value: Any) -> str | None:
    """The split that a user's folder name or value stands for, or None.

    >>> named_split("Val"), named_split("left")
    ('validation', None)
    """
    return _NAMED.get(str(value).strip().casefold())


def split_of(key: str) -> str:
    """Returns the split of a key: about 80 % train, 10 % validation, 10 % test.

    It depends only on the key, so that items keep their split when a dataset grows.
    """
    digest = hashlib.sha256(f"{_SALT}:{key}".encode()).digest()
    bucket = int.from_bytes(digest[:4], "big") % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")


HELD_OUT: Mapping[str, float] = MappingProxyType({"validation": 0.1, "test": 0.1})
"""Default shares of a user's samples that are held out."""


def held_out_split(key: str, shares: Mapping[str, float] = HELD_OUT) -> str:
    """The split of a user's sample by hash of its key.

    Validation has the smallest hashes and test the largest, so that raising the share
    of one adds samples to it and does not change the other.

    Args:
        key: unique key of the sample.
        shares: shares of ``validation`` and ``test``; 0 for a split that is not given.

    >>> held_out_split("a.png"), held_out_split("a.png", {"test": 1.0})
    ('train', 'test')
    """
    place = unit_hash(key)
    if place < shares.get("validation", 0.0):
        return "validation"
    return "test" if place >= 1 - shares.get("test", 0.0) else "train"


def unit_hash(key: str) -> float:
    """A hash of the key as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def title_key(title: str) -> str:
    """Returns a title's letters, lower case, so that numbered variants share a split.

    >>> title_key("Stick Man 02"), title_key("stick_man")
    ('stickman', 'stickman')
    """
    letters = re.sub(r"[\W\d_]+", "", title.casefold())
    # A title without letters ("42") is its own key.
    return letters or title.strip()
