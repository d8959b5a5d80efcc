"""Ways to ask a model that reads its categories from the prompt."""

from collections.abc import Sequence
from typing import NamedTuple

from meta_opt.data.preprocessing.prompts import TEMPLATES, CategoryList, fill_template
from meta_opt.studies.stress.settings import TestsConfig


class Asked(NamedTuple):
    """A prompt, and what its categories stand for.

    Attributes:
        name: of the way to ask, as a condition has it.
        shown: the categories as the prompt lists them.
        prompt: the text.
        classes: K names of the categories, as labels have them.
    """

    name: str
    shown: CategoryList
    prompt: str
    classes: tuple[str, ...]

    def category(self, place: int) -> str:
        """The category that a name of the list stands for; a distractor's own name.

        Args:
            place: in the list.
        """
        known = self.shown.classes[place]
        return self.shown.names[place] if known < 0 else self.classes[known]


def plain(classes: Sequence[str], template: str) -> Asked:
    """As the data ask.

    Args:
        classes: K names.
        template: of the data, with ``{categories}``.
    """
    return _as_data_ask("plain", CategoryList.of(classes), template, classes)


def changed(classes: Sequence[str], template: str, tests: TestsConfig) -> list[Asked]:
    """All other ways that are tested.

    Args:
        classes: K names.
        template: of the data, with ``{categories}``.
        tests: which changes.

    Raises:
        ValueError: a synonym of what is no category, or a name that is there already.
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
    # What is asked anyway is no other way to ask.
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
