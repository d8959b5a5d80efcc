"""Questions about a named image: its name, or its category out of a list.

Each question samples a new list, so that a model has to read it. Prompts and answers
(``{"category": X}``) have the form of the few-shot data
(`meta_opt.data.preprocessing.prompts`).
"""

import collections
import dataclasses
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from meta_opt.data.preprocessing.prompts import TEMPLATES, CategoryList
from meta_opt.data.sources.answers.pictures import NamedPicture
from meta_opt.data.sources.few_shot.files import answer_of

NAMING = (
    "What is this?",
    "What does the picture show?",
    "Name what is in the picture.",
)
KEYWORDS = "List keywords for the picture."
_MOST_KEYWORDS = 4
_LONGEST = 24
"""Largest number of characters of a name in a list."""


@dataclasses.dataclass(frozen=True)
class QuestionsConfig:
    """Number and length of the questions.

    Attributes:
        per_picture: questions per training image; fewer, but at least two, for images
            of groups that are larger than average, so that no group dominates.
        held_out: questions per validation or test image.
        categories: smallest and largest number of categories in a list.
        prompt_characters: largest number of characters of a prompt; longer lists are
            truncated.
        seed: random seed of lists and templates.
    """

    per_picture: int = 6
    held_out: int = 2
    categories: tuple[int, int] = (2, 30)
    prompt_characters: int = 420
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for numbers out of range."""
        for name in ("per_picture", "held_out"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"questions.{name}={getattr(self, name)} must be at least 1"
                )
        fewest, most = self.categories
        if not 2 <= fewest <= most:
            raise ValueError(
                f"questions.categories={self.categories} must be 2 or more, ascending"
            )
        if self.prompt_characters < 300:
            raise ValueError(
                f"questions.prompt_characters={self.prompt_characters} must be at "
                "least 300, which the longest template and two categories need"
            )


class Question(NamedTuple):
    """A question about an image, and its answer."""

    picture: NamedPicture
    prompt: str
    target: str


def ask(
    pictures: Sequence[NamedPicture], config: QuestionsConfig
) -> dict[str, list[Question]]:
    """Makes questions about images, deterministically.

    A list has categories of one taxonomy, or names of images of one split that share no
    word with the right one.

    Args:
        pictures: images of any split.
        config: number and length of the questions.

    Returns:
        The questions of each split.
    """
    taxonomies: dict[str, set[str]] = collections.defaultdict(set)
    names: dict[str, set[str]] = collections.defaultdict(set)
    for picture in pictures:
        for taxonomy, category in picture.categories.items():
            taxonomies[taxonomy].add(category)
        if _listed(picture):
            names[picture.split].add(picture.name)
    groups = collections.Counter(map(_group, pictures))
    mean = len(pictures) / max(len(groups), 1)
    found: dict[str, list[Question]] = {"train": [], "validation": [], "test": []}
    for picture in pictures:
        count = config.held_out
        if picture.split == "train":
            share = min(1.0, mean / groups[_group(picture)])
            count = max(round(config.per_picture * share), min(2, config.per_picture))
        rng = random.Random(f"{config.seed} {picture.key}")
        kinds = ["name", *picture.categories]
        kinds += ["keywords"] * bool(picture.keywords)
        kinds += ["names"] * _listed(picture)
        # Equal numbers of each kind, up to a difference of one.
        order = [k for _ in range(count) for k in rng.sample(kinds, len(kinds))]
        for kind in order[:count]:
            others: Iterable[str] = taxonomies.get(kind, ())
            if kind == "names":
                others = names[picture.split]
            found[picture.split].append(
                _question(picture, kind, sorted(others), config, rng)
            )
    return found


def _group(picture: NamedPicture) -> str:
    """The broadest category of an image."""
    return next(iter(picture.categories.values()), "")


def _listed(picture: NamedPicture) -> bool:
    """Whether the name of an image may appear in a list."""
    letters = picture.name.replace(" ", "").replace("-", "")
    return picture.short and letters.isalpha() and len(picture.name) <= _LONGEST


def _question(
    picture: NamedPicture,
    kind: str,
    others: Sequence[str],
    config: QuestionsConfig,
    rng: random.Random,
) -> Question:
    if kind == "name":
        return Question(picture, rng.choice(NAMING), picture.name)
    if kind == "keywords":
        words = ", ".join(picture.keywords[:_MOST_KEYWORDS])
        return Question(picture, KEYWORDS, words)
    right = picture.name if kind == "names" else picture.categories[kind]
    if kind == "names":
        words_of = set(right.split())
        others = [name for name in others if not words_of & set(name.split())]
    others = [name for name in others if name != right]
    wanted = rng.randint(*config.categories) - 1
    wrong = rng.sample(others, min(wanted, len(others)))
    template = rng.choice(list(TEMPLATES))
    while True:
        shown = CategoryList.of([right, *wrong]).shuffled(rng.randrange(2**32))
        prompt = shown.prompt(template)
        if len(prompt) <= config.prompt_characters or not wrong:
            return Question(picture, prompt, answer_of(right))
        wrong = wrong[:-1]
