"""Classification prompts that list categories, and meaning-preserving changes of them.

A classifier that reads its categories from the prompt should be invariant to their
order, to synonyms, to distractor categories and to the wording of the prompt.
"""

import dataclasses
import random
import string
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from meta_opt.types import check_name

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "plain": "Classify the picture into one of these categories: {categories}. "
        'Answer with JSON only: {{"category": "NAME"}}',
        "question": "Which of these does the picture show: {categories}? Reply only "
        'with JSON of the form {{"category": "NAME"}}.',
        "terse": 'Categories: {categories}. Output: {{"category": "NAME"}}',
        "answer_first": 'Return {{"category": "NAME"}} as JSON, where NAME is the one '
        "category of the following that fits the picture best: {categories}.",
        "polite": "Please look at the picture and tell me what kind of thing is in it. "
        "Choose exactly one of {categories}, and write your choice as JSON: "
        '{{"category": "NAME"}}',
        "lines": "Pick the category of the picture.\n\n{lines}\n\nWrite it as JSON, "
        '{{"category": "NAME"}}, and nothing else.',
    }
)
"""Prompt templates by name: ``{categories}`` is a comma-separated list, ``{lines}`` a
list with one category per line."""


def fill_template(template: str, **values: str) -> str:
    """Fills in the fields of a template and turns doubled braces into single ones.

    Unlike `str.format` it accepts only plain names: a template from an untrusted file
    could access attributes, or specify a width of gigabytes.

    Args:
        template: text with fields such as ``{categories}``.
        values: text of each field by name.

    Raises:
        ValueError: an unknown field, or one with a format specification.

    >>> fill_template("{a} or {{b}}", a="x")
    'x or {b}'
    >>> fill_template("{a:>9999}", a="x")
    Traceback (most recent call last):
    ValueError: {a:>9999}: only {a} is filled in; braces that are to stay are doubled
    """
    known = ", ".join(f"{{{name}}}" for name in values)
    doubled = "is filled in; braces that are to stay are doubled"
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; only {known} {doubled}") from None
    filled = []
    for literal, field, width, conversion in parts:
        filled.append(literal)
        if field is None:
            continue
        if field not in values or width or conversion:
            more = f"!{conversion}" * bool(conversion) + f":{width}" * bool(width)
            raise ValueError(f"{{{(field + more)[:60]}}}: only {known} {doubled}")
        filled.append(values[field])
    return "".join(filled)


@dataclasses.dataclass(frozen=True)
class CategoryList:
    """The categories of a prompt.

    Attributes:
        names: K' names, in the prompt's order.
        classes: K' class indices of the names; -1 for distractors.

    Example:
        >>> shown = CategoryList.of(["bird", "ship"]).renamed({"ship": "boat"})
        >>> shown = shown.with_distractors(["cloud", "cup"], count=1, seed=1)
        >>> shown.names, shown.classes
        (('bird', 'cloud', 'boat'), (0, -1, 1))
    """

    names: tuple[str, ...]
    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises ValueError for empty or duplicate names."""
        if not self.names or len(self.names) != len(self.classes):
            raise ValueError(
                f"{len(self.names)} names of {len(self.classes)} classes: each class "
                "needs a name, and there must be one"
            )
        seen: dict[str, str] = {}
        for name in self.names:
            folded = name.casefold().strip()
            if not folded:
                raise ValueError(f"{name!r} is not a name of a category")
            if folded in seen:
                raise ValueError(
                    f"the categories {seen[folded]!r} and {name!r} cannot be told "
                    "apart; give one of them another name"
                )
            seen[folded] = name

    @classmethod
    def of(cls, categories: Sequence[str]) -> "CategoryList":
        """The categories in their own order; class i is the i-th.

        Args:
            categories: K names.
        """
        return cls(tuple(categories), tuple(range(len(categories))))

    def shuffled(self, seed: int) -> "CategoryList":
        """Returns the list in a random order.

        Args:
            seed: of the order.
        """
        order = list(range(len(self.names)))
        random.Random(f"order {seed}").shuffle(order)
        return self._at(order)

    def renamed(self, synonyms: Mapping[str, str]) -> "CategoryList":
        """Returns the list with some categories renamed.

        Args:
            synonyms: new name by old name; other categories keep their names.

        Raises:
            ValueError: a name that is not a category, or a synonym that already is one.
        """
        for name in synonyms:
            check_name("synonym of", name, self.names)
        return dataclasses.replace(
            self, names=tuple(synonyms.get(name, name) for name in self.names)
        )

    def with_distractors(
        self, distractors: Sequence[str], count: int, seed: int
    ) -> "CategoryList":
        """Returns the list with distractor categories inserted at random places.

        The categories keep their order. The distractors of a smaller count are a subset
        of those of a larger one.

        Args:
            distractors: names to choose from.
            count: number of distractors to insert.
            seed: random seed of the distractors and their places.

        Raises:
            ValueError: fewer distractors than asked for, or one that is a category.
        """
        if not 0 <= count <= len(distractors):
            raise ValueError(
                f"count={count} of {len(distractors)} distractors cannot be added"
            )
        rng = random.Random(f"distractors {seed}")
        chosen = rng.sample(list(distractors), len(distractors))[:count]
        names, classes = list(self.names), list(self.classes)
        for name in chosen:
            place = rng.randint(0, len(names))
            names.insert(place, name)
            classes.insert(place, -1)
        return CategoryList(tuple(names), tuple(classes))

    def prompt(self, template: str = "plain") -> str:
        """The text of the prompt.

        Args:
            template: one of `TEMPLATES`.

        Raises:
            ValueError: an unknown template.
        """
        check_name("template", template, TEMPLATES)
        lines = "\n".join(f"- {name}" for name in self.names)
        return TEMPLATES[template].format(categories=", ".join(self.names), lines=lines)

    def name_of(self, label: int) -> str:
        """The name of a class in this list, which is the right answer for its examples.

        Args:
            label: index of the class.

        Raises:
            ValueError: a class that is not in the list.
        """
        if label < 0 or label not in self.classes:
            raise ValueError(f"class {label} is not among {sorted(self.classes)}")
        return self.names[self.classes.index(label)]

    def _at(self, order: Sequence[int]) -> "CategoryList":
        return CategoryList(
            tuple(self.names[i] for i in order), tuple(self.classes[i] for i in order)
        )
