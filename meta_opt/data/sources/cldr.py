"""Names of countries and languages in many languages, for language identification.

The names are those of the Unicode CLDR (licence Unicode-3.0) in the package Babel;
nothing is downloaded.
"""

import collections
import functools
import importlib.util

import numpy as np

from meta_opt.data.records import check_split
from meta_opt.data.splits import split_of

LANGUAGES = (
    "af", "az", "br", "bs", "ca", "cs", "cy", "da", "de", "dsb", "en", "eo", "es",
    "et", "eu", "fi", "fil", "fo", "fr", "fy", "ga", "gd", "gl", "gsw", "ha", "hr",
    "hsb", "hu", "id", "ig", "is", "it", "jv", "ku", "lb", "lt", "lv", "mi", "ms",
    "mt", "nb", "nl", "nn", "pl", "pt", "qu", "rm", "ro", "sk", "sl", "so", "sq",
    "sv", "sw", "tk", "tr", "uz", "vi", "wo", "yo", "zu",
)  # fmt: skip
"""Languages in Latin script that have most of the names."""

MAX_LANGUAGES = 2
"""Largest number of languages that share a name; names such as "Angola" say too little
about the language."""


def cldr_arrays(
    split: str, max_languages: int = MAX_LANGUAGES
) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """Returns names of countries and languages with the language they are in.

    The split is by the hash of the entity's code, such as ``territory/FR``, so that a
    country's names in all languages share a split.

    Args:
        split: ``train``, ``validation`` or ``test``.
        max_languages: largest number of languages that share a name (ignoring case);
            other names are excluded.

    Returns:
        B texts in a fixed order, labels int32 [B], and the K codes of languages.

    Raises:
        ValueError: if there is no such split.
        ImportError: if Babel is not installed.
    """
    check_split(split)
    kept = [
        (text, label)
        for key, text, label, shared in _names()
        if shared <= max_languages and split_of(key) == split
    ]
    return [t for t, _ in kept], np.asarray([n for _, n in kept], np.int32), LANGUAGES


@functools.cache
def _names() -> tuple[tuple[str, str, int, int], ...]:
    """All names as (entity, text, label, number of languages that share the text)."""
    if importlib.util.find_spec("babel") is None:
        raise ImportError("names of the CLDR need Babel: pip install 'meta-opt[data]'")
    from babel import Locale

    found: list[tuple[str, str, int]] = []
    for label, code in enumerate(LANGUAGES):
        locale = Locale.parse(code)
        for kind, names in (
            ("language", locale.languages),
            ("territory", locale.territories),
        ):
            # Codes with digits or several parts are continents and variants.
            found.extend(
                (f"{kind}/{key}", names[key], label)
                for key in sorted(names)
                if key.isalpha() and len(key) <= 3
            )
    languages = collections.defaultdict(set)
    for _, text, label in found:
        languages[text.casefold()].add(label)
    return tuple((*name, len(languages[name[1].casefold()])) for name in found)
