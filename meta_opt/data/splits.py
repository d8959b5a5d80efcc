"""A fixed split of anything that has a name, by hash."""

import hashlib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# Of the salts 0 to 299 the one with which the classes of Open Clip Art come nearest to
# a tenth in validation and in test; the smallest classes have two items in each.
_SALT = "51"


_NAMED = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def named_split(value: Any) -> str | None:
    """The split that a user's folder or value names; None if it names none.

    >>> named_split("Val"), named_split("left")
    ('validation', None)
    """
    return _NAMED.get(str(value).strip().casefold())


def split_of(key: str) -> str:
    """Returns the split of a key: about 80 % train, 10 % validation, 10 % test.

    It depends on nothing but the key, so an item keeps its split when a dataset grows.
    """
    digest = hashlib.sha256(f"{_SALT}:{key}".encode()).digest()
    bucket = int.from_bytes(digest[:4], "big") % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")


HELD_OUT: Mapping[str, float] = MappingProxyType({"validation": 0.1, "test": 0.1})
"""Shares of a user's samples that are held out, where nothing else is said."""


def held_out_split(key: str, shares: Mapping[str, float] = HELD_OUT) -> str:
    """The split of a user's sample, by a hash of its key.

    Validation has the smallest hashes and test the largest, so that a larger share of
    the one adds to it and takes nothing from the other.

    Args:
        key: what the sample is known by, of no two the same.
        shares: of ``validation`` and ``test``; a split that is left out has none.

    >>> held_out_split("a.png"), held_out_split("a.png", {"test": 1.0})
    ('train', 'test')
    """
    place = unit_hash(key)
    if place < shares.get("validation", 0.0):
        return "validation"
    return "test" if place >= 1 - shares.get("test", 0.0) else "train"


def unit_hash(key: str) -> float:
    """A number in [0, 1) that the key decides."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def title_key(title: str) -> str:
    """Returns a title's letters, lower case, so that numbered variants share a split.

    >>> title_key("Stick Man 02"), title_key("stick_man")
    ('stickman', 'stickman')
    """
    letters = re.sub(r"[\W\d_]+", "", title.casefold())
    # A title without letters ("42") is its own key.
    return letters or title.strip()
