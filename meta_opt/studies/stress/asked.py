"""Prompts with lists of categories, for models that answer prompts."""

from collections.abc import Sequence
from typing import NamedTuple

from meta_opt.data.preprocessing.prompts import TEMPLATES, CategoryList, fill_template
from meta_opt.studies.stress.settings import TestsConfig


class Asked(NamedTuple):
    """A prompt with its list of categories.

    Attributes:
        name: `Condition.prompt` of this prompt.
        shown: names of the categories in the prompt.
        prompt: the text.
        classes: K category names as labels have them.
    """

    name: str
    shown: CategoryList
    prompt: str
    classes: tuple[str, ...]

    def category(self, place: int) -> str:
        """Returns the category of a name in the list; a distractor's own name.

        Args:
            place: index in the list.
        """
        known = self.shown.classes[place]
        return self.shown.names[place] if known < 0 else self.classes[known]


def plain(classes: Sequence[str], template: str) -> Asked:
    """Returns the prompt of the data.

    Args:
        classes: K names.
        template: template of the data, with ``{categories}``.
    """
    return _as_data_ask("plain", CategoryList.of(classes), template, classes)


def changed(classes: Sequence[str], template: str, tests: TestsConfig) -> list[Asked]:
    """All changed prompts that are tested.

    Args:
        classes: K names.
        template: template of the data, with ``{categories}``.
        tests: the changes.

    Raises:
        ValueError: a synonym of an unknown category, or a name that exists already.
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
    # Without the prompt of the data itself.
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
