"""Prompts with lists of categories, for generative models."""

from collections.abc import Sequence
from typing import NamedTuple

from meta_opt.data.preprocessing.prompts import TEMPLATES, CategoryList, fill_template
from meta_opt.studies.stress.settings import TestsConfig


class Asked(NamedTuple):
    """A prompt with its list of categories.

    Attributes:
        name: name of the prompt, a value of `Condition.prompt`.
        shown: category names as listed in the prompt.
        prompt: text of the prompt.
        classes: the K category names as used in labels.
    """

    name: str
    shown: CategoryList
    prompt: str
    classes: tuple[str, ...]

    def category(self, place: int) -> str:
        """Returns the category of a listed name, or the name itself for a distractor.

        Args:
            place: index in the list ``shown``.
        """
        known = self.shown.classes[place]
        return self.shown.names[place] if known < 0 else self.classes[known]


def plain(classes: Sequence[str], template: str) -> Asked:
    """Returns the unchanged prompt of the data.

    Args:
        classes: names of the K categories.
        template: prompt template of the data, with ``{categories}``.
    """
    return _as_data_ask("plain", CategoryList.of(classes), template, classes)


def changed(classes: Sequence[str], template: str, tests: TestsConfig) -> list[Asked]:
    """Returns all changed prompts to test.

    Args:
        classes: names of the K categories.
        template: prompt template of the data, with ``{categories}``.
        tests: settings of the changes.

    Raises:
        ValueError: a synonym for an unknown category, or a duplicate name.
    """
    whole = CategoryList.of(classes)
    found = [
        _as_data_ask(f"shuffled {seed}", whole.shuffled(seed), template, classes)
        for seed in range(1, tests.shuffles + 1)
    ]
    if tests.synonyms:
        renamed = whole.renamed(tests.synonyms)
        found.append(_as_data_ask("renamed", renamed, template, classes))
    for count in tests.distractor_counts:
        longer = whole.with_distractors(tests.distractors, count, seed=0)
        name = f"{count} distractor{'s' * (count > 1)}"
        found.append(_as_data_ask(name, longer, template, classes))
    # Leaves out a template that equals the data's own.
    found += [
        Asked(name, whole, whole.prompt(name), tuple(classes))
        for name in tests.templates
        if TEMPLATES[name] != template
    ]
    return found


def _as_data_ask(
    name: str, shown: CategoryList, template: str, classes: Sequence[str]
) -> Asked:
    prompt = fill_template(template, categories=", ".join(shown.names))
    return Asked(name, shown, prompt, tuple(classes))
