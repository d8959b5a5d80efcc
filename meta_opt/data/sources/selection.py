"""Selection of Open Clip Art images for retrieval and classification."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Sequence

CATEGORIES = (
    "animals",
    "buildings",
    "computer",
    "decorations",
    "education",
    "electronics",
    "food",
    "geography",
    "office",
    "people",
    "plants",
    "recreation",
    "shapes",
    "signs_and_symbols",
    "tools",
    "transportation",
)
"""The categories with at least 25 images after :func:`select`."""

CLASS_NAMES = tuple(name.replace("_", " ") for name in CATEGORIES)
"""The categories in words, which labels index."""

_LEFT_OUT = re.compile(
    # Near duplicates of one drawing, and folders that are not categories.
    r"shapes/stars/|computer/icons/|recreation/games/cards/|special/|unsorted/"
)


@dataclasses.dataclass(frozen=True)
class Described:
    """The metadata used for selection: an image's path, title and keywords."""

    path: str
    title: str
    keywords: tuple[str, ...] = ()

    @property
    def category(self) -> str:
        """The top-level folder."""
        return self.path.split("/")[0]

    @property
    def label(self) -> int:
        """The index in :data:`CLASS_NAMES`."""
        return CATEGORIES.index(self.category)


def select(
    items: Sequence[Described], max_title_uses: int = 2, class_limit: int | None = None
) -> list[int]:
    """Returns the indices of the selected images, in the given order.

    Excluded are stars, icon themes, playing cards and the folders ``special`` and
    ``unsorted``; categories outside of :data:`CATEGORIES`; and images without a title,
    or whose title is shared by more than ``max_title_uses`` images. Since a title lies
    in one split, selecting per split or over all splits gives the same result.

    Args:
        items: metadata of the images.
        max_title_uses: largest number of images with the same title, ignoring case.
        class_limit: largest number of images per category; those with the smallest hash
            of their path are kept. None sets no limit.
    """
    suitable = [
        i
        for i, item in enumerate(items)
        if item.title and not _LEFT_OUT.match(item.path)
    ]
    uses = collections.Counter(items[i].title.casefold() for i in suitable)
    kept = [
        i
        for i in suitable
        if uses[items[i].title.casefold()] <= max_title_uses
        and items[i].category in CATEGORIES
    ]
    if class_limit is None:
        return kept
    by_category: dict[str, list[int]] = collections.defaultdict(list)
    for i in sorted(kept, key=lambda i: _hash(items[i].path)):
        by_category[items[i].category].append(i)
    return sorted(i for ids in by_category.values() for i in ids[:class_limit])


def captions(item: Described) -> tuple[str, ...]:
    """Returns the title and, if there are keywords, the title followed by them.

    Uninformative keywords (the category, file tags such as ``0x9c7e034``) are dropped.
    """
    noise = {"hash", "unsorted", "sign", item.category, *item.category.split("_")}
    words = [
        k.replace("_", " ")
        for k in item.keywords
        if k.casefold() not in noise and not re.match(r"0x[0-9a-f]+$", k)
    ]
    return (item.title, ", ".join((item.title, *words))) if words else (item.title,)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
