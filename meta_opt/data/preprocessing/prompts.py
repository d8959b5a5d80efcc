"""Prompts that list categories, and changes that leave what they ask the same.

A classifier that reads its categories from the prompt should not care for their order,
for synonyms, for further ones that no image shows, or for how it is asked.
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
"""Ways to ask by name: ``{categories}`` is a list with commas, ``{lines}`` one with a
category on each line."""


def fill_template(template: str, **values: str) -> str:
    """A template with its fields filled in, and doubled braces made single.

    Unlike `str.format` it takes names alone: a template of someone else's file could
    ask for attributes, or for a width of gigabytes.

    Args:
        template: with fields such as ``{categories}``.
        values: texts by the names of fields.

    Raises:
        ValueError: a field of another name, or with more than a name.

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
    """Categories as a prompt shows them.

    Attributes:
        names: K' names, in the prompt's order.
        classes: K' indices of the classes that they stand for; -1 of a distractor.

    Example:
        >>> shown = CategoryList.of(["bird", "ship"]).renamed({"ship": "boat"})
        >>> shown = shown.with_distractors(["cloud", "cup"], count=1, seed=1)
        >>> shown.names, shown.classes
        (('bird', 'cloud', 'boat'), (0, -1, 1))
    """

    names: tuple[str, ...]
    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises ValueError for names that are empty or not distinct."""
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
        """The categories as they are, class i being the i-th.

        Args:
            categories: K names.
        """
        return cls(tuple(categories), tuple(range(len(categories))))

    def shuffled(self, seed: int) -> "CategoryList":
        """In another order, which the seed decides.

        Args:
            seed: of the order.
        """
        order = list(range(len(self.names)))
        random.Random(f"order {seed}").shuffle(order)
        return self._at(order)

    def renamed(self, synonyms: Mapping[str, str]) -> "CategoryList":
        """With other names for some categories.

        Args:
            synonyms: another name by name; categories that are left out keep theirs.

        Raises:
            ValueError: a name that is not a category, or a synonym that is another one.
        """
        for name in synonyms:
            check_name("synonym of", name, self.names)
        return dataclasses.replace(
            self, names=tuple(synonyms.get(name, name) for name in self.names)
        )

    def with_distractors(
        self, distractors: Sequence[str], count: int, seed: int
    ) -> "CategoryList":
        """With further categories, at random places, that no example belongs to.

        The categories keep their order. A smaller count adds some of those that a
        larger one adds.

        Args:
            distractors: names to choose from.
            count: how many are added.
            seed: of the choice and the places.

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
        """The text that asks for one of the categories.

        Args:
            template: one of `TEMPLATES`.

        Raises:
            ValueError: an unknown template.
        """
        check_name("template", template, TEMPLATES)
        lines = "\n".join(f"- {name}" for name in self.names)
        return TEMPLATES[template].format(categories=", ".join(self.names), lines=lines)

    def name_of(self, label: int) -> str:
        """What a class is called here: the right answer for its examples.

        Args:
            label: index of the class.

        Raises:
            ValueError: no class of the list.
        """
        if label < 0 or label not in self.classes:
            raise ValueError(f"class {label} is not among {sorted(self.classes)}")
        return self.names[self.classes.index(label)]

    def _at(self, order: Sequence[int]) -> "CategoryList":
        return CategoryList(
            tuple(self.names[i] for i in order), tuple(self.classes[i] for i in order)
        )
